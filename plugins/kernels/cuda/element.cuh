// Element types of what the kernels read and write; whatever they compute, they compute in float32.
#pragma once

#include "device.cuh"

// Before a loop: how often nvcc repeats its body. An array that loops index stays in registers only where all are unrolled.
#ifdef __CUDACC__
#define LATENTCOT_PRAGMA(words) _Pragma(#words)
#define LATENTCOT_UNROLL LATENTCOT_PRAGMA(unroll)
#define LATENTCOT_UNROLL_BY(times) LATENTCOT_PRAGMA(unroll times)
#else
#define LATENTCOT_UNROLL
#define LATENTCOT_UNROLL_BY(times)
#endif

namespace latentcot::cuda {

enum class Element : std::int32_t { kFloat32, kFloat16, kBfloat16 };

constexpr std::size_t element_bytes(Element type) { return type == Element::kFloat32 ? 4 : 2; }

constexpr float kHalfLargest = 65504.f;  // IEEE 754 binary16

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Nearest even; a float16 too large becomes infinite.
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// What a float16 can hold of x: too large becomes its largest, NaN stays.
__device__ __forceinline__ float clamped(float x) {
  return x > kHalfLargest ? kHalfLargest : x < -kHalfLargest ? -kHalfLargest : x;
}

__device__ __forceinline__ void store(void* to, std::size_t i, float x, Element type) {
  if (type == Element::kFloat32) static_cast<float*>(to)[i] = x;
  if (type == Element::kFloat16) static_cast<__half*>(to)[i] = narrow<__half>(x);
  if (type == Element::kBfloat16) static_cast<__nv_bfloat16*>(to)[i] = narrow<__nv_bfloat16>(x);
}

// Calls `use.operator()<T>()` with the C++ type of `type`.
template <class Use>
inline auto with_element(Element type, const Use& use) {
  if (type == Element::kFloat16) return use.template operator()<__half>();
  if (type == Element::kBfloat16) return use.template operator()<__nv_bfloat16>();
  return use.template operator()<float>();
}

}  // namespace latentcot::cuda
