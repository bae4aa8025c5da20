// ChooseToken on a GPU, one row: greedy, or a draw with temperature, top-k and top-p by threshold search, without a sort.
#pragma once

#include "choose_logits.cuh"

namespace latentcot::cuda::choose_detail {

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
