// Vectors of one instruction set: included by isa_kernels.cpp once per set, in a namespace of its own.
//
// GCC's vector extension gives +, *, compare and select on any width; only what it cannot say, transposing and half
// precision, uses intrinsics. Nothing of std:: is instantiated here: the linker would keep one copy of it for all sets.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
// GCC's own header leaves the unused operand of its AVX-512 builtins uninitialised, and warns where it is inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace latentcot::LATENTCOT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IntVector __attribute__((vector_size(kLanes * 4)));
// the same at any address
typedef float LooseVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vector load(const float* at) { return *reinterpret_cast<const LooseVector*>(at); }
inline void store(float* at, Vector v) { *reinterpret_cast<LooseVector*>(at) = v; }
inline Vector spread(float x) { return Vector{} + x; }

// Lane numbers 0, 1, 2, ...
inline IntVector lane_numbers() {
  IntVector v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Sum and maximum over lanes, pairing lanes in one fixed order.
inline float sum_of(Vector v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline float largest_of(Vector v) {
  float lanes[kLanes];
  store(lanes, v);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// e^x for x <= 0, relative error below 2e-7; 0 below -87.3, where float32 has no normal result.
// Range reduction by ln 2 in two parts (Cody and Waite), then the Taylor polynomial of degree 7 on |r| <= ln(2) / 2,
// whose first left-out term is r^8 / 8! <= 5.2e-9.
inline Vector exp_nonpositive(Vector x) {
  const Vector floor = spread(-87.3f);
  const Vector kept = x > floor ? x : floor;
  const Vector scaled = kept * 1.44269504088896341f - 0.5f;  // rounds to the nearest integer when truncated: x <= 0
  const IntVector n = __builtin_convertvector(scaled, IntVector);
  const Vector whole = __builtin_convertvector(n, Vector);
  Vector r = kept - whole * 0.693145751953125f;  // 15 bits of ln 2: exact for the |n| <= 126 that occur
  r = r - whole * 1.428606765330187e-06f;
  Vector p = spread(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const IntVector bits = (n + 127) << 23;
  Vector power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x > floor ? p * power : Vector{};
}

inline float exp_nonpositive(float x) { return exp_nonpositive(spread(x))[0]; }

// out[lane][i] = in[i][lane] for kLanes rows of kLanes floats; out has rows of `stride` floats.
inline void transpose_block(const float* const* in, std::size_t offset, float* out, std::size_t stride) {
#if defined(__AVX512F__)
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(in[i] + offset);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // a[4 g + c] now holds, in its 128-bit part q, column 4 q + c of rows 4 g .. 4 g + 3
  for (int c = 0; c < 4; ++c) {
    const __m512 x = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88), y = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
    const __m512 z = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    const __m512 w = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_ps(out + (0 + c) * stride, _mm512_shuffle_f32x4(x, z, 0x88));
    _mm512_storeu_ps(out + (4 + c) * stride, _mm512_shuffle_f32x4(y, w, 0x88));
    _mm512_storeu_ps(out + (8 + c) * stride, _mm512_shuffle_f32x4(x, z, 0xdd));
    _mm512_storeu_ps(out + (12 + c) * stride, _mm512_shuffle_f32x4(y, w, 0xdd));
  }
#elif defined(__AVX2__)
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in[i] + offset);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m256d low = _mm256_castps_pd(b[i + j]), high = _mm256_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
    }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(out + c * stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
    _mm256_storeu_ps(out + (4 + c) * stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
  }
#else
  for (int i = 0; i < kLanes; ++i)
    for (int lane = 0; lane < kLanes; ++lane) out[lane * stride + i] = in[i][offset + lane];
#endif
}

// float16 to float32 and back (round to nearest even). `count` is a multiple of 16.
inline void widen(const std::uint16_t* in, float* out, int count) {
#if defined(__AVX512F__)
  for (int i = 0; i < count; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
#elif defined(__F16C__)
  for (int i = 0; i < count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#else
  for (int i = 0; i < count; ++i) {
    _Float16 half;
    __builtin_memcpy(&half, in + i, 2);
    out[i] = float(half);
  }
#endif
}

inline std::uint16_t narrow(float x) {
  // beyond the largest float16 the nearest finite value is kept: an infinite key would poison every later row
  const float kept = x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x;
  const _Float16 half = static_cast<_Float16>(kept);
  std::uint16_t bits;
  __builtin_memcpy(&bits, &half, 2);
  return bits;
}

}  // namespace latentcot::LATENTCOT_ISA
