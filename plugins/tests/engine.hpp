// One engine without a framework: the tables, the rows in flight and the three state ops on them, in either form.
//
// Every table is a heap block of exactly its size, for AddressSanitizer.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "../kernels/kernel_table.hpp"
#include "../kernels/ragged_advance_plan.hpp"
#include "../kernels/ragged_halt_plan.hpp"

namespace latentcot::tests {

using Random = std::mt19937;
inline int between(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
inline float normal(Random& random) { return std::normal_distribution<float>()(random); }

constexpr int kHidden = 3, kVocabulary = 5;

template <class T>
Tensor view(std::vector<T>& values, std::initializer_list<std::int64_t> shape) {
  Tensor tensor;
  tensor.data = values.data();
  tensor.type = sizeof(T) == 8 ? Type::kInt64 : std::is_same_v<T, float> ? Type::kFloat32 : Type::kInt32;
  for (const std::int64_t size : shape) tensor.shape[tensor.rank++] = size;
  return tensor;
}

// One engine: its tables and the rows in flight.
struct Engine {
  std::int64_t B, T, K, N, P;
  std::vector<std::int32_t> control, order, sequences, tokens, depths, forced, stops, slots, free_slots, rows, fresh;
  std::vector<float> sampling, uniform, record, latent, reach, mix, z, gates, logits, weights, head_mix;
  HaltRules rules{};
  bool token_major = false, jacobi = false;
  std::vector<std::int64_t> counters;
  std::vector<std::int32_t> next_rows, head_rows, chosen;
  std::vector<std::int64_t> head_index;
  Message message;
  bool again = false;
  bool fixed = false;

  Engine(int places, int positions, int steps, int slot_count, int recorded)
    : B(places), T(positions), K(steps), N(slot_count), P(recorded) {
    control = {100, 100, 0, 0};
    order.assign(B, -1);
    sequences.assign(B * kSequenceColumns, 0);
    sampling.assign(B * kSamplingColumns, 1.f);
    tokens.assign(B * T, -1);
    depths.assign(B * T, 0);
    forced.assign(B * T, 0);
    uniform.assign(B * T, 0.5f);
    stops.assign(B, -1);
    slots.assign(B * K * T, -1);
    free_slots.resize(N);
    for (std::int64_t i = 0; i < N; ++i) free_slots[i] = std::int32_t(i);
    counters.assign(kCounterEntries, 0);
    counters[kFreeSlots] = N;
    record.assign(B * P * kVocabulary, 0.f);
    weights.assign(B * T * K, 0.f);
    rules = {0.4f, K, kStopReach, kMixture, true};
  }

  // From now on in the fixed form with `capacity` rows, all of them dead.
  void fix(std::int64_t capacity) {
    fixed = rules.fixed = true;
    rows.assign(capacity * kRowColumns, kDead);
    reach.assign(capacity, std::nanf(""));
    mix.assign(capacity * kHidden, std::nanf(""));
    latent.assign(capacity * kHidden, std::nanf(""));
  }

  // Whatever the rules allow: every one of them is met over the seeds.
  void draw_rules(Random& random) {
    rules.stop = between(random, 0, kStopRules - 1);
    rules.readout = between(random, 0, kReadouts - 1);
    rules.skip_halted = between(random, 0, 1);
    token_major = between(random, 0, 3) == 0;
    jacobi = between(random, 0, 1);
  }

  std::int64_t gate_columns() const {
    return rules.stop == kStopTail ? K : std::max<std::int64_t>(K - 1, 1);
  }

  std::int64_t row_count() const { return std::int64_t(rows.size()) / kRowColumns; }

  std::int64_t live() const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < row_count(); ++i) count += !is_dead(rows.data(), i);
    return count;
  }

  // Everything the ops may change.
  std::vector<std::vector<char>> bytes() {
    std::vector<std::vector<char>> all;
    const auto add = [&](auto& v) {
      const char* at = reinterpret_cast<const char*>(v.data());
      all.emplace_back(at, at + v.size() * sizeof(v[0]));
    };
    add(sequences), add(tokens), add(depths), add(slots), add(free_slots), add(counters), add(record);
    return all;
  }

  void admit(Random& random, int s) {
    const int known = between(random, 1, int(T)), end = between(random, known, int(T));
    const std::int32_t row[] = {kRunning, 0, std::int32_t(T), end, 0, 0, between(random, 0, 3), known};
    std::copy(row, row + kSequenceColumns, sequences.begin() + s * kSequenceColumns);
    for (int t = 0; t < T; ++t) {
      tokens[s * T + t] = t < known ? between(random, 0, kVocabulary - 1) : -1;
      depths[s * T + t] = 0;
      forced[s * T + t] = std::max(0, between(random, -4, int(K) + 1));
    }
    sampling[s * 2] = float(between(random, 0, 1));
    sampling[s * 2 + 1] = between(random, 0, 1) ? 1.f : 0.8f;
    *std::find(order.begin(), order.end(), -1) = s;
  }

  bool advance() {
    std::vector<std::int32_t> edge;
    if (fixed) fresh.clear();
    const Tensor inputs[] = {view(rows, {row_count(), 4}), view(fresh, {std::int64_t(fresh.size())}), view(edge, {0}),
                             view(sequences, {B, 8}), view(tokens, {B, T}), view(forced, {B, T}),
                             view(slots, {B, K, T}), view(free_slots, {N}), view(order, {B}), view(control, {4}),
                             view(counters, {8})};
    AdvanceCall call;
    const bool runs_on = !rules.skip_halted || rules.readout == kFinal;
    if (!bind_advance(inputs, {K, runs_on, token_major, fixed, jacobi}, &call, &message)) return false;
    std::vector<char> scratch(advance_bytes(call));
    if (!plan_advance(&call, scratch.data(), &message)) return false;
    const std::int64_t row_total = fixed ? call.row_count : call.row_total;
    std::vector<std::int32_t> all(row_total * kRowColumns), started(fixed ? call.row_count : call.fresh_total);
    write_advance(call, all.data(), started.data(), &again);
    rows = all;
    fresh = started;
    return true;
  }

  // What a model would compute: the same numbers for a row whatever runs beside it, NaN for dead rows.
  std::vector<float> imagine(unsigned seed, const std::vector<std::int32_t>& of, std::int64_t width) const {
    std::vector<float> numbers(of.size() / kRowColumns * width, std::nanf(""));
    for (std::size_t i = 0; i < of.size() / kRowColumns; ++i) {
      const std::int32_t* row = of.data() + i * kRowColumns;
      if (fixed && row[kRowSequence] < 0) continue;
      Random random(((seed * 31 + unsigned(row[0])) * 31 + unsigned(row[1])) * 31 + unsigned(row[2]));
      for (std::int64_t d = 0; d < width; ++d) numbers[i * width + d] = normal(random);
    }
    return numbers;
  }

  void think(unsigned seed) {
    z = imagine(seed, rows, kHidden);
    gates = imagine(seed + 1, rows, gate_columns());
    for (std::int64_t i = 0; fixed && i < row_count(); ++i) {
      if (!is_dead(rows.data(), i) && rows[i * kRowColumns + kRowStep] != 1) continue;
      reach[i] = std::nanf("");  // not to be read
      std::fill_n(mix.begin() + i * kHidden, kHidden, std::nanf(""));
    }
  }

  bool halt() {
    const std::int64_t r = row_count(), c = std::int64_t(reach.size());
    const Tensor inputs[] = {view(z, {r, kHidden}), view(gates, {r, gate_columns()}),
                             view(rows, {r, 4}), view(reach, {c}), view(mix, {c, kHidden}), view(sequences, {B, 8}),
                             view(depths, {B, T}), view(forced, {B, T}), view(record, {B, P, kVocabulary}),
                             view(counters, {8}), view(z, {r, kHidden}), view(z, {r, kHidden}),
                             view(weights, {B, T, K})};
    HaltCall call;
    if (!bind_halt(inputs, rules, &call, &message)) return false;
    std::vector<char> scratch(halt_bytes(call));
    if (!plan_halt(&call, scratch.data(), &message)) return false;
    const std::int64_t going_on = fixed ? r : call.going_on, heads = fixed ? r : call.head_count;
    next_rows.resize(going_on * kRowColumns);
    head_rows.resize(heads * kRowColumns);
    std::vector<float> next(going_on * kHidden), next_reach(going_on), next_mix(going_on * kHidden);
    head_mix.assign(heads * kHidden, std::nanf(""));
    head_index.assign(heads, -1);
    for (std::vector<float>* all : {&next, &next_reach, &next_mix}) std::fill(all->begin(), all->end(), std::nanf(""));
    const HaltOutputs out = {next_rows.data(), next.data(),      next_reach.data(),
                             next_mix.data(),  head_rows.data(), head_mix.data(),
                             head_index.data()};
    write_halt(call, out);
    for (std::int64_t i = 0; i < r; ++i) write_halt_vectors(call, out, i);
    latent = next, reach = next_reach, mix = next_mix;
    return true;
  }

  bool choose(unsigned seed) {
    const std::int64_t h = std::int64_t(head_rows.size()) / kRowColumns;
    logits = imagine(seed + 2, head_rows, kVocabulary);
    const Tensor inputs[] = {view(logits, {h, kVocabulary}), view(head_rows, {h, 4}), view(sequences, {B, 8}),
                             view(sampling, {B, 2}), view(tokens, {B, T}), view(uniform, {B, T}), view(stops, {B, 1}),
                             view(record, {B, P, kVocabulary}), view(counters, {kCounterEntries})};
    ChooseCall call;
    if (!bind_choose(inputs, &call, &message, fixed) || !plan_choose(&call, &message)) return false;
    const ChooseKernels& kernels = best_kernels().choose;
    std::vector<char> workspace(kernels.bytes(kVocabulary, call.greedy));
    chosen.resize(h);
    for (std::int64_t i = 0; i < h; ++i) chosen[i] = choose_one(call, kernels, i, workspace.data());
    return write_choose(call, chosen.data(), &message);
  }

  // Every slot is free or stands in one cell.
  bool slots_have_one_owner() const {
    std::vector<int> owners(N);
    for (std::int64_t i = 0; i < counters[kFreeSlots]; ++i) ++owners[free_slots[i]];
    for (const std::int32_t slot : slots)
      if (slot >= 0) ++owners[slot];
    return std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; });
  }
};

}  // namespace latentcot::tests
