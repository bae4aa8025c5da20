// The fixed form of the state machine: pass by pass it leaves in every table what the dynamic form does, whatever stands at
// dead rows; with fewer rows than want to start they wait, and every sequence ends as it would have.
#include <cstring>

#include "check.hpp"
#include "engine.hpp"

using namespace latentcot;
using namespace latentcot::tests;

namespace {

// An engine with sequences in all its places, under any rules and schedule.
Engine drawn(Random& random) {
  const int places = between(random, 1, 5), positions = between(random, 1, 16), steps = between(random, 1, 5);
  // sometimes slots run short, but not for one sequence at its deepest
  const int slots = between(random, 0, 1) ? places * positions * steps : positions * steps + between(random, 0, 9);
  Engine engine(places, positions, steps, slots, between(random, 0, positions));
  engine.draw_rules(random);
  engine.control = {between(random, 1, 30), between(random, 1, 8), between(random, 0, 4) == 0, between(random, 0, 1)};
  for (int s = 0; s < places; ++s) engine.admit(random, s);
  return engine;
}

template <class T>
bool same(const std::vector<T>& some, const std::vector<T>& fixed, T filler) {
  std::vector<T> wanted = some;
  wanted.resize(fixed.size(), filler);
  // memcmp: 0 and -0 differ, as do the bits of what only looks the same
  return fixed.size() >= some.size() && !std::memcmp(wanted.data(), fixed.data(), sizeof(T) * fixed.size());
}

bool tables_agree(Engine& one, Engine& other) { return one.bytes() == other.bytes() && one.again == other.again; }

void forms_agree(Random& random) {
  Engine dynamic = drawn(random), fixed = dynamic;
  fixed.fix(dynamic.B * dynamic.T + between(random, 0, 3));
  const unsigned seed = random();
  for (int pass = 0; pass < 10000; ++pass) {
    CHECK(dynamic.advance() && fixed.advance(), "%s", fixed.message.text);
    CHECK(tables_agree(dynamic, fixed) && same(dynamic.rows, fixed.rows, kDead), "pass %d", pass);
    for (std::int64_t i = 0; i < fixed.row_count(); ++i) {
      const std::int64_t first = dynamic.row_count() - std::int64_t(dynamic.fresh.size());
      const std::int32_t token = i >= first && i < dynamic.row_count() ? dynamic.fresh[i - first] : 0;
      CHECK(fixed.fresh[i] == token, "pass %d, row %d: %d instead of %d", pass, int(i), fixed.fresh[i], token);
    }
    if (dynamic.row_count() == 0) return;
    dynamic.think(seed), fixed.think(seed);
    CHECK(dynamic.halt() && fixed.halt(), "%s", fixed.message.text);
    CHECK(same(dynamic.next_rows, fixed.next_rows, kDead) && same(dynamic.reach, fixed.reach, 0.0f) &&
            same(dynamic.latent, fixed.latent, 0.0f) && same(dynamic.mix, fixed.mix, 0.0f) &&
            same(dynamic.head_rows, fixed.head_rows, kDead) && same(dynamic.head_mix, fixed.head_mix, 0.0f) &&
            same(dynamic.head_index, fixed.head_index, std::int64_t{0}),
          "pass %d", pass);
    CHECK(dynamic.choose(seed) && fixed.choose(seed), "%s", fixed.message.text);
    CHECK(same(dynamic.chosen, fixed.chosen, std::int32_t{-1}) && tables_agree(dynamic, fixed), "pass %d", pass);
    dynamic.rows = dynamic.next_rows, fixed.rows = fixed.next_rows;
    dynamic.fresh.clear();
    if (failures) return;
  }
}

void run(Engine& engine, unsigned seed) {
  CHECK(engine.advance(), "%s", engine.message.text);
  while (engine.live() > 0 && !failures) {
    engine.think(seed);
    CHECK(engine.halt() && engine.choose(seed), "%s", engine.message.text);
    engine.rows = engine.next_rows;
    engine.fresh.clear();
    CHECK(engine.advance(), "%s", engine.message.text);
    CHECK(engine.slots_have_one_owner(), "%s", engine.message.text);
  }
}

void what_does_not_fit_waits(Random& random) {
  Engine dynamic = drawn(random), fixed = dynamic;
  fixed.fix(between(random, 1, 7));
  const unsigned seed = random();
  run(dynamic, seed), run(fixed, seed);
  if (dynamic.counters[kStalled] || fixed.counters[kStalled]) return;  // the host would preempt a sequence
  CHECK(dynamic.tokens == fixed.tokens && dynamic.depths == fixed.depths, "%d rows", int(fixed.row_count()));
  CHECK(fixed.counters[kFinished] == fixed.B && fixed.counters[kFreeSlots] == fixed.N, "%d rows", int(fixed.row_count()));
}

void a_live_row_behind_a_dead_one_is_refused(Random& random) {
  Engine engine = drawn(random);
  engine.fix(4);
  engine.advance();
  engine.think(1);
  std::memmove(engine.rows.data() + kRowColumns, engine.rows.data(), 3 * kRowColumns * sizeof(std::int32_t));
  write_dead(engine.rows.data(), 0, 1);
  engine.head_rows = engine.rows;
  for (int op = 0; op < 3; ++op) {
    const auto before = engine.bytes();
    const bool good = op == 0 ? engine.choose(1) : op == 1 ? engine.halt() : engine.advance();
    CHECK(!good && std::strstr(engine.message.text, "but rows[0] before it is dead"), "%s", engine.message.text);
    CHECK(engine.bytes() == before, "op %d", op);
  }
}

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 400 && !failures; ++seed) {
    Random random(seed);
    forms_agree(random);
    what_does_not_fit_waits(random);
    a_live_row_behind_a_dead_one_is_refused(random);
  }
  std::printf("fixed: %d failures\n", failures);
  return failures ? 1 : 0;
}
