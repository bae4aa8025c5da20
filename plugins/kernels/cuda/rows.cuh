// AddNorm and GatedUnit on a GPU, for float32, float16 and bfloat16; see row_calls.hpp. What stands between two products, x,
// normed, gate_up and out, is of the type given beside the call; residual, weight and total are float32 whatever that is,
// so that what a row is made of is not rounded again in every layer.
//
// Both move a few hundred kilobytes that lie in L2 and take little longer than a launch. Threads load four neighbours at
// once where the width and the addresses allow it; which elements a thread sums depends on the width alone, so the bits of a
// row depend on the row alone.
#pragma once

#include <initializer_list>

#include "../row_calls.hpp"
#include "block.cuh"
#include "element.cuh"

namespace latentcot::cuda {

constexpr int kRowThreads = 256;
constexpr int kRowVector = 4;  // neighbours that a thread works on

// Four neighbours, one access of 16 or 8 bytes.
template <class T>
struct alignas(kRowVector * sizeof(T)) Four {
  T at[kRowVector];
};

// Four elements; those of them that lie at `left` or beyond are 0 and are not touched.
template <class T, bool kVectors>
__device__ __forceinline__ void load_four(const T* from, std::int64_t left, float (&to)[kRowVector]) {
  if constexpr (kVectors) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
    LATENTCOT_UNROLL
    for (int i = 0; i < kRowVector; ++i) to[i] = widen(four.at[i]);
  } else {
    LATENTCOT_UNROLL
    for (int i = 0; i < kRowVector; ++i) to[i] = i < left ? widen(from[i]) : 0.f;
  }
}

template <class T, bool kVectors>
__device__ __forceinline__ void store_four(T* to, std::int64_t left, const float (&from)[kRowVector]) {
  if constexpr (kVectors) {
    Four<T> four;
    LATENTCOT_UNROLL
    for (int i = 0; i < kRowVector; ++i) four.at[i] = narrow<T>(from[i]);
    *reinterpret_cast<Four<T>*>(to) = four;
  } else {
    LATENTCOT_UNROLL
    for (int i = 0; i < kRowVector; ++i)
      if (i < left) to[i] = narrow<T>(from[i]);
  }
}

// The block's first row, then every gridDim.x rows further.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads) add_norm_rows(const AddNormCall call) {
  LATENTCOT_SHARED(float, parts);
  const std::int64_t width = call.width, step = std::int64_t(blockDim.x) * kRowVector;
  const std::int64_t mine = std::int64_t(threadIdx.x) * kRowVector;
  for (std::int64_t row = blockIdx.x; row < call.rows; row += gridDim.x) {
    const T* const x = reinterpret_cast<const T*>(call.x) + row * width;
    const float* const residual = call.residual + row * width;
    T* const normed = reinterpret_cast<T*>(call.normed) + row * width;
    float* const total = call.total + row * width;
    float squares = 0.f, kept[kRowVector] = {};
    for (std::int64_t at = mine; at < width; at += step) {
      float a[kRowVector], b[kRowVector];
      load_four<T, kVectors>(x + at, width - at, a);
      load_four<float, kVectors>(residual + at, width - at, b);
      LATENTCOT_UNROLL
      for (int i = 0; i < kRowVector; ++i) {
        a[i] += b[i];
        squares = fmaf(a[i], a[i], squares);
        if (at == mine) kept[i] = a[i];
      }
      store_four<float, kVectors>(total + at, width - at, a);
    }
    const float mean = sum_block(squares, parts) / float(width);
    const float scale = 1.f / sqrtf(mean + call.epsilon);
    for (std::int64_t at = mine; at < width; at += step) {
      float a[kRowVector], w[kRowVector];
      load_four<float, kVectors>(call.weight + at, width - at, w);
      if (at == mine) {  // the first four, most often all there are, did not leave the registers
        LATENTCOT_UNROLL
        for (int i = 0; i < kRowVector; ++i) a[i] = kept[i];
      } else {
        load_four<float, kVectors>(total + at, width - at, a);
      }
      LATENTCOT_UNROLL
      for (int i = 0; i < kRowVector; ++i) a[i] = a[i] * scale * w[i];
      store_four<T, kVectors>(normed + at, width - at, a);
    }
  }
}

// x / (1 + e^-x) by way of e^-|x|, which cannot overflow. As in PyTorch, -inf and NaN give NaN, inf gives inf.
__device__ __forceinline__ float silu(float x) {
  const float e = expf(x < 0.f ? x : -x);
  const float kept = e < 1.17549435e-38f ? 0.f : e;  // the smallest normal float32; NaN stays
  return (x < 0.f ? x * kept : x) / (kept + 1.f);
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads) gated_unit_rows(const GatedUnitCall call, std::int64_t fours_of_row) {
  const T* const gate_up = reinterpret_cast<const T*>(call.gate_up);
  T* const out = reinterpret_cast<T*>(call.out);
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x, width = call.width;
  for (std::int64_t four = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; four < call.rows * fours_of_row;
       four += step) {
    const std::int64_t row = four / fours_of_row, at = four % fours_of_row * kRowVector;
    float gate[kRowVector], up[kRowVector];
    load_four<T, kVectors>(gate_up + row * 2 * width + at, width - at, gate);
    load_four<T, kVectors>(gate_up + (row * 2 + 1) * width + at, width - at, up);
    LATENTCOT_UNROLL
    for (int i = 0; i < kRowVector; ++i) gate[i] = silu(gate[i]) * up[i];
    store_four<T, kVectors>(out + row * width + at, width - at, gate);
  }
}

// Calls `use.operator()<T, kVectors>()`: four elements at once where the width has whole fours and all addresses allow it.
template <class Use>
inline cudaError_t with_rows(Element type, std::int64_t width, std::initializer_list<const void*> addresses,
                             const Use& use) {
  bool vectors = width % kRowVector == 0;
  for (const void* at : addresses) vectors = vectors && aligned_to_16(at);
  return with_element(type, [&]<class T>() {
    return vectors ? use.template operator()<T, true>() : use.template operator()<T, false>();
  });
}

constexpr std::int64_t kMostRowBlocks = 65536;  // rows beyond them are taken by the same blocks

inline cudaError_t launch_add_norm(const AddNormCall& call, Element type, Stream stream) {
  if (call.rows == 0 || call.width == 0) return cudaSuccess;
  // of the width alone, since the order of a sum depends on it
  int threads = kRowThreads;
  while (threads > kWarp && std::int64_t(threads / 2) * kRowVector >= call.width) threads /= 2;
  const unsigned blocks = unsigned(call.rows < kMostRowBlocks ? call.rows : kMostRowBlocks);
  return with_rows(type, call.width, {call.x, call.residual, call.weight, call.normed, call.total},
                   [&]<class T, bool kVectors>() {
                     return launch(add_norm_rows<T, kVectors>, dim3(blocks), dim3(unsigned(threads)),
                                   kBlockParts * sizeof(float), stream, call);
                   });
}

inline cudaError_t launch_gated_unit(const GatedUnitCall& call, Element type, Stream stream) {
  if (call.rows == 0 || call.width == 0) return cudaSuccess;
  const std::int64_t fours_of_row = (call.width + kRowVector - 1) / kRowVector;
  const std::int64_t wanted = (call.rows * fours_of_row + kRowThreads - 1) / kRowThreads;
  const unsigned blocks = unsigned(wanted < kMostRowBlocks ? wanted : kMostRowBlocks);
  return with_rows(type, call.width, {call.gate_up, call.out}, [&]<class T, bool kVectors>() {
    return launch(gated_unit_rows<T, kVectors>, dim3(blocks), dim3(kRowThreads), 0, stream, call, fours_of_row);
  });
}

}  // namespace latentcot::cuda
