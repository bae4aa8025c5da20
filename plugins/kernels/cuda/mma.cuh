// One product of the tensor cores, C[16, 8] += A[16, 16] B[16, 8], and the numbers that go into it.
//
// Lane 4 r + c of a warp holds (PTX ISA, mma.m16n8k16): of A rows r and r + 8 at columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9,
// of B column r at rows 2 c, 2 c + 1, 2 c + 8 and 2 c + 9, of C rows r and r + 8 at columns 2 c and 2 c + 1; a register
// holds two neighbours, the first in its lower half. An element of C is a sum over its own row of A and column of B, so
// what stands in other rows and columns, infinities and NaN too, does not change it.
#pragma once

#include <type_traits>

#include "element.cuh"

namespace latentcot::cuda {

// Two floats as one register of a fragment.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float first, float second);
template <>
__device__ __forceinline__ std::uint32_t pack<__half>(float first, float second) {
  const __half2 both = __floats2half2_rn(first, second);
  return std::uint32_t(__half_as_ushort(__low2half(both))) | std::uint32_t(__half_as_ushort(__high2half(both))) << 16;
}
template <>
__device__ __forceinline__ std::uint32_t pack<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return std::uint32_t(__bfloat16_as_ushort(both.x)) | std::uint32_t(__bfloat16_as_ushort(both.y)) << 16;
}

// The lower halves of two registers as one, and the upper ones.
__device__ __forceinline__ std::uint32_t lower_halves(std::uint32_t a, std::uint32_t b) {
#ifdef __CUDACC__
  return __byte_perm(a, b, 0x5410);
#else
  return (a & 0xffffu) | b << 16;
#endif
}
__device__ __forceinline__ std::uint32_t upper_halves(std::uint32_t a, std::uint32_t b) {
#ifdef __CUDACC__
  return __byte_perm(a, b, 0x7632);
#else
  return a >> 16 | (b & 0xffff0000u);
#endif
}

// Ones in the halves of a register that hold what is infinite or NaN, zeros in the others.
template <class T>
__device__ __forceinline__ std::uint32_t where_no_number(std::uint32_t both) {
  constexpr std::uint32_t kLower = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u, kUpper = kLower << 16;  // exponents
  return ((both & kLower) == kLower ? 0xffffu : 0) | ((both & kUpper) == kUpper ? 0xffff0000u : 0);
}

#ifdef __CUDACC__

template <class T>
__device__ __forceinline__ void mma16816(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma16816<__half>(float (&c)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma16816<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                        const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// kCount products with one A.
template <class T, int kCount>
__device__ __forceinline__ void mma16816(float (&c)[kCount][4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[kCount][2]) {
  LATENTCOT_UNROLL
  for (int i = 0; i < kCount; ++i) mma16816<T>(c[i], a, b[i]);
}

#else

namespace on_cpu {

template <class T>
inline float half_of(std::uint32_t both, int which) {
  const auto bits = static_cast<std::uint16_t>(both >> 16 * which);
  return widen(std::bit_cast<T>(bits));
}

template <int kCount>
struct MmaOffer {
  float (*c)[4];
  const std::uint32_t* a;
  const std::uint32_t (*b)[2];
};

// All lanes of a warp at once: elements are fetched from the lanes that hold them and summed in order.
template <class T, int kCount>
void mma_of_warp(Offer* const* lanes) {
  const MmaOffer<kCount>* offers[kWarpLanes];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!lanes[lane]) return fail(0, {}, "a product of the tensor cores needs all 32 lanes.");
    offers[lane] = reinterpret_cast<const MmaOffer<kCount>*>(lanes[lane]->value);
  }
  float a[16][16];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      a[row][k] = half_of<T>(offers[row % 8 * 4 + k % 8 / 2]->a[row / 8 + k / 8 * 2], k % 2);
  for (int i = 0; i < kCount; ++i)
    for (int column = 0; column < 8; ++column) {
      float b[16];
      for (int k = 0; k < 16; ++k) b[k] = half_of<T>(offers[column * 4 + k % 8 / 2]->b[i][k / 8], k % 2);
      for (int row = 0; row < 16; ++row) {
        float& c = offers[row % 8 * 4 + column / 2]->c[i][row / 8 * 2 + column % 2];
        for (int k = 0; k < 16; ++k) c += a[row][k] * b[k];
      }
    }
}

}  // namespace on_cpu

template <class T, int kCount>
inline void mma16816(float (&c)[kCount][4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[kCount][2],
                     std::source_location at = std::source_location::current()) {
  const on_cpu::MmaOffer<kCount> mine{c, a, b};
  on_cpu::collective(on_cpu::kCustom, kAllLanes, reinterpret_cast<std::uint64_t>(&mine), 0, 32, at,
                     on_cpu::mma_of_warp<T, kCount>);
}

#endif

}  // namespace latentcot::cuda
