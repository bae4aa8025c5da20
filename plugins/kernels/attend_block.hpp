// One block of keys: scores, softmax weights, weighted values, and how blocks are merged. Included once per instruction
// set, see vectors.hpp.
//
// Keys are multiplied as they lie in the cache, a vector of dimensions at a time, and the lanes of a vector of scores are
// added together. To transpose a block first, so that every lane is a key, takes three passes over it: even 16 rows that
// share one were 15 to 30 % slower so, and a row alone up to 2.3 times.
#pragma once

#include "attention_plan.hpp"
#include "vectors.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace attention {

constexpr int kWide = kLanes == 16 ? 4 : 2;  // vectors of a register tile: with 3 or 4 queries they fill the registers
constexpr int kQueries = 4;                  // query heads that one register tile serves
constexpr int kLine = 64;                    // bytes of a cache line

// Result of some keys for one query head: softmax numerator and denominator relative to the largest score.
struct Partial {
  float largest, total;
};

// The block that a worker reads next, asked for while it computes on this one: the processor cannot foresee the slots of a
// table. A few lines at a time, between products: all at once they only wait for each other. Into L2, since L1 is full of
// this block; every line, since the processor does not fetch its neighbours.
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

// Where the keys and values of a block lie, as Number: float, Float16 or Bfloat16.
template <class Number>
struct Block {
  const Number* keys[kBlockKeys];  // whole vectors of them: those behind the last one are valid, too
  const Number* values[kBlockKeys];
  const float* biases;  // of the scores, or null
};

// Scores of Q queries against four keys, by groups of four lanes, see fold_four.
template <int Q, class Number>
[[gnu::always_inline]] inline void score_four(const float* query, std::size_t stride, const Number* const* keys,
                                              Vector (&four)[Q]) {
  Vector sum[Q][4] = {};
  for (std::size_t d = 0; d < stride; d += kLanes) {
    Vector x[Q];
    for (int q = 0; q < Q; ++q) x[q] = load(query + q * stride + d);
    for (int k = 0; k < 4; ++k) {
      const Vector key = load(keys[k] + d);
      for (int q = 0; q < Q; ++q) sum[q][k] += x[q] * key;
    }
  }
  for (int q = 0; q < Q; ++q) four[q] = fold_four(sum[q][0], sum[q][1], sum[q][2], sum[q][3]);
}

// Scores of Q queries against the first `count` keys, and of what fills the last vector.
template <int Q, class Number>
inline void score(const float* query, std::size_t stride, const Number* const* keys, int count, float* scores,
                  const Upcoming& next) {
  for (int at = 0; at < count; at += kLanes) {
    Vector four[Q][kLanes / 4];
    for (int k = 0; k < kLanes; k += 4) {
      for (int i = 0; i < 4; ++i) next.fetch(next.keys, at + k + i);
      Vector part[Q];
      score_four<Q>(query, stride, keys + at + k, part);
      for (int q = 0; q < Q; ++q) four[q][k / 4] = part[q];
    }
    for (int q = 0; q < Q; ++q) store(scores + q * kBlockKeys + at, fold_groups(four[q]));
  }
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
template <int Q, int W, class Number>
inline void mix_part(const float* weights, const Number* const* values, int count, std::size_t at, float* sums,
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

template <int Q, class Number>
inline void mix(const float* weights, const Number* const* values, int count, std::size_t stride, float* sums,
                const Upcoming& next) {
  const Upcoming none{};
  std::size_t at = 0;
  for (; at + kWide * kLanes <= stride; at += kWide * kLanes)
    mix_part<Q, kWide>(weights, values, count, at, sums, stride, at == 0 ? next : none);
  for (; at < stride; at += kLanes)
    mix_part<Q, 1>(weights, values, count, at, sums, stride, at == 0 ? next : none);
}

// Q query heads of one row against the first `count` keys of a block: weights and sums per head, and their Partial.
template <int Q, class Number>
inline void attend(const float* query, std::size_t stride, const Block<Number>& block, int count, float* weights,
                   float* sums, Partial* partial, const Upcoming& next) {
  score<Q>(query, stride, block.keys, count, weights, next);
  if (block.biases)
    for (int i = 0; i < Q; ++i)
      for (int j = 0; j < count; ++j) weights[i * kBlockKeys + j] += block.biases[j];
  for (int i = 0; i < Q; ++i) partial[i] = weigh(weights + i * kBlockKeys, count);
  mix<Q>(weights, block.values, count, stride, sums, next);
}

// All query heads of one row's kv head against the first `count` keys of a block. `next` is fetched meanwhile.
template <class Number>
inline void attend_block(const float* query, std::size_t group, std::size_t stride, const Block<Number>& block,
                         int count, float* weights, float* sums, Partial* partial, const Upcoming& upcoming) {
  const Upcoming none{};
  for (std::size_t q = 0; q < group; q += kQueries) {
    const float* x = query + q * stride;
    float *w = weights + q * kBlockKeys, *s = sums + q * stride;
    const Upcoming& next = q == 0 ? upcoming : none;
    switch (group - q) {
      case 1: attend<1>(x, stride, block, count, w, s, partial + q, next); break;
      case 2: attend<2>(x, stride, block, count, w, s, partial + q, next); break;
      case 3: attend<3>(x, stride, block, count, w, s, partial + q, next); break;
      default: attend<4>(x, stride, block, count, w, s, partial + q, next); break;
    }
  }
}

// state = state joined with one more block.
inline void merge(Partial& state, float* sums, const Partial& block, const float* more, std::size_t stride) {
  const float largest = block.largest > state.largest ? block.largest : state.largest;
  Vector below{};
  below[0] = state.largest - largest;
  below[1] = block.largest - largest;
  const Vector factors = exp_nonpositive(below);
  state = {largest, state.total * factors[0] + block.total * factors[1]};
  const Vector a = spread(factors[0]), b = spread(factors[1]);
  for (std::size_t i = 0; i < stride; i += kLanes) store(sums + i, load(sums + i) * a + load(more + i) * b);
}

}  // namespace attention

}  // namespace latentcot::LATENTCOT_ISA
