// Attention of a few items over a list of keys by one warp and plain float32 arithmetic: for caches of float32, and for
// heads too long for the tensor cores' registers (attention_mma.cuh).
//
// kLanes lanes share a key, each with kVectors pieces of 16 bytes; so a warp works on 32 / kLanes keys at once, each stream
// of keys with a softmax of its own, and joins the streams at the end of a chunk.
#pragma once

#include "attention_list.cuh"
#include "attention_merge.cuh"

namespace latentcot::cuda {

// The numbers of 16 bytes.
__device__ __forceinline__ void unpack(uint4 from, float (&to)[4], float) {
  to[0] = __uint_as_float(from.x), to[1] = __uint_as_float(from.y);
  to[2] = __uint_as_float(from.z), to[3] = __uint_as_float(from.w);
}
template <class T>
__device__ __forceinline__ float half_of(std::uint32_t both, int which);
template <>
__device__ __forceinline__ float half_of<__half>(std::uint32_t both, int which) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(both >> 16 * which)));
}
template <>
__device__ __forceinline__ float half_of<__nv_bfloat16>(std::uint32_t both, int which) {
  return __uint_as_float(which ? both & 0xffff0000u : both << 16);
}
template <class T>
__device__ __forceinline__ void unpack(uint4 from, float (&to)[8], T) {
  const std::uint32_t words[4] = {from.x, from.y, from.z, from.w};
  LATENTCOT_UNROLL
  for (int i = 0; i < 8; ++i) to[i] = half_of<T>(words[i / 2], i % 2);
}

template <class T, int kLanes, int kVectors>
struct FmaPart {
  static constexpr int kOfVector = 16 / sizeof(T);
  static constexpr int kDims = kVectors * kOfVector;              // of a head that a lane holds
  static constexpr int kItems = kDims <= 8 ? 4 : kDims == 16 ? 2 : 1;  // queries and sums fill half of the registers
  static constexpr int kSteps = kDims <= 4 ? 4 : kDims == 8 ? 2 : 1;   // keys a lane loads before it uses the first
  static constexpr int kStreams = kWarp / kLanes;
  static constexpr int kKeys = kSteps * kStreams;  // of one round
  // of 4 warps on a multiprocessor: registers that leaves a lane
  static constexpr int kSpreadBlocks = kDims == 32 ? 2 : 3, kTileWarps = 4, kTileBlocks = kSpreadBlocks;

  const T *keys, *values;  // of this kv head, at slot 0 and this lane's first piece
  std::int32_t lanes_left;  // of a head, from this lane's first piece on
  float query[kItems][kDims], sums[kItems][kDims], largest[kItems], total[kItems];
  std::int32_t position[kItems], visible[kItems], least;

  // Whether piece v lies inside a head.
  __device__ __forceinline__ bool inside(int v) const { return v * kLanes * kOfVector < lanes_left; }

  __device__ __forceinline__ void begin(const CudaAttentionCall& call, const AttentionSpace& space, const RowTile& tile,
                                        std::int32_t kv_head, std::int32_t part) {
    const std::int32_t first = std::int32_t(threadIdx.x % kLanes) * kOfVector;
    const std::int32_t group = call.heads / call.kv_heads, stride = call.head_stride;
    keys = static_cast<const T*>(call.keys) + std::size_t(kv_head) * stride + first;
    values = static_cast<const T*>(call.values) + std::size_t(kv_head) * stride + first;
    lanes_left = stride - first;
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i) {
      const std::int32_t item = part * kItems + i, row = tile.first + item / group;
      const bool there = item < tile.count * group;
      position[i] = there ? call.rows[std::size_t(row) * kRowColumns + kRowPosition] : call.length;
      const float* const from =
        space.queries + (std::size_t(row) * call.heads + std::size_t(kv_head) * group + item % group) * stride + first;
      LATENTCOT_UNROLL
      for (int d = 0; d < kDims; ++d) {
        const int v = d / kOfVector;
        query[i][d] = there && inside(v) ? from[v * kLanes * kOfVector + d % kOfVector] : 0.f;
      }
    }
  }

  __device__ __forceinline__ void clear() {
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i) {
      largest[i] = kNothing, total[i] = 0.f;
      LATENTCOT_UNROLL
      for (int d = 0; d < kDims; ++d) sums[i][d] = 0.f;
    }
  }

  __device__ __forceinline__ void see(std::int32_t first, std::int32_t stop, std::int32_t window, std::int32_t count,
                                      const List& list) {
    least = count;
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i) {
      visible[i] = seen_by(position[i], first, stop, window, count, list);
      least = visible[i] < least ? visible[i] : least;
    }
  }

  __device__ __forceinline__ void load(uint4 (&to)[kVectors], const T* part, const List& list, std::int32_t j,
                                       std::uint32_t slot_bytes) const {
    const std::uint64_t bytes = std::uint64_t(std::uint32_t(list.slots[j])) * slot_bytes;
    const T* const at = reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(part) + bytes);
    LATENTCOT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      to[v] = {0, 0, 0, 0};
      if (inside(v)) to[v] = __ldg(reinterpret_cast<const uint4*>(at + v * kLanes * kOfVector));
    }
  }

  __device__ __forceinline__ void attend(const List& list, std::int32_t count, std::uint32_t slot_bytes) {
    const std::int32_t stream = std::int32_t(threadIdx.x % kWarp / kLanes);
    LATENTCOT_UNROLL_BY(1)
    for (std::int32_t base = 0; base < count; base += kKeys) {
      uint4 key[kSteps][kVectors], value[kSteps][kVectors];
      LATENTCOT_UNROLL
      for (int u = 0; u < kSteps; ++u) load(key[u], keys, list, base + u * kStreams + stream, slot_bytes);
      LATENTCOT_UNROLL
      for (int u = 0; u < kSteps; ++u) load(value[u], values, list, base + u * kStreams + stream, slot_bytes);
      float score[kSteps][kItems];
      LATENTCOT_UNROLL
      for (int u = 0; u < kSteps; ++u) scores_of(key[u], score[u]);
      const bool all = base + kKeys <= least;
      float factor[kItems];
      LATENTCOT_UNROLL
      for (int i = 0; i < kItems; ++i) {
        float next = largest[i];
        LATENTCOT_UNROLL
        for (int u = 0; u < kSteps; ++u) {
          const std::int32_t j = base + u * kStreams + stream;
          if (list.weighted) score[u][i] += list.biases[j];
          if (!all && j >= visible[i]) score[u][i] = -INFINITY;
          next = fmaxf(next, score[u][i]);
        }
        factor[i] = exp2f(largest[i] - next);
        largest[i] = next;
        LATENTCOT_UNROLL
        for (int d = 0; d < kDims; ++d) sums[i][d] *= factor[i];
      }
      LATENTCOT_UNROLL
      for (int u = 0; u < kSteps; ++u) {
        const std::int32_t j = base + u * kStreams + stream;
        float weight[kItems];
        LATENTCOT_UNROLL
        for (int i = 0; i < kItems; ++i) {
          weight[i] = exp2f(score[u][i] - largest[i]);
          total[i] = fmaf(total[i], u == 0 ? factor[i] : 1.f, weight[i]);
        }
        LATENTCOT_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          float x[kOfVector];
          unpack(value[u][v], x, T{});
          LATENTCOT_UNROLL
          for (int i = 0; i < kItems; ++i) {
            if (!all && j >= visible[i]) continue;  // 0 times what is no number is not 0
            LATENTCOT_UNROLL
            for (int d = 0; d < kOfVector; ++d) {
              float& sum = sums[i][v * kOfVector + d];
              sum = fmaf(weight[i], x[d], sum);
            }
          }
        }
      }
    }
  }

  // Scores of one key, the same in all lanes that share it.
  __device__ __forceinline__ void scores_of(const uint4 (&key)[kVectors], float (&score)[kItems]) const {
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i) score[i] = 0.f;
    LATENTCOT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float x[kOfVector];
      unpack(key[v], x, T{});
      LATENTCOT_UNROLL
      for (int i = 0; i < kItems; ++i)
        LATENTCOT_UNROLL
        for (int d = 0; d < kOfVector; ++d) score[i] = fmaf(query[i][v * kOfVector + d], x[d], score[i]);
    }
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i)
      LATENTCOT_UNROLL
      for (int lanes = 1; lanes < kLanes; lanes *= 2) score[i] += __shfl_xor_sync(kAllLanes, score[i], lanes);
  }

  template <class Sink>
  __device__ __forceinline__ void give(Sink& sink) {
    const std::int32_t lane = std::int32_t(threadIdx.x % kWarp);
    LATENTCOT_UNROLL
    for (int i = 0; i < kItems; ++i) {
      // stream 0 joins the others, first to last; what theirs compute here is not used
      for (int stream = 1; stream < kStreams; ++stream) {
        const int from = stream * kLanes + lane % kLanes;
        const float2 more = make_float2(__shfl_sync(kAllLanes, largest[i], from), __shfl_sync(kAllLanes, total[i], from));
        float2 state = make_float2(largest[i], total[i]);
        const Factors factors = join(state, more);
        const bool mine = lane < kLanes;
        largest[i] = mine ? state.x : largest[i];
        total[i] = mine ? state.y : total[i];
        LATENTCOT_UNROLL
        for (int d = 0; d < kDims; ++d) {
          const float x = __shfl_sync(kAllLanes, sums[i][d], from);
          const float both = fmaf(sums[i][d], factors.mine, x * factors.theirs);
          sums[i][d] = mine ? both : sums[i][d];
        }
      }
      sink.open(i, make_float2(largest[i], total[i]), lane == 0);
      LATENTCOT_UNROLL
      for (int d = 0; d < kDims; d += 4) {
        const int v = d / kOfVector;
        const std::int32_t dim = lane % kLanes * kOfVector + v * kLanes * kOfVector + d % kOfVector;
        if (lane < kLanes && inside(v))
          sink.put(dim, make_float4(sums[i][d], sums[i][d + 1], sums[i][d + 2], sums[i][d + 3]));
      }
    }
  }
};

}  // namespace latentcot::cuda
