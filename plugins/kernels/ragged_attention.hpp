// RaggedAttention: rotates, writes keys and values at the rows' slots, attends over what the rows may see.
//
// Every row's result is formed in one order: per block of keys a softmax of its own, then the blocks merged from the first
// to the last. Tiles, splits and threads only decide who computes a block, so a row gives the same bits alone, in a prompt
// chunk and in any batch. The merge is the one of online softmax (Milakov and Gimelshein, arXiv 1805.02867).
//
// Included once per instruction set, see vectors.hpp.
#pragma once

#include "attention_plan.hpp"
#include "vectors.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace attention {

constexpr int kWide = kLanes == 16 ? 4 : 2;  // vectors of one register tile: with 3 or 4 queries they fill the registers
constexpr int kQueries = 4;                  // query heads that one register tile serves
constexpr int kLine = 64;                    // bytes of a cache line

// Result of some keys for one query head: softmax numerator and denominator relative to the largest score.
struct Partial {
  float largest, total;
};

// The block that a worker reads next, asked for while it computes on this one: the processor cannot foresee the slots of
// a table. A few lines at a time, between products: all at once they only wait for each other. Into L2, since L1 is full of
// this block. SmolLM2, 16 sequences of 256 tokens: 5.8 ms of reading and computing instead of 6.9, float16 4.7 of 7.8.
struct Upcoming {
  const unsigned char *keys, *values;  // of one kv head, at slot 0
  const std::int32_t* slots;
  std::size_t step;  // bytes from slot to slot
  int count, lines;  // slots, and cache lines of each

  [[gnu::always_inline]] inline void fetch(const unsigned char* from, int slot) const {
    if (slot >= count) return;
    const unsigned char* const at = from + std::size_t(slots[slot]) * step;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(at + i * kLine, 0, 2);
  }
};

// What a worker needs beside its stack, in floats.
struct Sizes {
  std::size_t group, query, keys, values, block, state, all;
};

inline Sizes sizes_of(const AttentionCall& call) {
  const std::size_t group = std::size_t(call.heads / call.kv_heads), stride = std::size_t(call.head_stride);
  Sizes s{};
  s.group = group;
  s.query = kTileRows * group * stride;
  s.keys = kBlockKeys * stride;                              // transposed
  s.values = call.half ? 2 * kBlockKeys * stride : 0;        // widened keys, then values
  s.block = group * (kBlockKeys + stride + 16);              // weights and sums of one block of one row
  s.state = kTileRows * group * (stride + 16);               // merged sums
  s.all = (s.query + s.keys + s.values + s.block + s.state + 15) & ~std::size_t(15);
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

inline void write_row(const AttentionCall& call, std::int32_t row, float* scratch) {
  const std::size_t stride = std::size_t(call.head_stride);
  const std::int32_t slot = call.rows[std::size_t(row) * 4 + 3];
  if (slot < 0) return;  // it only reads
  const std::size_t at = std::size_t(slot) * call.kv_heads * stride;
  const float* k = row_qkv(call, row) + std::size_t(call.heads) * call.head_dim;
  const float* v = k + std::size_t(call.kv_heads) * call.head_dim;
  for (std::int32_t g = 0; g < call.kv_heads; ++g) {
    const std::size_t place = at + g * stride;
    if (!call.half) {
      float* value = static_cast<float*>(call.values) + place;
      rotate(call, row, k + std::size_t(g) * call.head_dim, call.key_norm, 1.f, static_cast<float*>(call.keys) + place);
      for (std::int32_t i = 0; i < call.head_dim; ++i) value[i] = v[std::size_t(g) * call.head_dim + i];
      for (std::int32_t i = call.head_dim; i < call.head_stride; ++i) value[i] = 0.f;
      continue;
    }
    rotate(call, row, k + std::size_t(g) * call.head_dim, call.key_norm, 1.f, scratch);
    auto* key = static_cast<std::uint16_t*>(call.keys) + place;
    auto* value = static_cast<std::uint16_t*>(call.values) + place;
    for (std::int32_t i = 0; i < call.head_stride; ++i) {
      key[i] = narrow(scratch[i]);
      value[i] = narrow(i < call.head_dim ? v[std::size_t(g) * call.head_dim + i] : 0.f);
    }
  }
}

// Scores of Q queries against W vectors of transposed keys. Each is a sum over the dimensions in order.
template <int Q, int W>
inline void score_part(const float* query, std::size_t stride, const float* keys, std::int32_t dims, float* scores,
                       const Upcoming& next) {
  Vector sum[Q][W] = {};
  for (std::int32_t d = 0; d < dims; ++d) {
    next.fetch(next.keys, d);
    Vector key[W];
    for (int w = 0; w < W; ++w) key[w] = load(keys + std::size_t(d) * kBlockKeys + w * kLanes);
    for (int q = 0; q < Q; ++q) {
      const Vector x = spread(query[q * stride + d]);
      for (int w = 0; w < W; ++w) sum[q][w] += x * key[w];
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int w = 0; w < W; ++w) store(scores + q * kBlockKeys + w * kLanes, sum[q][w]);
}

// Scores of Q queries against the first `count` keys of a block, and of what fills the last vector.
template <int Q>
inline void score(const float* query, std::size_t stride, const float* keys, int count, std::int32_t dims,
                  float* scores, const Upcoming& next) {
  const Upcoming none{};
  int at = 0;
  for (; at + (kWide - 1) * kLanes < count; at += kWide * kLanes)
    score_part<Q, kWide>(query, stride, keys + at, dims, scores + at, at == 0 ? next : none);
  for (; at < count; at += kLanes)
    score_part<Q, 1>(query, stride, keys + at, dims, scores + at, at == 0 ? next : none);
}

// Scores to softmax weights over the first `count` keys.
inline Partial weigh(float* scores, int count) {
  const int vectors = (count + kLanes - 1) / kLanes;
  const IntVector lane = lane_numbers();
  const Vector nothing = spread(-3.0e38f);
  Vector largest = nothing;
  for (int i = 0; i < vectors; ++i) {
    const Vector x = load(scores + i * kLanes);
    const Vector kept = lane + i * kLanes < count ? x : nothing;
    largest = kept > largest ? kept : largest;
  }
  Partial result{largest_of(largest), 0.f};
  Vector total{};
  for (int i = 0; i < vectors; ++i) {
    const Vector x = load(scores + i * kLanes) - result.largest;
    const Vector weight = lane + i * kLanes < count ? exp_nonpositive(x) : Vector{};
    store(scores + i * kLanes, weight);
    total += weight;
  }
  result.total = sum_of(total);
  return result;
}

// sums[q] = weights[q] @ values over `count` keys in order; W vectors from dimension `at` on.
template <int Q, int W>
inline void mix_part(const float* weights, const float* const* values, int count, std::size_t at, float* sums,
                     std::size_t stride, const Upcoming& next) {
  Vector sum[Q][W] = {};
  for (int j = 0; j < count; ++j) {
    next.fetch(next.values, j);
    Vector value[W];
    for (int w = 0; w < W; ++w) value[w] = load(values[j] + at + w * kLanes);
    for (int q = 0; q < Q; ++q) {
      const Vector x = spread(weights[q * kBlockKeys + j]);
      for (int w = 0; w < W; ++w) sum[q][w] += x * value[w];
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int w = 0; w < W; ++w) store(sums + q * stride + at + w * kLanes, sum[q][w]);
}

template <int Q>
inline void mix(const float* weights, const float* const* values, int count, std::size_t stride, float* sums,
                const Upcoming& next) {
  const Upcoming none{};
  std::size_t at = 0;
  for (; at + kWide * kLanes <= stride; at += kWide * kLanes)
    mix_part<Q, kWide>(weights, values, count, at, sums, stride, at == 0 ? next : none);
  for (; at < stride; at += kLanes)
    mix_part<Q, 1>(weights, values, count, at, sums, stride, at == 0 ? next : none);
}

// One row's query heads against one block: weights and sums per head, and their Partial. `biases` of the keys, or null;
// `upcoming` is fetched meanwhile.
inline void attend_block(const float* query, std::size_t group, std::size_t stride, const float* keys,
                         const float* const* values, const float* biases, int count, std::int32_t dims, float* weights,
                         float* sums, Partial* partial, const Upcoming& upcoming) {
  const Upcoming none{};
  for (std::size_t q = 0; q < group; q += kQueries) {
    const float* x = query + q * stride;
    float *w = weights + q * kBlockKeys, *s = sums + q * stride;
    const Upcoming& next = q == 0 ? upcoming : none;
    const int here = group - q < kQueries ? int(group - q) : kQueries;
    switch (here) {
      case 1: score<1>(x, stride, keys, count, dims, w, next); break;
      case 2: score<2>(x, stride, keys, count, dims, w, next); break;
      case 3: score<3>(x, stride, keys, count, dims, w, next); break;
      default: score<4>(x, stride, keys, count, dims, w, next); break;
    }
    if (biases)
      for (int i = 0; i < here; ++i)
        for (int j = 0; j < count; ++j) w[i * kBlockKeys + j] += biases[j];
    for (int i = 0; i < here; ++i) partial[q + i] = weigh(w + i * kBlockKeys, count);
    switch (here) {
      case 1: mix<1>(w, values, count, stride, s, next); break;
      case 2: mix<2>(w, values, count, stride, s, next); break;
      case 3: mix<3>(w, values, count, stride, s, next); break;
      default: mix<4>(w, values, count, stride, s, next); break;
    }
  }
}

// state = state joined with one more block.
inline void merge(Partial& state, float* sums, const Partial& block, const float* more, std::size_t stride) {
  const float largest = block.largest > state.largest ? block.largest : state.largest;
  const float mine = exp_nonpositive(state.largest - largest), theirs = exp_nonpositive(block.largest - largest);
  state = {largest, state.total * mine + block.total * theirs};
  const Vector a = spread(mine), b = spread(theirs);
  for (std::size_t i = 0; i < stride; i += kLanes) store(sums + i, load(sums + i) * a + load(more + i) * b);
}

}  // namespace attention

}  // namespace latentcot::LATENTCOT_ISA
