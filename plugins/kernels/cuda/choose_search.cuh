// ChooseToken on a GPU, one row: greedy, or a draw with temperature, top-k and top-p by threshold search, without a sort.
//
// The mass of a logit is its weight in units of 2^-b, rounded down to an integer: b is such that all of them fit in 62 bits.
// Sums of integers are the same in every order, so neither threads nor the way a search cuts its range show in a choice; what
// rounding takes away is below V * 2^-b < 2^-31 of the largest weight for every vocabulary below 2^31 (2^-46 of it for 65536).
#pragma once

#include "../choose_token.hpp"
#include "block.cuh"

namespace latentcot::cuda::choose_detail {

constexpr float kLargest = 3.4028235e38f;     // of all finite float32
constexpr float kLog2OfE = 1.44269504f;       // exp(x) = 2 ^ (x log2(e))
constexpr int kCuts = 8;                      // values tried per look: 8 sums of 64 bits are a quarter of a thread's registers
constexpr int kHeld = 8;                      // candidates a lane holds in registers once they are few
constexpr int kFew = kHeld * kWarp;           // what one warp searches alone, without the barriers of a block
constexpr int kMassBits = 62;

using Mass = unsigned long long;

struct Scratch {
  Mass masses[kBlockParts], cut_masses[kCuts * kBlockParts];
  float values[kBlockParts];
  int indices[kBlockParts];
  float few[kFew];  // candidates, in any order
  int count;
  float found;
  int chosen;
};

// The logits of a row, read by all threads of a block.
template <class Part>
struct Logits {
  const float* values;
  std::int32_t count;

  // Calls use(value, index) for every logit of [first, end), indices of one thread ascending.
  template <class Use>
  __device__ void each(std::int64_t first, std::int64_t end, int thread, int threads, Use use) const {
    constexpr int width = sizeof(Part) / sizeof(float);
    for (std::int64_t i = first + std::int64_t(thread) * width; i < end; i += std::int64_t(threads) * width) {
      if constexpr (width == 1) {
        use(values[i], std::int32_t(i));
      } else {
        const float4 part = *reinterpret_cast<const float4*>(values + i);
        use(part.x, std::int32_t(i));
        use(part.y, std::int32_t(i) + 1);
        use(part.z, std::int32_t(i) + 2);
        use(part.w, std::int32_t(i) + 3);
      }
    }
  }

  template <class Use>
  __device__ void each(Use use) const {
    each(0, count, int(threadIdx.x), int(blockDim.x), use);
  }
};

template <class Part>
__device__ inline void copy(const Logits<Part>& logits, float* to) {
  for (std::int64_t i = threadIdx.x; i < std::int64_t(logits.count * sizeof(float) / sizeof(Part)); i += blockDim.x)
    reinterpret_cast<Part*>(to)[i] = reinterpret_cast<const Part*>(logits.values)[i];
}

// What a logit counts: `even` 1 each, for top-k; else its weight exp((v - most) / temperature), for top-p and the draw.
struct Weigh {
  bool even;
  float most, temperature, unit;  // unit: 2^b

  __device__ Mass operator()(float v) const {
    if (even) return 1;
    return __float2ull_rz(exp2f((v - most) / temperature * kLog2OfE) * unit);
  }
};

// The largest logit, the lowest index among equals, and the smallest finite one; NaN is passed over. index -1: there is none.
struct Extremes {
  float most, least;
  std::int32_t index;
  bool finite;  // some logit is
};

template <class Part>
__device__ inline Extremes extremes_of(const Logits<Part>& logits, Scratch& scratch) {
  const float none = -__builtin_inff();
  float most = none, least = kLargest;
  std::int32_t index = 0x7fffffff;
  bool finite = false;
  logits.each([&](float v, std::int32_t i) {
    if (v > most) most = v, index = i;
    if (v >= -kLargest && v <= kLargest) finite = true, least = Least()(least, v);
  });
  const float greatest = merge_block(most, none, Greatest(), scratch.values);
  // where a thread found nothing, its index is larger than every other
  index = merge_block(most == greatest ? index : 0x7fffffff, 0x7fffffff, Least(), scratch.indices);
  least = merge_block(least, kLargest, Least(), scratch.values);
  return {greatest, least, index == 0x7fffffff ? -1 : index, __syncthreads_or(finite) != 0};
}

// Where a search stands: candidates lie in [low, below), `above` is the mass of all that lie higher.
struct Search {
  float low, below, fallback;
  Mass above;
};

__device__ inline bool is_candidate(const Search& search, float v) { return v >= search.low && v < search.below; }

// Values between `low` and `high`, the extremes of the candidates; the first is `high`.
__device__ inline void cut(float low, float high, float* cuts) {
#pragma unroll
  for (int j = 0; j < kCuts; ++j) {
    const float share = float(j) / kCuts;
    cuts[j] = Least()(high * (1 - share) + low * share, high);  // high - (high - low) * share could overflow
  }
}

// Keeps the slice that the threshold lies in. True: the threshold is `high`, the first cut.
__device__ inline bool keep_slice(Search* search, float low, const float* cuts, const Mass* masses, double target) {
  const Mass above = search->above;
  search->low = low;
  bool reached = false, at_once = false;
#pragma unroll
  for (int j = 0; j < kCuts; ++j) {
    if (reached) continue;
    reached = double(above + masses[j]) >= target;
    if (reached) {
      at_once = j == 0;
      search->low = cuts[j];
    } else {
      search->above = above + masses[j];
      search->fallback = search->below = cuts[j];
    }
  }
  // where no cut reaches it, the slice begins at the least candidate; where one does, above its cut it is not reached
  return at_once;
}

// The sums of the masses of all threads, for each of them.
__device__ inline void sum_cuts(Mass* masses, Mass* parts) {
#pragma unroll
  for (int j = 0; j < kCuts; ++j) {
    masses[j] = merge_warp(masses[j], Add());
    if (lane_of() == 0) parts[j * kBlockParts + warp_of()] = masses[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kCuts; ++j)
    masses[j] = merge_warp(lane_of() < warps() ? parts[j * kBlockParts + lane_of()] : Mass(0), Add());
  __syncthreads();
}

// The threshold among `count` <= kFew candidates in `few`; for one warp. Every look decides at least one value.
__device__ inline float search_few(const float* few, int count, Search search, const Weigh& weigh, double target) {
  float held[kHeld];
#pragma unroll
  for (int n = 0; n < kHeld; ++n) {
    const int at = n * kWarp + lane_of();
    held[n] = at < count ? few[at] : __builtin_nanf("");
  }
  for (;;) {
    float low = kLargest, high = -kLargest, cuts[kCuts];
#pragma unroll
    for (int n = 0; n < kHeld; ++n)
      if (is_candidate(search, held[n])) low = Least()(low, held[n]), high = Greatest()(high, held[n]);
    low = merge_warp(low, Least());
    high = merge_warp(high, Greatest());
    if (low > high) return search.fallback;
    if (low == high) return low;
    cut(low, high, cuts);
    Mass masses[kCuts] = {};
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const Mass mass = is_candidate(search, held[n]) ? weigh(held[n]) : 0;
#pragma unroll
      for (int j = 0; j < kCuts; ++j) masses[j] += held[n] >= cuts[j] ? mass : 0;
    }
#pragma unroll
    for (int j = 0; j < kCuts; ++j) masses[j] = merge_warp(masses[j], Add());
    if (keep_slice(&search, low, cuts, masses, target)) return high;
  }
}

// Extremes of the candidates, and copies of them in scratch.few as far as they find room. Returns how many there are.
template <class Part>
__device__ inline int collect(const Logits<Part>& logits, const Search& search, float* low, float* high, Scratch& scratch) {
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
  float least = kLargest, most = -kLargest;
  logits.each([&](float v, std::int32_t) {
    if (!is_candidate(search, v)) return;
    least = Least()(least, v);
    most = Greatest()(most, v);
    if (scratch.count > kFew) return;  // that there are more is all that is asked
    const int at = atomicAdd(&scratch.count, 1);
    if (at < kFew) scratch.few[at] = v;
  });
  *low = merge_block(least, kLargest, Least(), scratch.values);
  const int count = scratch.count;  // between barriers: the next search begins at 0
  *high = merge_block(most, -kLargest, Greatest(), scratch.values);
  return count;
}

// The largest c of [low, high] with (mass of all values >= c) >= target; the smallest value where there is not that much.
// `low` and `high` are extremes of the finite logits that are kept.
template <class Part>
__device__ inline float threshold(const Logits<Part>& logits, float low, float high, const Weigh& weigh, double target,
                                  Scratch& scratch) {
  Search search = {low, __builtin_inff(), low, 0};
  for (bool first = true;; first = false) {
    // the extremes are known before the first look, and there are seldom few candidates by then
    const int count = first && logits.count > kFew ? kFew + 1 : collect(logits, search, &low, &high, scratch);
    if (low > high) return search.fallback;  // the candidates weigh less than rounding promised: all are kept
    if (low == high) return low;
    if (count <= kFew) {
      if (warp_of() == 0) {
        const float found = search_few(scratch.few, count, search, weigh, target);
        if (lane_of() == 0) scratch.found = found;
      }
      __syncthreads();
      low = scratch.found;
      __syncthreads();
      return low;
    }
    float cuts[kCuts];
    cut(low, high, cuts);
    Mass masses[kCuts] = {};
    logits.each([&](float v, std::int32_t) {
      if (!is_candidate(search, v)) return;
      const Mass mass = weigh(v);
#pragma unroll
      for (int j = 0; j < kCuts; ++j) masses[j] += v >= cuts[j] ? mass : 0;
    });
    sum_cuts(masses, scratch.cut_masses);
    if (keep_slice(&search, low, cuts, masses, target)) return high;
  }
}

// The mass of all logits of at least `floor`.
template <class Part>
__device__ inline Mass mass_of(const Logits<Part>& logits, float floor, const Weigh& weigh, Scratch& scratch) {
  Mass mass = 0;
  logits.each([&](float v, std::int32_t) { mass += v >= floor ? weigh(v) : 0; });
  return sum_block(mass, scratch.masses);
}

// The first index whose running sum of weights exceeds uniform * total: each warp adds up a stretch of the ids, then all of
// them the stretch where it happens.
template <class Part>
__device__ inline std::int32_t pick(const Logits<Part>& logits, float floor, const Weigh& weigh, float uniform,
                                    Scratch& scratch) {
  std::int64_t first = 0, end = logits.count;
  Mass before = 0;
  double target = -1;
  while (end - first > kWarp || target < 0) {
    // stretches begin at multiples of 4, as 16-byte parts do
    const std::int64_t stretch = ((end - first + warps() - 1) / warps() + 3) / 4 * 4;
    const std::int64_t from = Least()(first + warp_of() * stretch, end), to = Least()(from + stretch, end);
    Mass mass = 0;
    logits.each(from, to, lane_of(), kWarp, [&](float v, std::int32_t) { mass += v >= floor ? weigh(v) : 0; });
    mass = merge_warp(mass, Add());
    if (lane_of() == 0) scratch.masses[warp_of()] = mass;
    __syncthreads();
    mass = lane_of() < warps() ? scratch.masses[lane_of()] : 0;
    __syncthreads();
    if (target < 0) target = double(uniform) * double(merge_warp(mass, Add()));
    const Mass warps_before = sum_lanes_before(mass);
    const unsigned passed =
      __ballot_sync(kAllLanes, lane_of() < warps() && double(before + warps_before + mass) > target);
    const int warp = passed ? __ffs(int(passed)) - 1 : warps() - 1;  // uniform < 1: one of them always passes
    before += __shfl_sync(kAllLanes, warps_before, warp);
    first = Least()(first + warp * stretch, end);
    end = Least()(first + stretch, end);
  }
  const std::int64_t at = first + lane_of();
  const float v = at < end ? logits.values[at] : __builtin_nanf("");
  const Mass mass = v >= floor ? weigh(v) : 0;
  const Mass lanes_before = sum_lanes_before(mass);
  const unsigned passed = __ballot_sync(kAllLanes, mass > 0 && double(before + lanes_before + mass) > target);
  return passed ? std::int32_t(first) + __ffs(int(passed)) - 1 : -1;
}

// 2^b such that `count` weights of at most 1 fit.
__device__ inline float unit_of(std::int32_t count) {
  const int bits = kMassBits - (32 - __clz(count));
  return __uint_as_float(unsigned(127 + bits) << 23);  // a power of 2 is its exponent alone
}

// The token of a row, -1 where its logits allow no choice; the same for every thread.
template <class Part>
__device__ inline std::int32_t choose_one(const Logits<Part>& logits, const Choice& choice, Scratch& scratch) {
  const Extremes extremes = extremes_of(logits, scratch);
  // infinity may be chosen greedily, but not from logits that hold nothing else
  if (choice.temperature == 0) return extremes.finite ? extremes.index : -1;
  if (!(extremes.most >= -kLargest && extremes.most <= kLargest)) return -1;
  float floor = extremes.least;  // -inf weighs nothing
  if (choice.top_k > 0 && choice.top_k < logits.count)
    floor = threshold(logits, floor, extremes.most, {true, 0, 0, 0}, double(choice.top_k), scratch);
  const Weigh weigh = {false, extremes.most, choice.temperature, unit_of(logits.count)};
  if (choice.top_p < 1) {
    const double kept = double(mass_of(logits, floor, weigh, scratch));
    floor = threshold(logits, floor, extremes.most, weigh, double(choice.top_p) * kept, scratch);
  }
  return pick(logits, floor, weigh, choice.uniform, scratch);
}

}  // namespace latentcot::cuda::choose_detail
