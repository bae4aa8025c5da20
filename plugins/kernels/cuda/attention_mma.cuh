// Attention of 16 items over a list of keys by one warp and its tensor cores, for caches of float16 and bfloat16 and heads
// of up to 128 lanes.
//
// Keys and values go from the cache to registers, 16 bytes a lane, and from there into the products, without shared memory:
// what a product sums over may stand in any order, so each lane loads what lies beside each other and takes it for the
// numbers that the product wants of that lane.
//   scores: lane 4 r + c brings 8 lanes of a head, 32 g + 8 c to 32 g + 8 c + 7, of keys 4 (r / 2) + r % 2 and 2 behind it;
//           they count as columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of two steps. Queries are laid out to match.
//   values: it brings 8 lanes of a head, 64 b + 8 r on, of the four keys 4 c to 4 c + 3, whose scores it holds.
// Queries and weights are rounded to the cache's type, as its keys are; scores, weights' sums and results are float32.
#pragma once

#include <type_traits>

#include "attention_list.cuh"
#include "attention_merge.cuh"
#include "mma.cuh"

namespace latentcot::cuda {

// Heads of 64 * kBlocks lanes where kWhole, else of fewer.
template <class T, int kBlocks, bool kWhole>
struct MmaPart {
  static constexpr int kItems = 16;
  static constexpr int kKeys = 16;               // of one round
  static constexpr int kSpreadBlocks = kBlocks == 1 ? 4 : 2;  // of 4 warps on a multiprocessor: registers that leaves a lane
  static constexpr int kTileWarps = 4;
  static constexpr int kTileBlocks = kBlocks == 1 ? 3 : 2;

  const T *keys, *values;  // of this kv head, at slot 0 and this lane's part of a head
  std::int32_t key_lanes, value_lanes;  // of a head, from this lane's part on
  std::uint32_t query[4 * kBlocks][4];
  std::int32_t position[2], visible[2], least;  // of items r and r + 8; keys that all of them see
  float largest[2], total[2], sums[kBlocks][8][4];

  __device__ __forceinline__ void begin(const CudaAttentionCall& call, const AttentionSpace& space, const RowTile& tile,
                                        std::int32_t kv_head, std::int32_t part) {
    const std::int32_t lane = std::int32_t(threadIdx.x % kWarp), r = lane / 4, c = lane % 4;
    const std::int32_t group = call.heads / call.kv_heads, stride = call.head_stride;
    keys = static_cast<const T*>(call.keys) + std::size_t(kv_head) * stride + 8 * c;
    values = static_cast<const T*>(call.values) + std::size_t(kv_head) * stride + 8 * r;
    key_lanes = stride - 8 * c;
    value_lanes = stride - 8 * r;
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const std::int32_t item = part * kItems + r + 8 * i, row = tile.first + item / group;
      const bool there = item < tile.count * group;
      position[i] = there ? call.rows[std::size_t(row) * kRowColumns + kRowPosition] : call.length;
      const float* const from =
        space.queries + (std::size_t(row) * call.heads + std::size_t(kv_head) * group + item % group) * stride + 8 * c;
      LATENTCOT_UNROLL
      for (int k = 0; k < 4 * kBlocks; ++k) {
        const std::int32_t at = k / 2 * 32 + k % 2 * 4;
        float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
        if (there && at < key_lanes) x = *reinterpret_cast<const float4*>(from + at);
        if constexpr (std::is_same_v<T, __half>) x = make_float4(clamped(x.x), clamped(x.y), clamped(x.z), clamped(x.w));
        query[k][i] = pack<T>(x.x, x.y);
        query[k][2 + i] = pack<T>(x.z, x.w);
      }
    }
  }

  __device__ __forceinline__ void clear() {
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i) largest[i] = kNothing, total[i] = 0.f;
    LATENTCOT_UNROLL
    for (int b = 0; b < kBlocks; ++b)
      LATENTCOT_UNROLL
      for (int j = 0; j < 8; ++j)
        LATENTCOT_UNROLL
        for (int i = 0; i < 4; ++i) sums[b][j][i] = 0.f;
  }

  // How many of the list's entries, those of positions [first, stop), each item sees.
  __device__ __forceinline__ void see(std::int32_t first, std::int32_t stop, std::int32_t window, std::int32_t count,
                                      const List& list) {
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i) visible[i] = seen_by(position[i], first, stop, window, count, list);
    least = visible[0] < visible[1] ? visible[0] : visible[1];
    LATENTCOT_UNROLL
    for (int lanes = 4; lanes < kWarp; lanes *= 2) {
      const std::int32_t other = __shfl_xor_sync(kAllLanes, least, lanes);
      least = other < least ? other : least;
    }
  }

  using Keys = uint4[2][2 * kBlocks];
  using Values = uint4[4][kBlocks];

  // 16 bytes of a head if they are within it. `lanes`: of the head, from this lane's part on.
  __device__ __forceinline__ static uint4 load(const T* part, std::int32_t at, std::int32_t lanes) {
    if (kWhole || at < lanes) return __ldg(reinterpret_cast<const uint4*>(part + at));
    return {0, 0, 0, 0};
  }

  // `part` of what lies at an entry's slot.
  __device__ __forceinline__ static const T* entry(const T* part, const List& list, std::int32_t j,
                                                   std::uint32_t slot_bytes) {
    const std::uint64_t bytes = std::uint64_t(std::uint32_t(list.slots[j])) * slot_bytes;
    return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(part) + bytes);
  }

  __device__ __forceinline__ void load_keys(Keys& to, const List& list, std::int32_t base,
                                            std::uint32_t slot_bytes) const {
    const std::int32_t r = std::int32_t(threadIdx.x % kWarp / 4);
    LATENTCOT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const T* const at = entry(keys, list, base + r / 2 * 4 + r % 2 + 2 * h, slot_bytes);
      LATENTCOT_UNROLL
      for (int g = 0; g < 2 * kBlocks; ++g) to[h][g] = load(at, 32 * g, key_lanes);
    }
  }

  __device__ __forceinline__ void load_values(Values& to, const List& list, std::int32_t base,
                                              std::uint32_t slot_bytes) const {
    const std::int32_t c = std::int32_t(threadIdx.x % 4);
    LATENTCOT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const T* const at = entry(values, list, base + 4 * c + i, slot_bytes);
      LATENTCOT_UNROLL
      for (int b = 0; b < kBlocks; ++b) to[i][b] = load(at, 64 * b, value_lanes);
    }
  }

  // Values as the 8 second factors of a block: number j holds dimension j of this lane's 8.
  __device__ __forceinline__ static void lay_out(const Values& v, int block, std::uint32_t (&b)[8][2]) {
    LATENTCOT_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const uint4 one = v[2 * pair][block], two = v[2 * pair + 1][block];
      b[0][pair] = lower_halves(one.x, two.x), b[1][pair] = upper_halves(one.x, two.x);
      b[2][pair] = lower_halves(one.y, two.y), b[3][pair] = upper_halves(one.y, two.y);
      b[4][pair] = lower_halves(one.z, two.z), b[5][pair] = upper_halves(one.z, two.z);
      b[6][pair] = lower_halves(one.w, two.w), b[7][pair] = upper_halves(one.w, two.w);
    }
  }

  // Joins the list's first `count` > 0 keys to the sums.
  __device__ __forceinline__ void attend(const List& list, std::int32_t count, std::uint32_t slot_bytes) {
    const std::int32_t c = std::int32_t(threadIdx.x % 4);
    LATENTCOT_UNROLL_BY(1)
    for (std::int32_t base = 0; base < count; base += kKeys) {
      Keys key;
      Values value;
      load_keys(key, list, base, slot_bytes);
      load_values(value, list, base, slot_bytes);
      float score[2][4] = {};  // [key 4 c + 2 h + e][item r, r + 8]: [h][2 i + e]
      LATENTCOT_UNROLL
      for (int k = 0; k < 4 * kBlocks; ++k) {
        const uint4 one = key[0][k / 2], two = key[1][k / 2];
        const std::uint32_t b[2][2] = {{k % 2 ? one.z : one.x, k % 2 ? one.w : one.y},
                                       {k % 2 ? two.z : two.x, k % 2 ? two.w : two.y}};
        mma16816<T, 2>(score, query[k], b);
      }
      const bool all = base + kKeys <= least;
      std::uint32_t weight[4];
      bool changed = false;
      float next[2], factor[2] = {1.f, 1.f};
      LATENTCOT_UNROLL
      for (int i = 0; i < 2; ++i) {
        LATENTCOT_UNROLL
        for (int e = 0; e < 4; ++e) {
          float& x = score[e / 2][2 * i + e % 2];
          const std::int32_t j = base + 4 * c + e;
          if (list.weighted) x += list.biases[j];
          if (!all && j >= visible[i]) x = -INFINITY;
        }
        const float most = fmaxf(fmaxf(score[0][2 * i], score[0][2 * i + 1]), fmaxf(score[1][2 * i], score[1][2 * i + 1]));
        const float pair = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
        next[i] = fmaxf(largest[i], fmaxf(pair, __shfl_xor_sync(kAllLanes, pair, 2)));
        changed |= next[i] > largest[i];
      }
      if (__any_sync(kAllLanes, changed)) rescale(next, factor);  // by 1 where an item's own largest stays
      LATENTCOT_UNROLL
      for (int i = 0; i < 2; ++i) {
        float p[4];
        LATENTCOT_UNROLL
        for (int e = 0; e < 4; ++e) p[e] = exp2f(score[e / 2][2 * i + e % 2] - largest[i]);
        total[i] = fmaf(total[i], factor[i], (p[0] + p[1]) + (p[2] + p[3]));
        weight[i] = pack<T>(p[0], p[1]);
        weight[2 + i] = pack<T>(p[2], p[3]);
      }
      if (!all) take_out(value, base);
      LATENTCOT_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        std::uint32_t factors[8][2];
        lay_out(value, b, factors);
        mma16816<T, 8>(sums[b], weight, factors);
      }
    }
  }

  __device__ __forceinline__ void rescale(const float (&next)[2], float (&factor)[2]) {
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i) {
      factor[i] = exp2f(largest[i] - next[i]);
      largest[i] = next[i];
      LATENTCOT_UNROLL
      for (int b = 0; b < kBlocks; ++b)
        LATENTCOT_UNROLL
        for (int j = 0; j < 8; ++j) sums[b][j][2 * i] *= factor[i], sums[b][j][2 * i + 1] *= factor[i];
    }
  }

  // Values that are no numbers become 0, since 0 times them is not 0; the results of items that see one become NaN, by way
  // of their totals. `base`: the round's first entry.
  __device__ __forceinline__ void take_out(Values& value, std::int32_t base) {
    const std::int32_t mine = base + 4 * std::int32_t(threadIdx.x % 4);
    std::int32_t first = base + kKeys;  // of the entries with such values
    LATENTCOT_UNROLL
    for (int i = 3; i >= 0; --i) {
      std::uint32_t odd = 0;
      LATENTCOT_UNROLL
      for (int b = 0; b < kBlocks; ++b)
        odd |= take_out(value[i][b].x) | take_out(value[i][b].y) | take_out(value[i][b].z) | take_out(value[i][b].w);
      if (odd) first = mine + i;
    }
    LATENTCOT_UNROLL
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const std::int32_t other = __shfl_xor_sync(kAllLanes, first, lanes);
      first = other < first ? other : first;
    }
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i)
      if (first < base + kKeys && first < visible[i]) total[i] = NAN;
  }

  __device__ __forceinline__ static std::uint32_t take_out(std::uint32_t& both) {
    const std::uint32_t odd = where_no_number<T>(both);
    both &= ~odd;
    return odd;
  }

  // Hands the sums over: opens each item, then gives four dimensions at a time. All lanes of the warp call it.
  template <class Sink>
  __device__ __forceinline__ void give(Sink& sink) {
    const std::int32_t lane = std::int32_t(threadIdx.x % kWarp), r = lane / 4, c = lane % 4;
    LATENTCOT_UNROLL
    for (int i = 0; i < 2; ++i) {
      total[i] += __shfl_xor_sync(kAllLanes, total[i], 1);
      total[i] += __shfl_xor_sync(kAllLanes, total[i], 2);
      sink.open(r + 8 * i, make_float2(largest[i], total[i]), c == 0);
      LATENTCOT_UNROLL
      for (int b = 0; b < kBlocks; ++b)
        LATENTCOT_UNROLL
        for (int q = 0; q < 4; ++q) {
          const std::int32_t dim = 64 * b + 16 * c + 4 * q, at = q % 2 * 4, e = 2 * i + q / 2;
          if (64 * b + 16 * c < key_lanes + 8 * c)
            sink.put(dim, make_float4(sums[b][at][e], sums[b][at + 1][e], sums[b][at + 2][e], sums[b][at + 3][e]));
        }
    }
  }
};

}  // namespace latentcot::cuda
