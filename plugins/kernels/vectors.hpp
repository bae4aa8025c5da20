// Vectors of one instruction set: included by isa_kernels.cpp once per set, in a namespace of its own.
//
// GCC's vector extension gives +, *, compare and select on any width; only what it cannot say, sums over
// lanes and half precision, uses intrinsics. Nothing of std:: is instantiated here: the linker would keep one copy of it
// for all sets.
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

// Numbers as they lie in memory: IEEE 754 binary16, and the upper half of a float32.
struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

// kLanes of them, widened.
inline Vector load(const Bfloat16* at) {
  IntVector wide{};
#if defined(__AVX512F__)
  wide = IntVector(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)))) << 16;
#elif defined(__AVX2__)
  wide = IntVector(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)))) << 16;
#else
  for (int i = 0; i < kLanes; ++i) wide[i] = std::int32_t(std::uint32_t(at[i].bits) << 16);
#endif
  Vector v;
  __builtin_memcpy(&v, &wide, sizeof v);
  return v;
}
inline Vector load(const Float16* at) {
#if defined(__AVX512F__)
  return Vector(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
#elif defined(__F16C__)
  return Vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#else
  // Exponent and fraction in their places, and the exponent's bias made up for by a product, which is exact; what is not
  // finite keeps its fraction. The compiler's own conversion is a call for each number.
  IntVector half{};
  for (int i = 0; i < kLanes; ++i) half[i] = at[i].bits;
  const IntVector bits = (half & 0x7fff) << 13, endless = (half & 0x7c00) == 0x7c00;
  Vector size;
  __builtin_memcpy(&size, &bits, sizeof size);
  size *= 0x1p112f;
  IntVector widened;
  __builtin_memcpy(&widened, &size, sizeof widened);
  widened |= ((half & 0x8000) << 16) | (endless & 0x7f800000);
  __builtin_memcpy(&size, &widened, sizeof size);
  return size;
#endif
}

// Lane numbers 0, 1, 2, ...
inline IntVector lane_numbers() {
  IntVector v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Sum and maximum over lanes, pairing lane i with lane i + half of them, and so on.
inline float sum_of(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(v));
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

inline float largest_of(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(__m512(v));
#else
  float lanes[kLanes];
  store(lanes, v);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
#endif
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

// Sums over the lanes of four vectors, by groups of four lanes: group g of the result holds, one for each vector,
// (v[4 g] + v[4 g + 2]) + (v[4 g + 1] + v[4 g + 3]).
inline Vector fold_four(Vector a, Vector b, Vector c, Vector d) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
#else
  return Vector{(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]), (c[0] + c[2]) + (c[1] + c[3]),
                (d[0] + d[2]) + (d[1] + d[3])};
#endif
}

// kLanes / 4 results of fold_four to the sums of all kLanes vectors: their groups added pairwise, (0 + 1) + (2 + 3).
inline Vector fold_groups(const Vector* four) {
#if defined(__AVX512F__)
  const auto halves = [](Vector a, Vector b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return halves(halves(four[0], four[1]), halves(four[2], four[3]));
#elif defined(__AVX2__)
  return _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20), _mm256_permute2f128_ps(four[0], four[1], 0x31));
#else
  return four[0];
#endif
}

// float32 to float16, to the nearest, ties to even. `count` is a multiple of 16.
// Beyond the largest float16 the nearest finite value is kept: an infinite key would poison every later row.
inline void narrow(const float* in, Float16* out, int count) {
  for (int i = 0; i < count; i += kLanes) {
    const Vector x = load(in + i), most = spread(65504.f);
    const Vector below = x > most ? most : x, kept = below < -most ? -most : below;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtps_ph(__m512(kept), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(__m256(kept), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < kLanes; ++lane) {
      const _Float16 half = static_cast<_Float16>(kept[lane]);
      __builtin_memcpy(out + i + lane, &half, 2);
    }
#endif
  }
}

// float32 to bfloat16, the same; it reaches as far as float32 does, so what is finite stays so but for the last half step.
// What is no number stays none.
inline void narrow(const float* in, Bfloat16* out, int count) {
  for (int i = 0; i < count; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, in + i, sizeof bits);
    const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1);
    out[i].bits = std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded >> 16);
  }
}

}  // namespace latentcot::LATENTCOT_ISA
