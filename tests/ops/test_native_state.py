"""The three state ops in turn, pass after pass, against their references on a second copy of every table.

What a model would compute is a function of (sequence number, position, step) here, so that results may also be compared
between schedules.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_choose import packed_choose
from latentcot_export.ops.packed_halt import packed_halt
from latentcot_export.ops.packed_tables import (
    CHOOSE_TOKEN,
    RAGGED_ADVANCE,
    RAGGED_HALT,
    Column,
    Counter,
    OpSignature,
    Status,
)
from latentcot_export.spec import READOUTS, STOPS
from tests.ops.native import admit, assert_same, copied, empty_tables, run

HIDDEN, VOCABULARY, POSITIONS = 3, 7, 24
NONE = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which rules, and whether the graph gives RaggedHalt the next input."""

    stop: str = "reach"
    readout: str = "mixture"
    skip_halted: bool = True
    replaced: bool = False
    token_major: bool = False

    @property
    def runs_on(self) -> bool:
        return not self.skip_halted or self.readout == "final"

    @property
    def inputs(self) -> set[str]:
        return ({"next_input"} if self.replaced else set()) | ({"x"} if self.readout == "final" else set())

    def numbers(self) -> dict[str, int]:
        rules = {"stop": STOPS.index(self.stop), "readout": READOUTS.index(self.readout)}
        return {**rules, "skip_halted": int(self.skip_halted)}


RULES = st.builds(Rules, st.sampled_from(STOPS), st.sampled_from(READOUTS), *[st.booleans()] * 3)


@dataclasses.dataclass
class Sequence:
    number: int
    prompt: np.ndarray
    end: int


def leave(tables: dict[str, np.ndarray], place: int) -> None:
    """Takes a place out of the order of admission."""
    order = tables["order"]
    kept = order[(order >= 0) & (order != place)]
    order[:] = -1
    order[: len(kept)] = kept


class Simulation:
    """Some places that many sequences pass through."""

    def __init__(
        self, random: np.random.Generator, max_steps: int, tau: float, places: int, slots: int, rules: Rules
    ) -> None:
        self.random, self.max_steps, self.tau, self.rules = random, max_steps, tau, rules
        self.found = empty_tables(places, POSITIONS, max_steps, slots, VOCABULARY, recorded=int(random.choice((0, 9))))
        self.found["stop_tokens"][:] = 6
        if rules.stop == "tail":
            self.found["weights"] = np.full((places, POSITIONS, max_steps), np.nan, np.float32)
        self.wanted = copied(self.found)
        self.at: dict[int, Sequence] = {}
        self.seed = int(random.integers(1 << 30))
        self.passes = 0
        self.results: dict[int, tuple[list[int], list[int]]] = {}
        self.rows, self.fresh = np.zeros((0, 4), np.int32), NONE
        self.latent, self.reach, self.mix = (np.zeros(shape, np.float32) for shape in ((0, HIDDEN), (0,), (0, HIDDEN)))

    def numbers(self, row: np.ndarray, count: int, what: int) -> np.ndarray:
        """Normal numbers of a row, the same whatever runs beside it."""
        key = (self.seed, self.at[int(row[0])].number, int(row[1]), int(row[2]), what)
        return np.random.default_rng(key).standard_normal(count).astype(np.float32)

    def stacked(self, rows: np.ndarray, count: int, what: int, scale: float = 1.0) -> np.ndarray:
        values = [self.numbers(row, count, what) * np.float32(scale) for row in rows]
        return np.array(values, np.float32).reshape(-1, count)

    def admit(self, place: int, sequence: Sequence) -> None:
        self.at[place] = sequence
        forced = np.random.default_rng((self.seed, sequence.number)).integers(-6, self.max_steps + 2, POSITIONS)
        for tables in (self.found, self.wanted):
            leave(tables, place)  # what is done stays in the order until its place is needed
            admit(tables, place, sequence.prompt, sequence.end)
            tables["forced_depth"][place] = forced.clip(0)

    def native(
        self, op: OpSignature, inputs: dict[str, np.ndarray], attributes: dict[str, float] | None = None
    ) -> list[np.ndarray]:
        """The op that is on trial."""
        return run(op, inputs, attributes)

    def reference_advance(self, rows: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        rules = self.rules
        return packed_advance(
            rows, fresh, self.wanted, max_steps=self.max_steps, runs_on=rules.runs_on, token_major=rules.token_major
        )

    def advance(self, rows: np.ndarray, fresh: np.ndarray, chosen: np.ndarray) -> bool:
        attributes: dict[str, float] = {"max_steps": self.max_steps, "runs_on": int(self.rules.runs_on)}
        attributes["token_major"] = int(self.rules.token_major)
        inputs = {**self.found, "rows": rows, "fresh": fresh, "chosen": chosen}
        self.rows, self.fresh, again = self.native(RAGGED_ADVANCE, inputs, attributes)
        rows, fresh, wanted_again = self.reference_advance(rows, fresh)
        np.testing.assert_array_equal(self.rows, rows)
        np.testing.assert_array_equal(self.fresh, fresh)
        assert bool(again) == wanted_again
        assert_same(self.found, self.wanted)
        return wanted_again

    def think(self) -> tuple[np.ndarray, np.ndarray]:
        """A pass without its RaggedAdvance: rows that go on, and what was chosen."""
        rows = self.rows
        self.check_wavefront()
        z = self.stacked(rows, HIDDEN, 0)
        rules = self.rules
        columns = self.max_steps if rules.stop == "tail" else max(1, self.max_steps - 1)
        gate_logits = self.stacked(rows, columns, 1, 3.0)
        inputs = {**self.found, "z": z, "rows": rows, "reach": self.reach, "mix": self.mix, "gate_logits": gate_logits}
        given = {"next_input": self.stacked(rows, HIDDEN, 3), "x": self.stacked(rows, HIDDEN, 4)}
        given = {name: value for name, value in given.items() if name in rules.inputs}
        attributes = {"tau": self.tau, "max_steps": self.max_steps, **rules.numbers()}
        found = self.native(RAGGED_HALT, {**inputs, **given}, attributes)
        wanted = packed_halt(
            z,
            gate_logits,
            rows,
            self.reach,
            self.mix,
            self.wanted,
            tau=self.tau,
            max_steps=self.max_steps,
            stop=rules.stop,
            readout=rules.readout,
            skip_halted=rules.skip_halted,
            **given,
        )
        assume(wanted.decided > 1e-5)
        for name, value in zip(RAGGED_HALT.outputs, found, strict=True):
            np.testing.assert_allclose(value, getattr(wanted, name), rtol=1e-5, atol=1e-5, err_msg=name)
        next_rows, self.latent, self.reach, self.mix, head_rows, _, _ = found
        logits = self.stacked(head_rows, VOCABULARY, 2, 4.0)
        inputs = {**self.found, "record": self.found["logits"], "logits": logits, "rows": head_rows}
        chosen = self.native(CHOOSE_TOKEN, inputs)[0]
        np.testing.assert_array_equal(chosen, packed_choose(logits, head_rows, self.wanted))
        if rules.stop == "tail":  # a sum of exponentials may differ in its last bits
            np.testing.assert_allclose(self.found["weights"], self.wanted["weights"], rtol=1e-6, atol=1e-12)
            self.wanted["weights"][:] = self.found["weights"]
        assert_same(self.found, self.wanted)
        self.passes += 1
        return next_rows, chosen

    def burst(self, most: int) -> None:
        """Up to `most` passes, as a Loop runs them: while rows live and nothing is to be told."""
        again = self.advance(self.rows, self.fresh, NONE)
        for _ in range(most):
            if not again:
                break
            next_rows, chosen = self.think()
            again = self.advance(next_rows, NONE, chosen)

    def check_wavefront(self) -> None:
        """A row (t, k) runs with or after step k of every earlier token that reaches it."""
        for place, position, step, _ in self.rows.tolist():
            earlier = self.rows[(self.rows[:, 0] == place) & (self.rows[:, 1] < position)]
            assert (earlier[:, 2] >= step).all()
            halted = np.setdiff1d(np.arange(position), earlier[:, 1])
            assert (self.found["depths"][place, halted] > 0).all()

    def collect(self) -> None:
        """Takes what is done out of its place."""
        for place, sequence in list(self.at.items()):
            row = self.found["sequences"][place]
            if row[Column.STATUS] == Status.DONE:
                length, run_positions = int(row[Column.LENGTH]), int(row[Column.NEXT_POSITION])
                depths = self.found["depths"][place, :run_positions]
                assert (depths > 0).all() and (self.found["slots"][place] == -1).all()
                assert row[Column.STOPPED] or run_positions == sequence.end
                self.results[sequence.number] = (self.found["tokens"][place, :length].tolist(), depths.tolist())
                for tables in (self.found, self.wanted):
                    tables["sequences"][place, Column.STATUS] = Status.EMPTY
                del self.at[place]

    def preempt(self) -> Sequence:
        """Takes the last admitted sequence out of its place, its slots back; nothing runs when this is called."""
        place = [place for place in self.found["order"].tolist() if place in self.at][-1]
        for tables in (self.found, self.wanted):
            held = tables["slots"][place]
            slots, free = held[held >= 0], tables["counters"][Counter.FREE_SLOTS]
            tables["free_slots"][free : free + len(slots)] = slots
            tables["counters"][Counter.FREE_SLOTS] += len(slots)
            held[:] = -1
            tables["sequences"][place, Column.STATUS] = Status.EMPTY
            leave(tables, place)
        return self.at.pop(place)

    def run(self, sequences: list[Sequence]) -> int:
        """All of them, admitted at random times, in bursts of random length; how many times a pool was exhausted."""
        waiting = list(sequences)
        preempted, crowded = 0, False
        for _ in range(2000):
            for place in range(len(self.found["order"])):
                if waiting and place not in self.at and not crowded and self.random.random() < 0.5:
                    self.admit(place, waiting.pop(0))
            self.burst(int(self.random.integers(1, 9)))
            self.collect()
            if self.found["counters"][Counter.STALLED]:
                assert len(self.rows) == 0 and len(self.at) > 1  # one alone always fits
                waiting.insert(0, self.preempt())
                preempted += 1
                crowded = True
            elif len(self.at) <= 1:
                crowded = False
            for tables in (self.found, self.wanted):
                tables["counters"][Counter.FINISHED] = 0
            if not waiting and not self.at:
                return preempted
        raise AssertionError("the sequences never end")


def sequences(random: np.random.Generator, count: int) -> list[Sequence]:
    made = []
    for number in range(count):
        prompt = random.integers(0, 6, random.integers(1, 15))
        made.append(Sequence(number, prompt, int(random.integers(len(prompt), POSITIONS + 1))))
    return made


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.sampled_from((0.0, 1e-3, 0.3, 1.0)), st.integers(1, 4), RULES)
def test_many_passes(seed: int, max_steps: int, tau: float, places: int, rules: Rules) -> None:
    random = np.random.default_rng(seed)
    work = sequences(random, int(random.integers(1, 7)))
    least = max_steps * POSITIONS  # one sequence at its deepest
    simulation = Simulation(random, max_steps, tau, places, least + int(random.integers(0, 5)), rules)
    control = simulation.found["control"]
    control[:] = random.choice((1, 4, 100)), random.choice((1, 3, 100)), random.random() < 0.2, random.random() < 0.3
    simulation.wanted["control"][:] = control
    preempted = simulation.run(work)
    event(f"passes {simulation.passes // 50 * 50}")
    event(f"preempted {preempted > 0}")
    counters = simulation.found["counters"]
    assert counters[Counter.FREE_SLOTS] == len(simulation.found["free_slots"]) and counters[Counter.RESERVED] == 0
    assert sorted(simulation.found["free_slots"]) == list(range(len(simulation.found["free_slots"])))
    # alone and one at a time, in any schedule: the same tokens and depths
    alone = Simulation(np.random.default_rng(seed + 1), max_steps, tau, 1, least, rules)
    alone.seed = simulation.seed
    alone.run(work)
    assert alone.results == simulation.results
