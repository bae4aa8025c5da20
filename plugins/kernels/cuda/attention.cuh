// RaggedAttention on a GPU: launch_attention. See attention_call.cuh for how the work is cut.
//
// Floor of a decoding pass: every key and value that the rows see is read once, rows * keys * kv_heads * head_stride * 2
// elements, at the copy bandwidth of the device. What is computed hides behind that: a round of 16 keys of bfloat16 heads of
// 64 is 4 KiB, 16 products of the tensor cores and about 250 instructions of a warp; at 18.6 bytes a clock and
// multiprocessor (4.3 TB/s, 132 of them, 1.755 GHz; H200) it may take 220 clocks, in which 880 instructions are issued. To
// keep that many bytes coming, about 26 KiB must be under way on each multiprocessor (4.3 TB/s * 0.8 us / 132): a warp asks
// for a whole round before it uses the first of it, 16 warps of 4 KiB or, for heads of 128, 8 of 8 KiB. By these numbers
// reading is what a pass waits for; how near it comes to the floor was not measured.
#pragma once

#include "attention_fma.cuh"
#include "attention_mma.cuh"
#include "attention_prepare.cuh"

namespace latentcot::cuda {

constexpr int kSpreadThreads = 128;

__device__ __forceinline__ std::int32_t position_of(const CudaAttentionCall& call, std::int32_t row) {
  return call.rows[std::size_t(row) * kRowColumns + kRowPosition];
}

// One chunk of a part of a tile: the part's sums are those of the chunk afterwards. What the rows say is read anew for each
// chunk; kept, it would take registers from the products.
template <class Part>
__device__ __forceinline__ void attend_chunk(Part& part, const CudaAttentionCall& call, const AttentionShape& shape,
                                             const RowTile& tile, std::int32_t chunk, const List& list) {
  part.clear();
  const Reader reader = reader_of(call, tile.first);
  const std::int32_t window = position_of(call, tile.first) / kRowsOfTile * kRowsOfTile;
  const std::int32_t last = position_of(call, tile.first + tile.count - 1);
  const std::int32_t begin = chunk * shape.chunk;
  const std::int32_t end = last < begin + shape.chunk ? last + 1 : begin + shape.chunk;
  LATENTCOT_UNROLL_BY(1)
  for (std::int32_t first = begin; first < end; first += shape.batch) {
    const std::int32_t stop = first + shape.batch < end ? first + shape.batch : end;
    const std::int32_t count = collect(call, reader, first, stop, window, list);
    if (count > 0) {
      part.see(first, stop, window, count, list);
      part.attend(list, count, shape.slot_bytes);
    }
    __syncwarp();  // the list is written anew
  }
}

// What a warp of attend_spread works on. It stands in shared memory and is read anew where it is needed; kept by every lane,
// it would take registers from the products.
struct Share {
  RowTile tile;
  std::int32_t number;                          // of the tile, of those that are spread
  std::int32_t kv_head, part, chunks, splits;  // warps that share them
};

// Where the results of one chunk go: those of one item at a time.
struct ChunkResults {
  const CudaAttentionCall& call;
  const AttentionShape& shape;
  const AttentionSpace& space;
  const Share& share;
  std::int32_t first_item, chunk;
  float* sums = nullptr;

  // Of an item's first chunk.
  __device__ __forceinline__ std::size_t index(std::int32_t item) const {
    const std::int32_t group = call.heads / call.kv_heads;
    const std::size_t head = std::size_t(share.kv_head) * group + item % group;
    return (std::size_t(share.tile.place + item / group) * call.heads + head) * shape.chunks;
  }
  __device__ __forceinline__ void open(std::int32_t i, float2 stats, bool speaks) {
    const std::int32_t item = first_item + i;
    sums = nullptr;
    if (item >= share.tile.count * (call.heads / call.kv_heads)) return;
    const std::size_t at = index(item) + chunk;
    if (speaks) space.stats[at] = stats;
    sums = space.sums + at * call.head_stride;
  }
  __device__ __forceinline__ void put(std::int32_t dim, float4 more) const {
    if (sums) *reinterpret_cast<float4*>(sums + dim) = more;
  }
};

// What warp `unit` works on; false: nothing. All its lanes find the same.
__device__ __forceinline__ bool find_share(const CudaAttentionCall& call, const AttentionShape& shape,
                                           const AttentionSpace& space, std::int32_t items_of_part, Share& share,
                                           std::int32_t& split) {
  const std::uint32_t unit = blockIdx.x * (kSpreadThreads / kWarp) + threadIdx.x / kWarp;
  // neighbours share keys, then lines of the cache and of the table
  share.part = std::int32_t(unit % std::uint32_t(shape.parts));
  std::uint32_t rest = unit / std::uint32_t(shape.parts);
  share.kv_head = std::int32_t(rest % std::uint32_t(call.kv_heads));
  rest /= std::uint32_t(call.kv_heads);
  split = std::int32_t(rest % std::uint32_t(shape.splits));
  const std::int32_t t = std::int32_t(rest / std::uint32_t(shape.splits));
  if (t >= (call.prompt ? space.counts[0] : shape.spread)) return false;
  share.tile = {t, 1, t};
  share.number = t;
  if (call.prompt)
    share.tile = space.spread[t];
  else if (row_state(call, t) != RowState::kLive)
    return false;
  share.chunks = position_of(call, share.tile.first + share.tile.count - 1) / shape.chunk + 1;
  share.splits = shape.splits < share.chunks ? shape.splits : share.chunks;
  return share.part * items_of_part < share.tile.count * (call.heads / call.kv_heads) && split < share.chunks;
}

// Tiles whose chunks are shared by `splits` warps for each part. The last of them to end merges all chunks.
template <class Part>
__global__ void __launch_bounds__(kSpreadThreads, Part::kSpreadBlocks)
attend_spread(const CudaAttentionCall call, const AttentionShape shape, const AttentionSpace space) {
  LATENTCOT_SHARED(unsigned char, memory);
  const std::int32_t lane = std::int32_t(threadIdx.x % kWarp);
  unsigned char* const own = memory + threadIdx.x / kWarp * (sizeof(Share) + list_bytes(call, shape));
  Share& share = *reinterpret_cast<Share*>(own);
  {
    Share found;
    std::int32_t split;
    if (!find_share(call, shape, space, Part::kItems, found, split)) return;
    if (lane == 0) share = found;
    __syncwarp();
    const List list = list_of(call, shape, own + sizeof(Share));
    Part part;
    part.begin(call, space, found.tile, found.kv_head, found.part);
    LATENTCOT_UNROLL_BY(1)
    for (std::int32_t chunk = split; chunk < share.chunks; chunk += shape.splits) {
      attend_chunk(part, call, shape, share.tile, chunk, list);
      ChunkResults results{call, shape, space, share, share.part * Part::kItems, chunk};
      part.give(results);
    }
  }
  __threadfence();
  __syncwarp();
  std::uint32_t before = 0;
  if (lane == 0) {
    const std::size_t unit = std::size_t(share.number) * call.kv_heads + share.kv_head;
    before = atomicAdd(space.joined + unit * shape.parts + share.part, 1u);
  }
  before = __shfl_sync(kAllLanes, before, 0);
  if (before + 1 != std::uint32_t(share.splits)) return;
  __threadfence();
  __syncwarp();  // what lane 0 has seen the others end, all lanes have

  const std::int32_t group = call.heads / call.kv_heads, quarters = call.head_stride / 4;
  const std::int32_t chunks = share.chunks, first_item = share.part * Part::kItems;
  const std::int32_t items = share.tile.count * group - first_item;
  const ChunkResults results{call, shape, space, share, first_item, 0};
  for (std::int32_t i = lane; i < (items < Part::kItems ? items : Part::kItems) * quarters; i += kWarp) {
    const std::int32_t item = first_item + i / quarters, dim = i % quarters * 4;
    const std::size_t at = results.index(item);
    const float2* const stats = space.stats + at;
    const float* const sums = space.sums + at * call.head_stride + dim;
    float2 state = make_float2(kNothing, 0.f);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    LATENTCOT_UNROLL_BY(8)
    for (std::int32_t chunk = 0; chunk < chunks; ++chunk) {
      const Factors factors = join(state, stats[chunk]);
      sum = merged(sum, *reinterpret_cast<const float4*>(sums + std::size_t(chunk) * call.head_stride), factors);
    }
    write_out(call, share.tile.first + item / group, share.kv_head * group + item % group, dim, sum, state.y);
  }
}

// Merged results of one part, in a block's shared memory. Rows of sums are 4 floats longer than a head, which puts rows that
// one access touches into different banks.
struct BlockResults {
  float2* stats;  // [items]
  float* sums;    // [items, pitch]
  std::int32_t pitch;
  float* at = nullptr;
  Factors factors{};

  __device__ __forceinline__ void open(std::int32_t item, float2 more, bool speaks) {
    float2 state = stats[item];
    __syncwarp();
    factors = join(state, more);
    if (speaks) stats[item] = state;
    at = sums + std::size_t(item) * pitch;
  }
  __device__ __forceinline__ void put(std::int32_t dim, float4 more) const {
    float4* const where = reinterpret_cast<float4*>(at + dim);
    *where = merged(*where, more, factors);
  }
};

// Tiles that one block works on: its warps share the chunks of one or more parts and merge them in turn.
template <class Part>
__global__ void __launch_bounds__(Part::kTileWarps * kWarp, Part::kTileBlocks)
attend_tiles(const CudaAttentionCall call, const AttentionShape shape, const AttentionSpace space, std::int32_t sharers,
             std::int32_t part_groups) {
  LATENTCOT_SHARED(unsigned char, memory);
  const std::int32_t thread = std::int32_t(threadIdx.x), warp = thread / kWarp, turns = Part::kTileWarps / sharers;
  const std::int32_t own = warp % sharers, turn = warp / sharers;  // parts side by side: they read the same keys
  const std::int32_t part_group = std::int32_t(blockIdx.x) % part_groups;
  const std::int32_t kv_head = std::int32_t(blockIdx.x) / part_groups % call.kv_heads;
  const std::int32_t stripe = std::int32_t(blockIdx.x) / part_groups / call.kv_heads;
  const std::int32_t stripes = std::int32_t(gridDim.x) / part_groups / call.kv_heads;
  const std::int32_t group = call.heads / call.kv_heads, pitch = call.head_stride + 4;
  const std::int32_t places = sharers * Part::kItems;  // for items, in this block
  float* const sums = reinterpret_cast<float*>(memory);
  float2* const stats = reinterpret_cast<float2*>(sums + std::size_t(places) * pitch);
  const List list = list_of(call, shape, reinterpret_cast<unsigned char*>(stats + places) +
                                           std::size_t(warp) * list_bytes(call, shape));
  BlockResults results{stats + own * Part::kItems, sums + std::size_t(own) * Part::kItems * pitch, pitch};
  for (std::int32_t t = stripe; t < space.counts[1]; t += stripes) {
    const RowTile tile = space.tiles[t];
    const std::int32_t items = tile.count * group, first_item = part_group * places;
    if (first_item >= items) continue;
    for (std::int32_t i = thread; i < places * pitch; i += Part::kTileWarps * kWarp) sums[i] = 0.f;
    for (std::int32_t i = thread; i < places; i += Part::kTileWarps * kWarp) stats[i] = make_float2(kNothing, 0.f);
    __syncthreads();
    const std::int32_t last = position_of(call, tile.first + tile.count - 1), chunks = last / shape.chunk + 1;
    const std::int32_t p = part_group * sharers + own;
    const bool there = p * Part::kItems < items;
    Part part;
    part.begin(call, space, tile, kv_head, p);
    LATENTCOT_UNROLL_BY(1)
    for (std::int32_t base = 0; base < chunks; base += turns) {
      const bool mine = there && base + turn < chunks;
      if (mine) attend_chunk(part, call, shape, tile, base + turn, list);
      for (std::int32_t now = 0; now < turns; ++now) {
        if (mine && now == turn) part.give(results);
        __syncthreads();
      }
    }
    const std::int32_t quarters = call.head_stride / 4;
    for (std::int32_t i = thread; i < places * quarters; i += Part::kTileWarps * kWarp) {
      const std::int32_t item = first_item + i / quarters, dim = i % quarters * 4;
      if (item >= items) break;
      write_out(call, tile.first + item / group, kv_head * group + item % group, dim,
                *reinterpret_cast<const float4*>(sums + std::size_t(i / quarters) * pitch + dim), stats[i / quarters].y);
    }
    __syncthreads();  // sums are cleared for the next tile
  }
}

// Calls `use.operator()<Part>()` with what computes this call.
template <class Use>
inline auto with_part(const CudaAttentionCall& call, const Use& use) {
  const std::int32_t stride = call.head_stride;
  if (call.stored == Element::kFloat32) {
    if (stride <= 64) return use.template operator()<FmaPart<float, 16, 1>>();
    if (stride <= 128) return use.template operator()<FmaPart<float, 16, 2>>();
    if (stride <= 256) return use.template operator()<FmaPart<float, 32, 2>>();
    if (stride <= 512) return use.template operator()<FmaPart<float, 32, 4>>();
    return use.template operator()<FmaPart<float, 32, 8>>();
  }
  const auto half = [&]<class T>() {
    if (stride < 64) return use.template operator()<MmaPart<T, 1, false>>();
    if (stride == 64) return use.template operator()<MmaPart<T, 1, true>>();
    if (stride < 128) return use.template operator()<MmaPart<T, 2, false>>();
    if (stride == 128) return use.template operator()<MmaPart<T, 2, true>>();
    if (stride <= 256) return use.template operator()<FmaPart<T, 32, 1>>();
    if (stride <= 512) return use.template operator()<FmaPart<T, 32, 2>>();
    return use.template operator()<FmaPart<T, 32, 4>>();
  };
  return call.stored == Element::kFloat16 ? half.template operator()<__half>()
                                          : half.template operator()<__nv_bfloat16>();
}

// Bytes that launch_attention works in, the same for every call of these shapes; whatever stands there.
inline std::size_t attention_workspace(const CudaAttentionCall& call) {
  return with_part(call, [&]<class Part>() {
    return attention_space(call, attention_shape(call, Part::kItems), nullptr).bytes;
  });
}

// The most that a call on a table of this length or a shorter one works in: a longer table has fewer chunks where chunks
// have just become longer.
inline std::size_t most_attention_workspace(const CudaAttentionCall& call) {
  std::size_t most = attention_workspace(call);
  CudaAttentionCall shorter = call;
  for (shorter.length = kLeastChunk * kMostChunks; shorter.length < call.length; shorter.length *= 2) {
    const std::size_t bytes = attention_workspace(shorter);
    most = bytes > most ? bytes : most;
    if (shorter.length > call.length / 2) break;
  }
  return most;
}

// Checked by the caller, as for the CPU: shapes, and that nothing overlaps. Values that no table has make their row dead and
// leave kAttentionFault in counters[kStalled].
inline cudaError_t launch_attention(const CudaAttentionCall& call, void* workspace, Stream stream) {
  if (call.row_count == 0) return cudaSuccess;
  return with_part(call, [&]<class Part>() {
    const AttentionShape shape = attention_shape(call, Part::kItems);
    const AttentionSpace space = attention_space(call, shape, workspace);
    const std::size_t list = list_bytes(call, shape);
    cudaError_t error = launch_prepare(call, shape, space, stream);
    if (error != cudaSuccess) return error;
    constexpr int kWarps = kSpreadThreads / kWarp;
    const std::int64_t units = std::int64_t(shape.spread) * call.kv_heads * shape.parts * shape.splits;
    error = launch(attend_spread<Part>, dim3(unsigned(ceil_div(units, kWarps))), dim3(kSpreadThreads),
                   kWarps * (sizeof(Share) + list), stream, call, shape, space);
    if (error != cudaSuccess || !call.prompt || call.row_count <= kSpreadRows) return error;
    const std::int32_t parts = ceil_div(kRowsOfTile * std::int64_t(call.heads / call.kv_heads), Part::kItems);
    std::int32_t sharers = 1;  // parts of one block: beyond 4 they hardly read less
    while (sharers * 2 <= parts && sharers < 4) sharers *= 2;
    const std::int32_t groups = ceil_div(parts, sharers);
    const std::int32_t stripes = ceil_div(call.row_count, kRowsOfTile) * 2;  // tiles are not always full
    const std::size_t bytes = std::size_t(sharers) * Part::kItems * ((call.head_stride + 4) * sizeof(float) + sizeof(float2));
    return launch(attend_tiles<Part>, dim3(unsigned(stripes * groups * call.kv_heads)), dim3(Part::kTileWarps * kWarp),
                  bytes + Part::kTileWarps * list, stream, call, shape, space, sharers, groups);
  });
}

}  // namespace latentcot::cuda
