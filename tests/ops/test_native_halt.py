"""The native RaggedHalt equals its reference; ties, small gates and forced depths are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_halt import packed_halt
from latentcot_export.ops.packed_tables import RAGGED_HALT, Column, Counter
from tests.ops.native import admit, assert_same, copied, empty_tables, random_state, run

OUTPUTS = RAGGED_HALT.outputs


def halt(
    z: np.ndarray,
    gate_logits: np.ndarray | None,
    rows: np.ndarray,
    reach: np.ndarray,
    mix: np.ndarray,
    tables: dict[str, np.ndarray],
    tau: float,
    max_steps: int,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    inputs = {**tables, "z": z, "rows": rows, "reach": reach, "mix": mix}
    if gate_logits is not None:
        inputs["gate_logits"] = gate_logits
    return dict(zip(OUTPUTS, run(RAGGED_HALT, inputs, {"tau": tau, "max_steps": max_steps}, threads), strict=True))


def one_row(
    step: int, logit: float, reach: float, tau: float, max_steps: int = 4, forced: int = 0
) -> tuple[bool, float]:
    """Whether a row alone goes on, and its next reach."""
    tables = empty_tables(1, 3, max_steps, 9)
    admit(tables, 0, np.array([5, 6]), 3)
    tables["sequences"][0, [Column.NEXT_POSITION, Column.LIVE_ROWS]] = 2, 1
    tables["forced_depth"][0, 1] = forced
    carried = int(step > 1)
    found = halt(
        np.ones((1, 2), np.float32),
        np.full((1, 1), logit, np.float32),
        np.array([[0, 1, step, 0]], np.int32),
        np.full(carried, reach, np.float32),
        np.zeros((carried, 2), np.float32),
        tables,
        tau,
        max_steps,
    )
    assert len(found["next_rows"]) + len(found["head_rows"]) == 1  # position 1 is to choose the token at 2
    return len(found["next_rows"]) == 1, float(found["next_reach"][0]) if len(found["next_reach"]) else 0.0


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.integers(1, 6), st.sampled_from((0.0, 1e-4, 0.25, 0.5, 1.0)), st.booleans())
def test_equals_the_reference(seed: int, max_steps: int, tau: float, shared: bool) -> None:
    random = np.random.default_rng(seed)
    tables, rows, fresh = random_state(random, max_steps, pending=False)
    carried, hidden = len(rows) - fresh, int(random.integers(1, 40))
    z = random.standard_normal((len(rows), hidden), np.float32)
    mix = random.standard_normal((carried, hidden), np.float32)
    reach = random.uniform(1e-3, 1, carried).astype(np.float32)
    columns = 1 if shared else max(1, max_steps - 1)
    logits = (random.standard_normal((len(rows), columns)) * 4).astype(np.float32)
    gate_logits = None if max_steps == 1 and not shared else logits
    expected_tables, found_tables = copied(tables), copied(tables)
    wanted = packed_halt(z, gate_logits, rows, reach, mix, expected_tables, tau=tau, max_steps=max_steps)
    assume(wanted.decided > 1e-5)
    found = halt(z, gate_logits, rows, reach, mix, found_tables, tau, max_steps)
    assert_same(found_tables, expected_tables)
    for name in OUTPUTS:
        expected = getattr(wanted, name)
        if expected.dtype == np.int32:
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        assert found[name].shape == expected.shape


@pytest.mark.parametrize(
    ("step", "reach", "tau"), [(1, 1.0, 0.5), (2, 0.5, 0.25), (3, 2.0**-10, 2.0**-11), (3, 2.0**-126, 2.0**-127)]
)
def test_a_tie_halts(step: int, reach: float, tau: float) -> None:
    """Logit 0 is a gate of exactly one half: reach * gate == tau, and the compare is a strict one."""
    assert one_row(step, 0.0, reach, tau) == (False, 0.0)
    below = float(np.nextafter(np.float32(tau), np.float32(0)))
    assert one_row(step, 0.0, reach, below) == (True, tau)


def test_small_gates_keep_relative_accuracy() -> None:
    for logit in (-10.0, -20.0, -40.0, -80.0):
        goes_on, reach = one_row(1, logit, 1.0, 0.0)
        assert goes_on and reach == pytest.approx(np.exp(logit) / (1 + np.exp(logit)), rel=1e-6)
    assert one_row(1, -200.0, 1.0, 0.0) == (False, 0.0)  # below every float32
    assert one_row(1, 40.0, 1.0, 0.0) == (True, 1.0)
    assert not one_row(1, 40.0, 1.0, 1.0)[0]


def test_forced_depth_overrules_the_gate_but_not_max_steps() -> None:
    assert one_row(1, -50.0, 1.0, 0.5, forced=2)[0]
    assert not one_row(2, 50.0, 1.0, 0.5, forced=2)[0]
    assert one_row(3, -50.0, 1.0, 0.5, forced=9)[0]
    assert not one_row(4, 50.0, 1.0, 0.5, forced=9)[0]


def test_no_rows() -> None:
    tables = empty_tables(2, 3, 4, 9)
    nothing = np.zeros((0, 2), np.float32)
    rows = np.zeros((0, 4), np.int32)
    found = halt(nothing, np.zeros((0, 3), np.float32), rows, np.zeros(0, np.float32), nothing, tables, 0.5, 4)
    assert [found[name].shape for name in OUTPUTS] == [(0, 4), (0, 2), (0,), (0, 2), (0, 4), (0, 2), (0,)]
    assert tables["counters"][Counter.PASSES] == 1


def test_threads_and_neighbours_do_not_change_a_bit() -> None:
    random = np.random.default_rng(3)
    places, hidden = 200, 1999  # several tasks
    tables = empty_tables(places, 2, 4, 999)
    for place in range(places):
        admit(tables, place, np.array([1]), 2)
    tables["sequences"][:, [Column.NEXT_POSITION, Column.LIVE_ROWS]] = 1
    rows = np.array([[s, 0, 2, s] for s in range(places)], np.int32)
    z, mix = random.standard_normal((2, places, hidden), np.float32)
    gates = random.standard_normal((places, 1)).astype(np.float32)
    reach = np.ones(places, np.float32)
    alone = halt(z, gates, rows, reach, mix, copied(tables), 0.5, 4)
    shared = halt(z, gates, rows, reach, mix, copied(tables), 0.5, 4, threads=4)
    for name in OUTPUTS:
        assert alone[name].tobytes() == shared[name].tobytes()
    tables["sequences"][1:, Column.LIVE_ROWS] = 0
    single = halt(z[:1], gates[:1], rows[:1], reach[:1], mix[:1], tables, 0.5, 4)
    for name in ("next_mix", "head_mix"):
        assert single[name].tobytes() == alone[name][: len(single[name])].tobytes()
