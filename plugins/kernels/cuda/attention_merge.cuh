// Results of chunks merged, from the first to the last (online softmax, Milakov and Gimelshein, arXiv 1805.02867).
//
// Every product and sum is written as the fused operation it is, so that no two kernels round differently.
#pragma once

#include "attention_call.cuh"

namespace latentcot::cuda {

constexpr float kNothing = -3.0e38f;  // largest score of no keys: finite, so that a difference of two is a number

// What the results so far and those of the next chunk are weighed by.
struct Factors {
  float mine, theirs;
};

__device__ __forceinline__ Factors join(float2& state, float2 more) {
  const float largest = fmaxf(state.x, more.x);
  const Factors factors{exp2f(state.x - largest), exp2f(more.x - largest)};
  state = make_float2(largest, fmaf(state.y, factors.mine, more.y * factors.theirs));
  return factors;
}

__device__ __forceinline__ float4 merged(float4 a, float4 b, Factors factors) {
  return make_float4(fmaf(a.x, factors.mine, b.x * factors.theirs), fmaf(a.y, factors.mine, b.y * factors.theirs),
                     fmaf(a.z, factors.mine, b.z * factors.theirs), fmaf(a.w, factors.mine, b.w * factors.theirs));
}

// Four neighbouring dimensions of a row's head, divided by the sum of weights: zeros where nothing was seen.
__device__ __forceinline__ void write_out(const CudaAttentionCall& call, std::int32_t row, std::int32_t head,
                                          std::int32_t dim, float4 sums, float total) {
  const float scale = total == 0.f ? 0.f : 1.f / total;
  const std::size_t at = (std::size_t(row) * call.heads + head) * call.head_dim + dim;
  const float values[4] = {sums.x * scale, sums.y * scale, sums.z * scale, sums.w * scale};
  LATENTCOT_UNROLL
  for (int i = 0; i < 4; ++i)
    if (dim + i < call.head_dim) store(call.out, at + i, values[i], call.data);
}

}  // namespace latentcot::cuda
