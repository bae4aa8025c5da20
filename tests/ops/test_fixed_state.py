"""The state ops of the fixed form in turn, RaggedAdvance first as a GPU runs them, against the dynamic references."""

from __future__ import annotations

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_tables import DEAD, Counter, OpSignature, padded
from tests.ops.fixed import run_fixed, stripped
from tests.ops.test_native_state import NONE, POSITIONS, RULES, Rules, Simulation, sequences


class FixedSimulation(Simulation):
    """Passes of `capacity` rows; `roomy`: so many that it never holds a token back, and the oracle knows none."""

    capacity = 0
    roomy = True
    waited = 0

    def native(
        self, op: OpSignature, inputs: dict[str, np.ndarray], attributes: dict[str, float] | None = None
    ) -> list[np.ndarray]:
        return run_fixed(op, inputs, attributes, self.capacity)

    def reference_advance(self, rows: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        if self.roomy:
            return super().reference_advance(rows, fresh)
        rows, fresh, again = packed_advance(
            padded(rows, self.capacity, DEAD),
            fresh,
            self.wanted,
            max_steps=self.max_steps,
            runs_on=self.rules.runs_on,
            token_major=self.rules.token_major,
            fixed=True,
        )
        self.waited += bool((rows >= 0).all())
        rows, fresh = stripped(rows, fresh)
        return rows, fresh[rows[:, 2] == 1], again

    def burst(self, most: int) -> None:
        """Exactly `most` passes: no host decides in between, whatever `again` says."""
        for _ in range(most):
            self.advance(self.rows, NONE, NONE)
            self.rows, _ = self.think()


def simulate(
    seed: int,
    max_steps: int,
    tau: float,
    places: int,
    rules: Rules,
    capacity: int | None,
    kind: type[FixedSimulation] = FixedSimulation,
) -> None:
    random = np.random.default_rng(seed)
    work = sequences(random, int(random.integers(1, 7)))
    least = max_steps * POSITIONS  # one sequence at its deepest
    simulation = kind(random, max_steps, tau, places, least + int(random.integers(0, 5)), rules)
    simulation.roomy = capacity is None
    simulation.capacity = places * POSITIONS if capacity is None else capacity
    control = simulation.found["control"]
    control[:] = random.choice((1, 4, 100)), random.choice((1, 3, 100)), random.random() < 0.2, random.random() < 0.3
    simulation.wanted["control"][:] = control
    preempted = simulation.run(work)
    event(f"preempted {preempted > 0}")
    event(f"every row was live {simulation.waited > 0}")
    counters = simulation.found["counters"]
    assert counters[Counter.FREE_SLOTS] == len(simulation.found["free_slots"]) and counters[Counter.RESERVED] == 0
    # in the dynamic form, alone and one at a time: the same tokens and depths
    alone = Simulation(np.random.default_rng(seed + 1), max_steps, tau, 1, least, rules)
    alone.seed = simulation.seed
    alone.run(work)
    assert alone.results == simulation.results


CASES = (st.integers(0, 1 << 30), st.integers(1, 5), st.sampled_from((0.0, 1e-3, 0.3, 1.0)), st.integers(1, 4), RULES)


@settings(max_examples=60, deadline=None)
@given(*CASES)
def test_every_pass_leaves_what_the_dynamic_form_leaves(
    seed: int, max_steps: int, tau: float, places: int, rules: Rules
) -> None:
    simulate(seed, max_steps, tau, places, rules, None)


@settings(max_examples=60, deadline=None)
@given(*CASES, st.integers(1, 9))
def test_what_finds_no_row_waits(
    seed: int, max_steps: int, tau: float, places: int, rules: Rules, capacity: int
) -> None:
    simulate(seed, max_steps, tau, places, rules, capacity)
