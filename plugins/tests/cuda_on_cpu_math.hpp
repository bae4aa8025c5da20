// CUDA on the CPU: vector types, half and bfloat16, and the arithmetic of the device. See cuda_on_cpu.hpp.
//
// Conversions round to nearest even as the device's do. The approximate functions (__expf, __fdividef, rsqrtf) are exact
// ones here: a test's tolerance must allow for what the device's lose.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#define LATENTCOT_VECTOR(type, element, bytes)                                    \
  struct alignas(2 * bytes) type##2 {                                             \
    element x, y;                                                                 \
  };                                                                              \
  struct alignas(4 * bytes) type##4 {                                             \
    element x, y, z, w;                                                           \
  };                                                                              \
  inline type##2 make_##type##2(element x, element y) { return {x, y}; }          \
  inline type##4 make_##type##4(element x, element y, element z, element w) { return {x, y, z, w}; }
LATENTCOT_VECTOR(float, float, 4)
LATENTCOT_VECTOR(int, int, 4)
LATENTCOT_VECTOR(uint, unsigned, 4)
#undef LATENTCOT_VECTOR

namespace latentcot::cuda::on_cpu {

// The IEEE 754 number of `exponent_bits` and `mantissa_bits` nearest to `value`, of two equally near ones the even one.
template <int exponent_bits, int mantissa_bits>
std::uint16_t narrowed(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = std::uint16_t(bits >> 31 << 15);
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  constexpr std::uint16_t infinity = std::uint16_t(((1 << exponent_bits) - 1) << mantissa_bits);
  if (value != value) return 0x7fff;  // what the device makes of every NaN
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude == 0x7f800000u) return std::uint16_t(sign | infinity);
  int exponent = int(magnitude >> 23) - 127 + bias;
  std::uint64_t mantissa = magnitude & 0x7fffffu;
  int drop = 23 - mantissa_bits;
  if (magnitude >> 23) mantissa |= 0x800000u;
  else ++exponent;  // a subnormal float has the exponent of the least normal one
  if (exponent <= 0) {
    drop += 1 - exponent;
    exponent = 1;
  }
  if (drop > 40) return sign;
  const std::uint64_t half = std::uint64_t(1) << (drop - 1), rest = mantissa & (2 * half - 1);
  std::uint64_t kept = mantissa >> drop;
  kept += rest > half || (rest == half && (kept & 1));
  // the leading bit of `kept`, if it is there, adds 1 to the exponent: a carry goes where it should
  const std::uint64_t found = (std::uint64_t(exponent - 1) << mantissa_bits) + kept;
  return found >= infinity ? std::uint16_t(sign | infinity) : std::uint16_t(sign | found);
}

inline float widened_half(std::uint16_t bits) {
  const float sign = bits >> 15 ? -1.f : 1.f;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa ? __builtin_nanf("") : sign * __builtin_inff();
  return sign * (exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24));
}

inline float widened_bfloat(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

}  // namespace latentcot::cuda::on_cpu

struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(float value) : bits(latentcot::cuda::on_cpu::narrowed<5, 10>(value)) {}
  operator float() const { return latentcot::cuda::on_cpu::widened_half(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(latentcot::cuda::on_cpu::narrowed<8, 7>(value)) {}
  operator float() const { return latentcot::cuda::on_cpu::widened_bfloat(bits); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float __half2float(__half value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 value) { return {value.x, value.y}; }
inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return {value.x, value.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {value.x, value.y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return std::bit_cast<__nv_bfloat16>(bits); }

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline int __clzll(long long bits) { return std::countl_zero(static_cast<unsigned long long>(bits)); }
inline unsigned __brev(unsigned bits) {
  unsigned turned = 0;
  for (int i = 0; i < 32; ++i) turned |= (bits >> i & 1) << (31 - i);
  return turned;
}
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
// The device's: too large, too small and NaN give the ends of the range and 0.
inline unsigned long long __float2ull_rz(float x) {
  return !(x > 0) ? 0 : x >= 0x1p64f ? ~0ull : static_cast<unsigned long long>(x);
}
