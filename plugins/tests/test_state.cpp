// The state machine (RaggedHalt, ChooseToken, RaggedAdvance) without a framework: sequences run to their end on any mix
// of schedules, damaged tables are refused or do no harm, and every instruction set chooses what sorting would.
//
// Meant for AddressSanitizer and UBSan: every table is a heap block of exactly its size.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <random>
#include <type_traits>
#include <vector>

#include "../kernels/kernel_table.hpp"
#include "../kernels/ragged_advance_plan.hpp"
#include "../kernels/ragged_halt_plan.hpp"
#include "check.hpp"

using namespace latentcot;

namespace {

using Random = std::mt19937;
int between(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
float normal(Random& random) { return std::normal_distribution<float>()(random); }

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
  std::vector<float> sampling, uniform, record, latent, reach, mix, z, gates, logits, weights;
  HaltRules rules{};
  bool token_major = false, jacobi = false;
  std::vector<std::int64_t> counters;
  std::vector<std::int32_t> next_rows, head_rows, chosen;
  Message message;
  bool again = false;

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
    const Tensor inputs[] = {view(rows, {row_count(), 4}), view(fresh, {std::int64_t(fresh.size())}), view(edge, {0}),
                             view(sequences, {B, 8}), view(tokens, {B, T}), view(forced, {B, T}),
                             view(slots, {B, K, T}), view(free_slots, {N}), view(order, {B}), view(control, {4}),
                             view(counters, {8})};
    AdvanceCall call;
    AdvanceRules asked{K, !rules.skip_halted || rules.readout == kFinal, token_major};
    asked.jacobi = jacobi;
    if (!bind_advance(inputs, asked, &call, &message)) return false;
    std::vector<char> scratch(advance_bytes(call));
    if (!plan_advance(&call, scratch.data(), &message)) return false;
    std::vector<std::int32_t> all(call.row_total * kRowColumns), started(call.fresh_total);
    write_advance(call, all.data(), started.data(), &again);
    rows = all;
    fresh = started;
    return true;
  }

  void imagine(Random& random) {
    z.resize(row_count() * kHidden);
    gates.resize(row_count() * gate_columns());
    for (float& x : z) x = normal(random);
    for (float& x : gates) x = 2 * normal(random);
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
    next_rows.resize(call.going_on * kRowColumns);
    head_rows.resize(call.head_count * kRowColumns);
    std::vector<float> next(call.going_on * kHidden), next_reach(call.going_on), next_mix(call.going_on * kHidden);
    std::vector<float> head(call.head_count * kHidden);
    std::vector<std::int64_t> index(call.head_count);
    const HaltOutputs out = {next_rows.data(), next.data(),      next_reach.data(),
                             next_mix.data(),  head_rows.data(), head.data(),
                             index.data()};
    write_halt(call, out);
    for (std::int64_t i = 0; i < r; ++i) write_halt_vectors(call, out, i);
    latent = next, reach = next_reach, mix = next_mix;
    return true;
  }

  bool choose(Random& random) {
    const std::int64_t h = std::int64_t(head_rows.size()) / kRowColumns;
    logits.resize(h * kVocabulary);
    for (float& x : logits) x = normal(random);
    const Tensor inputs[] = {view(logits, {h, kVocabulary}), view(head_rows, {h, 4}), view(sequences, {B, 8}),
                             view(sampling, {B, 2}), view(tokens, {B, T}), view(uniform, {B, T}), view(stops, {B, 1}),
                             view(record, {B, P, kVocabulary})};
    ChooseCall call;
    if (!bind_choose(inputs, &call, &message) || !plan_choose(&call, &message)) return false;
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

void sequences_end(Random& random) {
  const int places = between(random, 1, 5), positions = between(random, 1, 20), steps = between(random, 1, 5);
  Engine engine(places, positions, steps, places * positions * steps, between(random, 0, positions));
  engine.draw_rules(random);
  engine.control = {between(random, 1, 30), between(random, 1, 8), between(random, 0, 4) == 0, between(random, 0, 1)};
  for (int s = 0; s < places; ++s) engine.admit(random, s);
  int passes = 0;
  CHECK(engine.advance(), "%s", engine.message.text);
  for (; engine.row_count() > 0 && passes < 10000; ++passes) {
    engine.imagine(random);
    CHECK(engine.halt(), "%s", engine.message.text);
    CHECK(engine.choose(random), "%s", engine.message.text);
    engine.rows = engine.next_rows;
    engine.fresh.clear();
    CHECK(engine.advance(), "%s", engine.message.text);
    if (failures) return;
    CHECK(engine.slots_have_one_owner(), "pass %d", passes);
  }
  CHECK(engine.counters[kFinished] == places, "%d of %d", int(engine.counters[kFinished]), places);
  CHECK(engine.counters[kFreeSlots] == engine.N && engine.counters[kPasses] == passes, "%d", passes);
}

// One number of one table is replaced by a wild one: refused without a trace, or accepted and harmless.
void damage_is_refused_or_harmless(Random& random) {
  Engine engine(3, 8, 3, 40, 2);
  engine.draw_rules(random);
  for (int s = 0; s < 2; ++s) engine.admit(random, s);
  engine.advance();
  std::vector<std::int32_t>* tables[] = {&engine.control, &engine.order, &engine.sequences, &engine.tokens,
                                         &engine.depths, &engine.forced, &engine.stops, &engine.slots,
                                         &engine.free_slots, &engine.rows, &engine.fresh, &engine.head_rows};
  const std::int32_t wild[] = {INT_MIN, -8, -2, -1, 0, 1, 2, 3, 7, 8, 9, 39, 40, 41, INT_MAX};
  for (int pass = 0; pass < 12 && engine.row_count() > 0; ++pass) {
    engine.imagine(random);
    for (int op = 0; op < 3; ++op) {
      std::vector<std::int32_t>& table = *tables[between(random, 0, 11)];
      if (!table.empty() && between(random, 0, 2) == 0)
        table[between(random, 0, int(table.size()) - 1)] = wild[between(random, 0, 14)];
      if (between(random, 0, 9) == 0)
        engine.counters[between(random, 0, 7)] = between(random, 0, 1) ? LLONG_MAX : LLONG_MIN;
      if (op == 2) engine.rows = engine.next_rows, engine.fresh.clear();
      const auto before = engine.bytes();
      const bool good = op == 0 ? engine.halt() : op == 1 ? engine.choose(random) : engine.advance();
      if (good) continue;
      CHECK(engine.bytes() == before, "%s", engine.message.text);
      const char* text = engine.message.text;
      CHECK(std::strchr(text, ':') && text[std::strlen(text) - 1] == '.', "no sentence: %s", text);
      return;
    }
  }
}

// The id that the definition gives in float64 by sorting; -1 where float32 may rightly differ.
std::int32_t by_sorting(const std::vector<float>& logits, const Choice& choice) {
  const float most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights, sorted;
  for (const float x : logits) weights.push_back(std::exp((double(x) - most) / choice.temperature));
  const auto keep_from = [&](double floor) {
    for (double& w : weights) w = w >= floor ? w : 0;
    sorted = weights;
    std::sort(sorted.rbegin(), sorted.rend());
  };
  keep_from(0);
  if (choice.top_k > 0 && choice.top_k < int(sorted.size())) keep_from(sorted[choice.top_k - 1]);
  double total = 0, running = 0;
  for (const double w : sorted) total += w;
  if (choice.top_p < 1) {
    std::size_t i = 0;
    for (; i < sorted.size(); ++i) {
      running += sorted[i];
      if (std::fabs(running / total - choice.top_p) < 1e-5) return -1;
      if (running >= choice.top_p * total) break;
    }
    keep_from(sorted[std::min(i, sorted.size() - 1)]);
    total = running = 0;
    for (const double w : sorted) total += w;
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    running += weights[i];
    if (std::fabs(running / total - choice.uniform) < 1e-5) return -1;
    if (running > choice.uniform * total) return std::int32_t(i);
  }
  return -1;
}

void choices_equal_sorting(Random& random, const KernelTable& kernels) {
  const int sizes[] = {1, 2, 15, 16, 17, 255, 256, 257, 1500, 9001}, ks[] = {0, 1, 2, 30, 60, 500};
  std::vector<float> logits(sizes[between(random, 0, 9)]);
  const float grid = between(random, 0, 1) ? 0.5f : 1e-6f;
  for (float& x : logits) x = std::round(normal(random) * 4 / grid) * grid;
  const Choice greedy = {0, 1, 0, 0};
  const std::int64_t size = std::int64_t(logits.size());
  const auto largest = std::max_element(logits.begin(), logits.end()) - logits.begin();
  CHECK(kernels.choose.choose(logits.data(), size, greedy, nullptr) == largest, "%s", kernels.name);
  const Choice choice = {between(random, 0, 1) ? 1.f : 0.3f, between(random, 0, 1) ? 1.f : 0.9f,
                         float(between(random, 0, (1 << 24) - 1)) / (1 << 24), ks[between(random, 0, 5)]};
  std::vector<char> workspace(kernels.choose.bytes(size, false));
  const std::int32_t wanted = by_sorting(logits, choice);
  const std::int32_t found = kernels.choose.choose(logits.data(), size, choice, workspace.data());
  CHECK(wanted < 0 || found == wanted, "%s: %d instead of %d of %zu", kernels.name, found, wanted, logits.size());
}

void messages() {
  Message message;
  message.begin("Op", "input", 1, 2) << " is " << INT64_MIN << " or " << -0.25 << " or " << 1e300 << " or " << NAN;
  const char* wanted = "Op: input[1, 2] is -9223372036854775808 or -0.250000 or above 1e15 or not a number";
  CHECK(!std::strcmp(message.text, wanted), "%s", message.text);
  for (int i = 0; i < 1000; ++i) message << "too long ";
  CHECK(std::strlen(message.text) == sizeof(message.text) - 1, "%zu", std::strlen(message.text));
}

}  // namespace

int main() {
  messages();
  for (unsigned seed = 0; seed < 300 && !failures; ++seed) {
    Random random(seed);
    sequences_end(random);
    for (int i = 0; i < 20; ++i) damage_is_refused_or_harmless(random);
    for (const char* name : {"portable", "avx2", "avx512"})
      if (const KernelTable* kernels = kernels_named(name)) choices_equal_sorting(random, *kernels);
  }
  std::printf("state: %d failures\n", failures);
  return failures ? 1 : 0;
}
