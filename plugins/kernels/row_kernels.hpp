// AddNorm and GatedUnit on a range of rows. Every row is worked on in one order of its own, so its bits do not depend on
// the rows beside it. Included once per instruction set, see vectors.hpp.
#pragma once

#include "row_calls.hpp"
#include "vectors.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace row_detail {

// The first `count` < kLanes numbers, zeros behind them; and back.
inline Vector load_part(const float* at, std::int64_t count) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i] = at[i];
  return load(lanes);
}

inline void store_part(float* at, Vector v, std::int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  for (std::int64_t i = 0; i < count; ++i) at[i] = lanes[i];
}

// x / (1 + e^-x) by way of e^-|x|, which cannot overflow. As in PyTorch, -inf and NaN give NaN, inf gives inf.
inline Vector silu(Vector x) {
  const Vector e = exp_nonpositive(x < 0.f ? x : -x);
  return (x < 0.f ? x * e : x) / (e + 1.f);
}

}  // namespace row_detail

inline void add_norm(const AddNormCall& call, std::int64_t first, std::int64_t end) {
  using namespace row_detail;
  constexpr int kSums = 4;  // one chain of additions would wait for each of its links
  const std::int64_t width = call.width, whole = width / kLanes * kLanes, left = width - whole;
  for (std::int64_t row = first; row < end; ++row) {
    const float *x = call.x + row * width, *residual = call.residual + row * width;
    float *normed = call.normed + row * width, *total = call.total + row * width;
    Vector squares[kSums] = {};
    std::int64_t i = 0;
    for (; i + kSums * kLanes <= width; i += kSums * kLanes)
      for (int k = 0; k < kSums; ++k) {
        const Vector v = load(x + i + k * kLanes) + load(residual + i + k * kLanes);
        store(total + i + k * kLanes, v);
        squares[k] += v * v;
      }
    for (; i < whole; i += kLanes) {
      const Vector v = load(x + i) + load(residual + i);
      store(total + i, v);
      squares[0] += v * v;
    }
    if (left) {
      const Vector v = load_part(x + i, left) + load_part(residual + i, left);
      store_part(total + i, v, left);
      squares[1] += v * v;
    }
    const float mean = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(width);
    const Vector scale = spread(1.f / __builtin_sqrtf(mean + call.epsilon));
    for (i = 0; i < whole; i += kLanes) store(normed + i, load(total + i) * scale * load(call.weight + i));
    if (left)
      store_part(normed + i, load_part(total + i, left) * scale * load_part(call.weight + i, left), left);
  }
}

inline void gated_unit(const GatedUnitCall& call, std::int64_t first, std::int64_t end) {
  using namespace row_detail;
  const std::int64_t width = call.width, whole = width / kLanes * kLanes, left = width - whole;
  for (std::int64_t row = first; row < end; ++row) {
    const float *gate = call.gate_up + row * 2 * width, *up = gate + width;
    float* out = call.out + row * width;
    std::int64_t i = 0;
    for (; i < whole; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
    if (left) store_part(out + i, silu(load_part(gate + i, left)) * load_part(up + i, left), left);
  }
}

}  // namespace latentcot::LATENTCOT_ISA
