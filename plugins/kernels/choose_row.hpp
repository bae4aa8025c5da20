// ChooseToken, one row: greedy, or a draw with temperature, top-k and top-p by threshold search, without a sort.
//
// Included once per instruction set, like vectors.hpp. Every sum is formed in an order that depends on the row's length
// and the instruction set alone: in float32 over at most 16 vectors, beyond that in float64.
#pragma once

#include "choose_token.hpp"
#include "vectors.hpp"

namespace latentcot::LATENTCOT_ISA {

namespace choose {

constexpr std::int64_t kSumBlock = 256;  // weights per partial sum
constexpr std::int64_t kSpread = 64;     // logits behind one entry of lane_maxima
constexpr int kCuts = 8;                 // values tried per look at the candidates
constexpr int kFlush = 16;               // vectors added in float32 before they go to float64

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

// The first `count` of kLanes values, `filler` in the other lanes.
inline Vector load_part(const float* at, std::int64_t count, float filler) {
  if (count >= kLanes) return load(at);
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? at[i] : filler;
  return load(lanes);
}

inline Vector larger(Vector a, Vector b) { return b > a ? b : a; }  // a where b is not a number

// The largest of n values, -inf where there is none; NaN is passed over.
inline float largest(const float* values, std::int64_t n) {
  const float none = -__builtin_inff();
  Vector best[4] = {spread(none), spread(none), spread(none), spread(none)};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) best[j] = larger(best[j], load(values + i + j * kLanes));
  for (; i < n; i += kLanes) best[0] = larger(best[0], load_part(values + i, n - i, none));
  return largest_of(larger(larger(best[0], best[1]), larger(best[2], best[3])));
}

// The first index of the largest value, -1 where no value is finite.
inline std::int32_t greedy(const float* logits, std::int64_t n) {
  constexpr std::int64_t block = 1024;  // the one that holds the answer is searched again
  float best = -__builtin_inff();
  std::int64_t from = -1;
  for (std::int64_t i = 0; i < n; i += block) {
    const float here = largest(logits + i, n - i < block ? n - i : block);
    if (!(here > best)) continue;
    best = here;
    from = i;
  }
  if (from < 0) return -1;
  if (best > 3.4028235e38f) {  // infinity may be chosen, but not from logits that hold nothing else
    std::int64_t i = 0;
    while (i < n && !(logits[i] - logits[i] == 0)) ++i;
    if (i == n) return -1;
  }
  while (logits[from] != best) ++from;
  return std::int32_t(from);
}

// Values in order of id, with their weights (null: 1 each) and ids (null: the index).
struct List {
  const float *values, *weights;
  const std::int32_t* ids;
  std::int64_t count;
};

struct Columns {
  float *values, *weights;
  std::int32_t* ids;  // null: not wanted
};

// Copies entries [i, end) that lie in [low, high) behind the `kept` ones of `out`. Returns how much `out` then holds.
inline std::int64_t gather_each(const List& list, std::int64_t i, std::int64_t end, float low, float high,
                                const Columns& out, std::int64_t kept) {
  for (; i < end; ++i) {
    const float value = list.values[i];
    const float weight = list.weights ? list.weights[i] : 1.f;
    const std::int32_t id = list.ids ? list.ids[i] : std::int32_t(i);
    out.values[kept] = value;
    out.weights[kept] = weight;
    if (out.ids) out.ids[kept] = id;
    kept += (value >= low) & (value < high);
  }
  return kept;
}

// The same for kStride entries from i on.
#if defined(__AVX512F__)
constexpr int kStride = 16;
inline std::int64_t gather_some(const List& list, std::int64_t i, float low, float high, const Columns& out,
                                std::int64_t kept) {
  const __m512 value = _mm512_loadu_ps(list.values + i);
  const __mmask16 hits = _mm512_cmp_ps_mask(value, _mm512_set1_ps(low), _CMP_GE_OQ) &
                         _mm512_cmp_ps_mask(value, _mm512_set1_ps(high), _CMP_LT_OQ);
  if (!hits) return kept;
  // read before anything is written: `out` may be the list, whose entries from i + 16 on stay as they are
  const __m512 weight = list.weights ? _mm512_loadu_ps(list.weights + i) : _mm512_set1_ps(1.f);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i ids =
    list.ids ? _mm512_loadu_si512(list.ids + i) : _mm512_add_epi32(_mm512_set1_epi32(std::int32_t(i)), lanes);
  _mm512_storeu_ps(out.values + kept, _mm512_maskz_compress_ps(hits, value));
  _mm512_storeu_ps(out.weights + kept, _mm512_maskz_compress_ps(hits, weight));
  if (out.ids) _mm512_storeu_si512(out.ids + kept, _mm512_maskz_compress_epi32(hits, ids));
  return kept + __builtin_popcount(hits);
}
#else
constexpr int kStride = 4 * kLanes;
inline std::int64_t gather_some(const List& list, std::int64_t i, float low, float high, const Columns& out,
                                std::int64_t kept) {
  IntVector hits{};
  for (int j = 0; j < kStride; j += kLanes) {
    const Vector v = load(list.values + i + j);
    hits |= (v >= low) & (v < high);
  }
  std::int64_t parts[kLanes / 2], any = 0;
  __builtin_memcpy(parts, &hits, sizeof hits);
  for (int j = 0; j < kLanes / 2; ++j) any |= parts[j];
  return any ? gather_each(list, i, i + kStride, low, high, out, kept) : kept;
}
#endif

// Copies what lies in [low, high) to `out`, in order; `out` may be the list itself. Returns how much.
inline std::int64_t gather(const List& list, float low, float high, const Columns& out) {
  std::int64_t kept = 0, i = 0;
  for (; i + kStride <= list.count; i += kStride) kept = gather_some(list, i, low, high, out, kept);
  return gather_each(list, i, list.count, low, high, out, kept);
}

// masses[j] = sum of the weights of values >= cuts[j].
inline void measure(const List& list, const float* cuts, double* masses) {
  Doubles lanes[kCuts] = {};
  for (std::int64_t i = 0; i < list.count;) {
    Vector sums[kCuts] = {};
    for (int flush = 0; flush < kFlush && i < list.count; ++flush, i += kLanes) {
      const Vector v = load_part(list.values + i, list.count - i, __builtin_nanf(""));
      const Vector w = list.weights ? load_part(list.weights + i, list.count - i, 0.f) : spread(1.f);
      for (int j = 0; j < kCuts; ++j) sums[j] += v >= cuts[j] ? w : Vector{};
    }
    for (int j = 0; j < kCuts; ++j) lanes[j] += __builtin_convertvector(sums[j], Doubles);
  }
  for (int j = 0; j < kCuts; ++j) {
    masses[j] = 0;
    for (int lane = 0; lane < kLanes; ++lane) masses[j] += lanes[j][lane];
  }
}

// The smallest and the largest finite value; low > high where there is none.
inline void range(const List& list, float* low, float* high) {
  const float most = 3.4028235e38f;
  Vector least = spread(most), greatest = spread(-most);
  for (std::int64_t i = 0; i < list.count; i += kLanes) {
    const Vector v = load_part(list.values + i, list.count - i, __builtin_nanf(""));
    least = (v < least) & (v >= -most) ? v : least;
    greatest = (v > greatest) & (v <= most) ? v : greatest;
  }
  *low = -largest_of(-least);
  *high = largest_of(greatest);
}

// The largest value c with (mass of all values >= c) >= target; the smallest finite one where there is not that much.
// Each look tries kCuts values between the extremes of the candidates and keeps the slice that c lies in; the largest
// candidate is always tried, so every look decides at least one value. `spare` holds the candidates.
inline float threshold(List list, double target, const Columns& spare) {
  double above = 0;  // mass of everything above the candidates
  float low, high, cuts[kCuts];
  double masses[kCuts];
  float fallback = 3.4028235e38f;
  for (;;) {
    range(list, &low, &high);
    if (low > high) return fallback;  // the candidates weigh less than rounding promised: all of them are kept
    if (low == high) return low;
    for (int j = 0; j < kCuts; ++j) {
      const float share = float(j) / kCuts;
      const float cut = high * (1 - share) + low * share;  // high - (high - low) * share could overflow
      cuts[j] = cut < high ? cut : high;
    }
    measure(list, cuts, masses);
    int j = 0;
    while (j < kCuts && !(above + masses[j] >= target)) ++j;
    if (j == 0) return high;
    above += masses[j - 1];
    fallback = cuts[j - 1];
    const Columns out = {spare.values, spare.weights, nullptr};
    const std::int64_t count = gather(list, j < kCuts ? cuts[j] : low, cuts[j - 1], out);
    list = {spare.values, list.weights ? spare.weights : nullptr, nullptr, count};
  }
}

// Largest values of disjoint parts of at most kSpread logits each; returns how many parts.
inline std::int64_t lane_maxima(const float* logits, std::int64_t n, float* maxima) {
  std::int64_t parts = 0;
  for (std::int64_t i = 0; i < n; parts += kLanes) {
    Vector best = spread(-__builtin_inff());
    for (std::int64_t j = 0; j < kSpread && i < n; ++j, i += kLanes)
      best = larger(best, load_part(logits + i, n - i, -__builtin_inff()));
    store(maxima + parts, best);
  }
  return parts;
}

// weights[i..] = weight(values, i) for a vector of values at a time, and the sums of weights per block of kSumBlock.
template <class Weight>
inline void fill(const List& list, float* weights, double* sums, Weight weight) {
  for (std::int64_t i = 0; i < list.count; i += kSumBlock) {
    Vector parts[4] = {};
    for (int j = 0; j < kSumBlock / kLanes; ++j) {
      const std::int64_t at = i + j * kLanes;
      if (at >= list.count) break;
      const Vector w = weight(load_part(list.values + at, list.count - at, __builtin_nanf("")), at);
      store(weights + at, w);
      parts[j & 3] += w;
    }
    sums[i / kSumBlock] = double(sum_of((parts[0] + parts[1]) + (parts[2] + parts[3])));
  }
}

inline double total_of(const double* sums, std::int64_t n) {
  double total = 0;
  for (std::int64_t i = 0; i * kSumBlock < n; ++i) total += sums[i];
  return total;
}

// The first index whose running sum of weights exceeds uniform * total.
inline std::int64_t pick(const float* weights, const double* sums, std::int64_t n, float uniform) {
  const double target = double(uniform) * total_of(sums, n);
  double running = 0;
  std::int64_t block = 0, last = 0;
  while ((block + 1) * kSumBlock < n && !(running + sums[block] > target)) running += sums[block++];
  const std::int64_t end = (block + 1) * kSumBlock < n ? (block + 1) * kSumBlock : n;
  for (std::int64_t i = block * kSumBlock; i < end; ++i) {
    if (!(weights[i] > 0)) continue;
    running += double(weights[i]);
    last = i;
    if (running > target) break;
  }
  return last;  // where rounding keeps the sum at the target: the last that has any weight
}

inline std::int64_t padded(std::int64_t vocabulary) { return (vocabulary + kSumBlock - 1) / kSumBlock * kSumBlock; }

}  // namespace choose

inline std::size_t choose_bytes(std::int64_t vocabulary, bool greedy) {
  const std::int64_t n = choose::padded(vocabulary);
  return greedy ? 0 : std::size_t(n) * 5 * sizeof(float) + std::size_t(n / choose::kSumBlock) * sizeof(double);
}

inline std::int32_t choose_row(const float* logits, std::int64_t vocabulary, const Choice& choice, void* workspace) {
  using namespace choose;
  if (choice.temperature == 0) return greedy(logits, vocabulary);
  const float most = largest(logits, vocabulary);
  if (!(most - most == 0)) return -1;
  const std::int64_t n = padded(vocabulary);
  double* sums = static_cast<double*>(workspace);
  float* floats = reinterpret_cast<float*>(sums + n / kSumBlock);
  const Columns kept = {floats, floats + n, reinterpret_cast<std::int32_t*>(floats + 2 * n)};
  const Columns spare = {floats + 3 * n, floats + 4 * n, nullptr};
  List list = {logits, nullptr, nullptr, vocabulary};
  if (choice.top_k > 0 && choice.top_k < vocabulary) {
    if (vocabulary > 64 * kSpread && choice.top_k < vocabulary / (2 * kSpread)) {
      // the k-th largest of maxima of disjoint parts is at most the k-th largest: few logits need a closer look
      const List maxima = {kept.values, nullptr, nullptr, lane_maxima(logits, vocabulary, kept.values)};
      const float bound = threshold(maxima, choice.top_k, spare);
      const std::int64_t count = gather(list, bound, __builtin_inff(), kept);
      if (count >= choice.top_k) list = {kept.values, nullptr, kept.ids, count};  // not if most parts hold no number
    }
    const float floor = threshold(list, choice.top_k, spare);
    list = {kept.values, nullptr, kept.ids, gather(list, floor, __builtin_inff(), kept)};
  }
  fill(list, kept.weights, sums, [&](Vector v, std::int64_t) {
    return exp_nonpositive((v - most) / choice.temperature);  // 0 for NaN
  });
  if (choice.top_p < 1) {
    const List weighted = {list.values, kept.weights, nullptr, list.count};
    const float floor = threshold(weighted, double(choice.top_p) * total_of(sums, list.count), spare);
    fill(list, kept.weights, sums, [&](Vector v, std::int64_t i) {
      return v >= floor ? load(kept.weights + i) : Vector{};
    });
  }
  const std::int64_t at = pick(kept.weights, sums, list.count, choice.uniform);
  return list.ids ? list.ids[at] : std::int32_t(at);
}

constexpr ChooseKernels choose_kernels = {choose_bytes, choose_row};

}  // namespace latentcot::LATENTCOT_ISA
