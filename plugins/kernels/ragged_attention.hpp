// RaggedAttention: rotates, writes keys and values at the rows' slots, attends over what the rows may see.
//
// Every row's result is formed in one order: per block of keys a softmax of its own, then the blocks merged from the first
// to the last. Tiles, splits and threads only decide who computes a block, so a row gives the same bits alone, in a prompt
// chunk and in any batch. The merge is the one of online softmax (Milakov and Gimelshein, arXiv 1805.02867).
//
// Included once per instruction set, see vectors.hpp.
#pragma once

#include "attend_block.hpp"
#include "attention_plan.hpp"
#include "vectors.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace attention {

// What a worker needs beside its stack, in floats.
struct Sizes {
  std::size_t group, query, block, state, all;
};

inline Sizes sizes_of(const AttentionCall& call) {
  const std::size_t group = std::size_t(call.heads / call.kv_heads), stride = std::size_t(call.head_stride);
  Sizes s{};
  s.group = group;
  s.query = kTileRows * group * stride;
  s.block = group * (kBlockKeys + stride + 16);              // weights and sums of one block of one row
  s.state = kTileRows * group * (stride + 16);               // merged sums
  s.all = (s.query + s.block + s.state + 15) & ~std::size_t(15);
  return s;
}

// 1 / sqrt(mean(x^2) + epsilon) of one head. The order of the sum depends on head_dim alone.
inline float norm_scale(const AttentionCall& call, const float* x) {
  const std::int32_t whole = call.head_dim / kLanes * kLanes;
  Vector squares{};
  for (std::int32_t i = 0; i < whole; i += kLanes) {
    const Vector v = load(x + i);
    squares += v * v;
  }
  float total = sum_of(squares);
  for (std::int32_t i = whole; i < call.head_dim; ++i) total += x[i] * x[i];
  return 1.f / __builtin_sqrtf(total / float(call.head_dim) + call.epsilon);
}

// One head normed where `norm` is given, its first `turned` lanes rotated by halves, all of it scaled:
// out[i] = x[i] cos - x[i + half] sin and so on; lanes from head_dim on become 0.
inline void rotate(const AttentionCall& call, std::int32_t row, const float* x, const float* norm, float scale,
                   float* out) {
  const std::int32_t half = call.turned / 2;
  const float *c = call.cosine + std::size_t(row) * half, *s = call.sine + std::size_t(row) * half;
  float normed[kMostDims];
  if (norm) {
    const float factor = norm_scale(call, x);
    for (std::int32_t i = 0; i < call.head_dim; ++i) normed[i] = x[i] * factor * norm[i];
    x = normed;
  }
  for (std::int32_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i] = (a * c[i] - b * s[i]) * scale;
    out[i + half] = (b * c[i] + a * s[i]) * scale;
  }
  for (std::int32_t i = call.turned; i < call.head_dim; ++i) out[i] = x[i] * scale;
  for (std::int32_t i = call.head_dim; i < call.head_stride; ++i) out[i] = 0.f;
}

inline const float* row_qkv(const AttentionCall& call, std::int32_t row) {
  return call.qkv + std::size_t(row) * std::size_t(call.heads + 2 * call.kv_heads) * call.head_dim;
}

// Keys and values of a row, each made in `scratch` and narrowed to Number.
template <class Number>
inline void write_narrow(const AttentionCall& call, std::int32_t row, const float* key, const float* value,
                         std::size_t place, float* scratch) {
  rotate(call, row, key, call.key_norm, 1.f, scratch);
  narrow(scratch, static_cast<Number*>(call.keys) + place, call.head_stride);
  for (std::int32_t i = 0; i < call.head_dim; ++i) scratch[i] = value[i];
  narrow(scratch, static_cast<Number*>(call.values) + place, call.head_stride);
}

inline void write_row(const AttentionCall& call, std::int32_t row, float* scratch) {
  const std::size_t stride = std::size_t(call.head_stride);
  const std::int32_t slot = call.rows[std::size_t(row) * 4 + 3];
  if (slot < 0) return;  // it only reads
  const std::size_t at = std::size_t(slot) * call.kv_heads * stride;
  const float* k = row_qkv(call, row) + std::size_t(call.heads) * call.head_dim;
  const float* v = k + std::size_t(call.kv_heads) * call.head_dim;
  for (std::int32_t g = 0; g < call.kv_heads; ++g) {
    const std::size_t place = at + g * stride;
    const float *key = k + std::size_t(g) * call.head_dim, *value = v + std::size_t(g) * call.head_dim;
    if (call.kept == Type::kFloat16) {
      write_narrow<Float16>(call, row, key, value, place, scratch);
    } else if (call.kept == Type::kBFloat16) {
      write_narrow<Bfloat16>(call, row, key, value, place, scratch);
    } else {
      float* to = static_cast<float*>(call.values) + place;
      rotate(call, row, key, call.key_norm, 1.f, static_cast<float*>(call.keys) + place);
      for (std::int32_t i = 0; i < call.head_dim; ++i) to[i] = value[i];
      for (std::int32_t i = call.head_dim; i < call.head_stride; ++i) to[i] = 0.f;
    }
  }
}

}  // namespace attention

}  // namespace latentcot::LATENTCOT_ISA
