// The state machine (RaggedHalt, ChooseToken, RaggedAdvance) without a framework: sequences run to their end on any mix
// of schedules, damaged tables are refused or do no harm, and every instruction set chooses what sorting would.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "engine.hpp"

using namespace latentcot;
using namespace latentcot::tests;

namespace {

void sequences_end(Random& random) {
  const int places = between(random, 1, 5), positions = between(random, 1, 20), steps = between(random, 1, 5);
  Engine engine(places, positions, steps, places * positions * steps, between(random, 0, positions));
  engine.draw_rules(random);
  engine.control = {between(random, 1, 30), between(random, 1, 8), between(random, 0, 4) == 0, between(random, 0, 1)};
  for (int s = 0; s < places; ++s) engine.admit(random, s);
  int passes = 0;
  const unsigned seed = random();
  CHECK(engine.advance(), "%s", engine.message.text);
  for (; engine.row_count() > 0 && passes < 10000; ++passes) {
    engine.think(seed);
    CHECK(engine.halt(), "%s", engine.message.text);
    CHECK(engine.choose(seed), "%s", engine.message.text);
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
  if (between(random, 0, 1)) engine.fix(between(random, 1, 20));
  for (int s = 0; s < 2; ++s) engine.admit(random, s);
  engine.advance();
  std::vector<std::int32_t>* tables[] = {&engine.control, &engine.order, &engine.sequences, &engine.tokens,
                                         &engine.depths, &engine.forced, &engine.stops, &engine.slots,
                                         &engine.free_slots, &engine.rows, &engine.fresh, &engine.head_rows};
  const std::int32_t wild[] = {INT_MIN, -8, -2, -1, 0, 1, 2, 3, 7, 8, 9, 39, 40, 41, INT_MAX};
  for (int pass = 0; pass < 12 && engine.live() > 0; ++pass) {
    engine.think(random());
    for (int op = 0; op < 3; ++op) {
      std::vector<std::int32_t>& table = *tables[between(random, 0, 11)];
      if (!table.empty() && between(random, 0, 2) == 0)
        table[between(random, 0, int(table.size()) - 1)] = wild[between(random, 0, 14)];
      if (between(random, 0, 9) == 0)
        engine.counters[between(random, 0, 7)] = between(random, 0, 1) ? LLONG_MAX : LLONG_MIN;
      if (op == 2) engine.rows = engine.next_rows, engine.fresh.clear();
      const auto before = engine.bytes();
      const bool good = op == 0 ? engine.halt() : op == 1 ? engine.choose(random()) : engine.advance();
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
