// The first kernel of RaggedAttention: heads normed and turned, keys and values at their slots, dead rows' results, and for
// a prompt which rows share tiles. What it writes is there for all rows when the next kernel begins, in order of the stream.
#pragma once

#include <type_traits>

#include "attention_call.cuh"

namespace latentcot::cuda {

constexpr int kPrepareThreads = 256;  // a warp for each head of each row

// Elements of one head, normed and turned. A warp's lanes take them in turn.
template <class T>
struct Head {
  const T* x;
  const float *norm, *cosine, *sine;  // norm: null where heads have none
  float factor;
  std::int32_t half, dims;

  __device__ __forceinline__ float plain(std::int32_t i) const {
    return norm ? widen(x[i]) * factor * norm[i] : widen(x[i]);
  }

  __device__ __forceinline__ float operator[](std::int32_t i) const {
    if (i < half) return plain(i) * cosine[i] - plain(i + half) * sine[i];
    if (i < 2 * half) return plain(i) * cosine[i - half] + plain(i - half) * sine[i - half];
    return i < dims ? plain(i) : 0.f;
  }
};

// `norm` may be null. All lanes of the warp call it; the order of its sum depends on head_dim alone.
template <class T>
__device__ __forceinline__ Head<T> head_of(const CudaAttentionCall& call, std::int32_t row, const T* x, const float* norm) {
  const std::int32_t lane = std::int32_t(threadIdx.x % kWarp), half = call.turned / 2;
  Head<T> head{x, norm, call.cosine + std::size_t(row) * half, call.sine + std::size_t(row) * half, 1.f, half,
               call.head_dim};
  if (norm) {
    float squares = 0.f;
    for (std::int32_t i = lane; i < call.head_dim; i += kWarp) squares = fmaf(widen(x[i]), widen(x[i]), squares);
    LATENTCOT_UNROLL
    for (int lanes = 1; lanes < kWarp; lanes *= 2) squares += __shfl_xor_sync(kAllLanes, squares, lanes);
    head.factor = 1.f / sqrtf(squares / float(call.head_dim) + call.epsilon);
  }
  return head;
}

__device__ __forceinline__ void store_in_cache(const CudaAttentionCall& call, void* cache, std::size_t at, float x) {
  store(cache, at, call.stored == Element::kFloat16 ? clamped(x) : x, call.stored);
}

// Whether live row i is the first of a tile.
__device__ __forceinline__ bool begins_tile(const CudaAttentionCall& call, std::int32_t i) {
  if (i == 0 || row_state(call, i - 1) != RowState::kLive) return true;
  const std::int32_t *here = call.rows + std::size_t(i) * kRowColumns, *before = here - kRowColumns;
  return here[kRowSequence] != before[kRowSequence] || here[kRowStep] != before[kRowStep] ||
         here[kRowPosition] <= before[kRowPosition] ||
         here[kRowPosition] / kRowsOfTile != before[kRowPosition] / kRowsOfTile;
}

// Cuts the rows of a prompt's pass into tiles; one block does it. In a long pass those of one row, decoding rows among the
// prompt's, are spread over warps as long as there is place; a block would work on each as long as on 16 rows.
__device__ __forceinline__ void cut_tiles(const CudaAttentionCall& call, const AttentionShape& shape,
                                          const AttentionSpace& space, std::int32_t* scratch) {
  const bool all = call.row_count <= kSpreadRows;
  std::int32_t spread = 0, tiles = 0;
  for (std::int32_t base = 0; base < call.row_count; base += kPrepareThreads) {
    const std::int32_t i = base + std::int32_t(threadIdx.x);
    std::int32_t count = 0;
    if (i < call.row_count && row_state(call, i) == RowState::kLive && begins_tile(call, i)) {
      count = 1;
      while (count < kRowsOfTile && i + count < call.row_count && row_state(call, i + count) == RowState::kLive &&
             !begins_tile(call, i + count))
        ++count;
    }
    std::int32_t found;
    const bool wanted = count > 0 && (all || count == 1);
    const std::int32_t rank = spread + count_before(wanted, scratch, &found);
    const bool taken = wanted && rank < shape.spread;
    if (taken) space.spread[rank] = {i, count, all ? i : rank};
    spread = spread + found < shape.spread ? spread + found : shape.spread;
    const std::int32_t tile = tiles + count_before(count > 0 && !taken, scratch, &found);
    if (count > 0 && !taken) space.tiles[tile] = {i, count, 0};
    tiles += found;
  }
  if (threadIdx.x == 0) space.counts[0] = spread, space.counts[1] = tiles;
}

template <class T>  // element type of qkv and out
__global__ void __launch_bounds__(kPrepareThreads)
prepare_rows(const CudaAttentionCall call, const AttentionShape shape, const AttentionSpace space) {
  LATENTCOT_SHARED(std::int32_t, scratch);
  if (call.prompt && blockIdx.x + 1 == gridDim.x) return cut_tiles(call, shape, space, scratch);
  const std::int32_t lane = std::int32_t(threadIdx.x % kWarp), all = call.heads + 2 * call.kv_heads;
  const std::uint32_t unit = blockIdx.x * (kPrepareThreads / kWarp) + threadIdx.x / kWarp;  // head `number` of a row
  const std::int32_t row = std::int32_t(unit / std::uint32_t(all)), number = std::int32_t(unit % std::uint32_t(all));
  if (row >= call.row_count) return;
  const std::int32_t stride = call.head_stride, dims = call.head_dim;
  if (number == 0 && row < shape.spread)  // whoever merges counts from zero, whatever stood there
    for (std::int32_t i = lane; i < call.kv_heads * shape.parts; i += kWarp)
      space.joined[std::size_t(row) * call.kv_heads * shape.parts + i] = 0;
  const RowState state = row_state(call, row);
  if (state == RowState::kFaulty && number == 0 && lane == 0) report_fault(call);
  const T* const x = reinterpret_cast<const T*>(call.qkv) + (std::size_t(row) * all + number) * dims;
  if (number < call.heads) {
    const std::size_t at = std::size_t(row) * call.heads + number;
    if (state != RowState::kLive) {
      for (std::int32_t i = lane; i < dims; i += kWarp) store(call.out, at * dims + i, 0.f, call.data);
      return;
    }
    const Head<T> head = head_of(call, row, x, call.query_norm);
    for (std::int32_t i = lane; i < stride; i += kWarp) space.queries[at * stride + i] = head[i] * shape.scale;
    return;
  }
  const std::int32_t slot = call.rows[std::size_t(row) * kRowColumns + kRowSlot];
  if (state != RowState::kLive || slot < 0) return;
  const bool key = number < call.heads + call.kv_heads;
  const std::int32_t kv_head = number - call.heads - (key ? 0 : call.kv_heads);
  const std::size_t at = (std::size_t(slot) * call.kv_heads + kv_head) * stride;
  if (!key) {
    for (std::int32_t i = lane; i < stride; i += kWarp)
      store_in_cache(call, call.values, at + i, i < dims ? widen(x[i]) : 0.f);
    return;
  }
  const Head<T> head = head_of(call, row, x, call.key_norm);
  for (std::int32_t i = lane; i < stride; i += kWarp) store_in_cache(call, call.keys, at + i, head[i]);
}

inline cudaError_t launch_prepare(const CudaAttentionCall& call, const AttentionShape& shape, const AttentionSpace& space,
                                  Stream stream) {
  constexpr int kWarps = kPrepareThreads / kWarp;
  const std::int64_t units = std::int64_t(call.row_count) * (call.heads + 2 * call.kv_heads);
  const unsigned blocks = unsigned(ceil_div(units, kWarps)) + (call.prompt ? 1 : 0);
  return with_element(call.data, [&]<class T>() {
    return launch(prepare_rows<T>, dim3(blocks), dim3(kPrepareThreads), kBlockParts * sizeof(int), stream, call, shape,
                  space);
  });
}

}  // namespace latentcot::cuda
