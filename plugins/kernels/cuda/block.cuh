// Sums, extremes and running sums over the threads of a block, and how a kernel says that a value is at fault.
//
// The block is one-dimensional and made of whole warps. `parts` is shared memory for kBlockParts values; every function of a
// block ends with a barrier, so the same one can be given again at once.
#pragma once

#include "../tables.hpp"
#include "device.cuh"

namespace latentcot::cuda {

constexpr int kBlockParts = kWarp;  // one for each warp that a block can have: 1024 threads, CUDA programming guide

__device__ inline int lane_of() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp_of() { return int(threadIdx.x) / kWarp; }
__device__ inline int warps() { return int(blockDim.x) / kWarp; }

struct Add {
  template <class T>
  __host__ __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <class T>
  __host__ __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Greatest {
  template <class T>
  __host__ __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// What all lanes of a warp make of their values, for every lane.
template <class T, class Merge>
__device__ inline T merge_warp(T value, Merge merge) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = merge(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

// The same for all threads of the block. `nothing` is what changes no value.
template <class T, class Merge>
__device__ inline T merge_block(T value, T nothing, Merge merge, T* parts) {
  value = merge_warp(value, merge);
  if (lane_of() == 0) parts[warp_of()] = value;
  __syncthreads();
  value = merge_warp(lane_of() < warps() ? parts[lane_of()] : nothing, merge);
  __syncthreads();
  return value;
}

template <class T>
__device__ inline T sum_block(T value, T* parts) {
  return merge_block(value, T(0), Add(), parts);
}

// The sum of the values of all lanes before this one.
template <class T>
__device__ inline T sum_lanes_before(T value) {
  T running = value;
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const T before = __shfl_up_sync(kAllLanes, running, lanes);
    if (lane_of() >= lanes) running += before;
  }
  return running - value;
}

// The sum of the values of all threads before this one; `*total` that of all.
template <class T>
__device__ inline T sum_before(T value, T* parts, T* total) {
  const T before = sum_lanes_before(value);
  if (lane_of() == kWarp - 1) parts[warp_of()] = before + value;
  __syncthreads();
  const T warp = lane_of() < warps() ? parts[lane_of()] : T(0);
  const T warps_before = sum_lanes_before(warp);
  __syncthreads();
  *total = __shfl_sync(kAllLanes, warps_before + warp, kWarp - 1);
  return __shfl_sync(kAllLanes, warps_before, warp_of()) + before;
}

// How many threads before this one say yes to each of two questions, in the low and the high 16 bits; `*total`: of all.
__device__ inline int count_two_before(bool low, bool high, int* parts, int* total) {
  const unsigned lows = __ballot_sync(kAllLanes, low), highs = __ballot_sync(kAllLanes, high);
  const unsigned before = (1u << lane_of()) - 1;
  if (lane_of() == 0) parts[warp_of()] = __popc(lows) + (__popc(highs) << 16);
  __syncthreads();
  const int warp = lane_of() < warps() ? parts[lane_of()] : 0;
  const int warps_before = sum_lanes_before(warp);
  __syncthreads();
  *total = __shfl_sync(kAllLanes, warps_before + warp, kWarp - 1);
  return __shfl_sync(kAllLanes, warps_before, warp_of()) + __popc(lows & before) + (__popc(highs & before) << 16);
}

// The same for one question.
__device__ inline int count_before(bool yes, int* parts, int* total) {
  return count_two_before(yes, false, parts, total);
}

// Threads of a block that has `work` things to do at once, `most` at most: whole warps, and none for whom nothing is left.
inline int threads_for(std::int64_t work, int most) {
  const std::int64_t whole = (work + kWarp - 1) / kWarp * kWarp;
  return whole < kWarp ? kWarp : whole > most ? most : int(whole);
}

// Whether a thread may read and write 16 bytes of it at once.
inline bool aligned_to_16(const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 == 0; }

// As check_row of tables.hpp, which says what is wrong: nobody could read it here.
__device__ inline bool row_fits(const std::int32_t* row, std::int64_t places, std::int64_t positions, std::int64_t steps,
                                const std::int32_t* sequences) {
  return row[kRowSequence] >= 0 && row[kRowSequence] < places && row[kRowPosition] >= 0 &&
         row[kRowPosition] < positions && row[kRowStep] >= 1 && row[kRowStep] <= steps &&
         sequences[std::int64_t(row[kRowSequence]) * kSequenceColumns + kStatus] == kRunning;
}

// As check_counter.
__device__ inline bool counter_fits(std::int64_t counter) { return counter >= 0 && counter < std::int64_t(1) << 52; }

// Leaves the fault where the host finds it. The first one stays; threads of one kernel that race here write the same.
__device__ inline void report_fault(std::int64_t* counters, Fault fault) {
  if (counters[kStalled] >= 0) counters[kStalled] = fault;
}

}  // namespace latentcot::cuda
