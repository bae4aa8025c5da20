// ChooseToken on a GPU: the logits of a row as the threads of a block read them, and what each of them counts.
//
// The mass of a logit is its weight in units of 2^-b, rounded down to an integer: b is such that all of them fit in 62 bits.
// Sums of integers are the same in every order, so neither threads nor the way a search cuts its range show in a choice.
// Rounding takes away less than V * 2^-b of the largest weight: 2e-9 of it for V = 65536, where b is 45.
#pragma once

#include "../choose_token.hpp"
#include "block.cuh"

namespace latentcot::cuda::choose_detail {

constexpr float kLargest = 3.4028235e38f;  // of all finite float32
constexpr float kLog2OfE = 1.44269504f;    // exp(x) = 2 ^ (x log2(e))
constexpr int kMassBits = 62;              // of the sum of all masses
constexpr int kCuts = 8;             // values tried per look: 8 sums of 64 bits are a quarter of the registers of sm_90
constexpr int kHeld = 8;             // candidates a lane holds in registers once they are few
constexpr int kFew = kHeld * kWarp;  // what one warp searches alone, without the barriers of a block

using Mass = unsigned long long;

struct Scratch {
  Mass masses[kBlockParts], cut_masses[kCuts * kBlockParts];
  float values[kBlockParts];
  int indices[kBlockParts];
  float few[kFew];  // candidates, in any order
  int count;
  float found;
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

// The largest logit, the lowest index among equals, and the smallest finite one. NaN is passed over.
struct Extremes {
  float most, least;
  std::int32_t index;  // -1: no number is larger than -inf
  bool finite;         // some logit is
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

// 2^b such that `count` weights of at most 1 fit.
__device__ inline float unit_of(std::int32_t count) {
  const int bits = kMassBits - (32 - __clz(count));
  return __uint_as_float(unsigned(127 + bits) << 23);  // a power of 2 is its exponent alone
}

}  // namespace latentcot::cuda::choose_detail
