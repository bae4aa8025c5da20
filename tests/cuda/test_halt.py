"""RaggedHalt as a CUDA kernel: what tests/ops/test_native_halt.py asks of the CPU's, and what only a GPU does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_halt import packed_halt
from latentcot_export.ops.packed_tables import RAGGED_HALT, Column
from tests.cuda.kernels import Kernels
from tests.cuda.state_ops import run, stand_in
from tests.ops import test_native_halt as contract
from tests.ops.native import admit, assert_same, copied, empty_tables


@pytest.fixture
def _on_cuda(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(1), 9))


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 6), st.sampled_from((0.0, 1e-4, 0.25, 0.5, 1.0)), st.booleans())
def test_equals_the_reference(kernels: Kernels, seed: int, max_steps: int, tau: float, shared: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(seed), 9))
        contract.test_equals_the_reference.hypothesis.inner_test(seed, max_steps, tau, shared)


@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize(
    "name",
    [
        "test_small_gates_keep_relative_accuracy",
        "test_forced_depth_overrules_the_gate_but_not_max_steps",
        "test_no_rows",
    ],
)
def test_rules(name: str) -> None:
    getattr(contract, name)()


@pytest.mark.usefixtures("_on_cuda")
def test_a_tie_halts() -> None:
    for step, reach, tau in ((1, 1.0, 0.5), (2, 0.5, 0.25), (3, 2.0**-10, 2.0**-11), (3, 2.0**-126, 2.0**-127)):
        contract.test_a_tie_halts(step, reach, tau)


@pytest.mark.parametrize(("places", "capacity", "hidden"), [(700, 700, 5), (3000, 900, 8), (40, 64, 1100)])
def test_more_rows_than_blocks_and_more_places_than_shared_memory(
    kernels: Kernels, places: int, capacity: int, hidden: int
) -> None:
    """Beyond 256 rows a block has several, beyond 2048 places their rows are counted in device memory."""
    random = np.random.default_rng(places)
    count = min(places, capacity - 20)
    tables = empty_tables(places, 3, 4, 9, recorded=1)
    for place in range(places):
        admit(tables, place, np.array([1, 2]), 3)
    tables["sequences"][:, Column.NEXT_POSITION] = 2
    tables["sequences"][:count, Column.LIVE_ROWS] = 1
    steps = random.integers(1, 5, count)
    rows = np.stack((np.arange(count), random.integers(0, 2, count), steps, np.arange(count)), 1).astype(np.int32)
    rows = np.concatenate((rows, np.full((capacity - count, 4), -1, np.int32)))
    z, mix = random.standard_normal((2, capacity, hidden), np.float32)
    gates = random.standard_normal((capacity, 3)).astype(np.float32)
    reach = random.uniform(0.1, 1, capacity).astype(np.float32)
    expected, found = copied(tables), copied(tables)
    wanted = packed_halt(z, gates, rows, reach, mix, expected, tau=0.3, max_steps=4, fixed=True)
    assert wanted.decided > 1e-6
    inputs = {**found, "z": z, "gate_logits": gates, "rows": rows, "reach": reach, "mix": mix}
    counts = np.zeros(2, np.int64)
    outputs = run(kernels, RAGGED_HALT, inputs, {"tau": 0.3, "max_steps": 4}, seed=places, counts=counts)
    assert_same(found, expected)
    for name, value in zip(RAGGED_HALT.outputs, outputs, strict=True):
        np.testing.assert_allclose(value, getattr(wanted, name), rtol=1e-5, atol=1e-5, err_msg=name)
    assert counts.tolist() == [(wanted.next_rows[:, 0] >= 0).sum(), (wanted.head_rows[:, 0] >= 0).sum()]


def test_neighbours_capacity_and_order_do_not_change_a_bit(kernels: Kernels) -> None:
    random = np.random.default_rng(3)
    places, hidden = 20, 64
    tables = empty_tables(places, 2, 4, 999)
    for place in range(places):
        admit(tables, place, np.array([1]), 2)
    tables["sequences"][:, [Column.NEXT_POSITION, Column.LIVE_ROWS]] = 1
    z, mix = random.standard_normal((2, places, hidden), np.float32)
    inputs = {
        **{"z": z, "mix": mix, "reach": np.ones(places, np.float32)},
        "gate_logits": random.standard_normal((places, 1)).astype(np.float32),
        "rows": np.array([[s, 0, 2, s] for s in range(places)], np.int32),
    }
    attributes = {"tau": 0.5, "max_steps": 4}
    together = run(kernels, RAGGED_HALT, copied({**tables, **inputs}), attributes)
    for seed, offset in ((1, 0), (2, 4), (3, 16)):  # 4: no 16 bytes at a time
        again = run(kernels, RAGGED_HALT, copied({**tables, **inputs}), attributes, seed, offset)
        for one, other in zip(together, again, strict=True):
            assert one.tobytes() == other.tobytes()
    mixes = np.zeros_like(mix)  # by input row
    mixes[together[0][:, 0][together[0][:, 0] >= 0]] = together[3][together[0][:, 0] >= 0]
    mixes[together[6][together[4][:, 0] >= 0]] = together[5][together[4][:, 0] >= 0]
    for i in range(places):
        single = copied(tables)
        single["sequences"][:, Column.LIVE_ROWS] = np.arange(places) == i
        alone = run(kernels, RAGGED_HALT, {**single, **{n: x[i : i + 1].copy() for n, x in inputs.items()}}, attributes)
        assert (alone[3] + alone[5]).tobytes() == mixes[i : i + 1].tobytes()
