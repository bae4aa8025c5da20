"""Values at fault: where the CPU op refuses, the kernel leaves its Fault in counters[STALLED] and harms nothing.

Every case of tests/ops/test_native_errors.py that lies in values, then states with a few cells overwritten at random.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_tables import (
    CHOOSE_TOKEN,
    DEAD,
    RAGGED_ADVANCE,
    RAGGED_HALT,
    Column,
    Counter,
    Fault,
    OpSignature,
    Row,
    padded,
)
from tests.cuda.kernels import Kernels
from tests.cuda.state_ops import run
from tests.ops import native
from tests.ops.fixed import poisoned as with_dead_rows
from tests.ops.native import copied, random_state
from tests.ops.test_native_errors import ATTRIBUTES, CASES, Change, valid
from tests.ops.test_native_refined import STEPS, refined

OPS = {op.name: op for op in (RAGGED_HALT, RAGGED_ADVANCE, CHOOSE_TOKEN)}
FAULTS = {"RaggedHalt": Fault.HALT, "RaggedAdvance": Fault.ADVANCE, "ChooseToken": Fault.CHOOSE}


def lies_in_values(op: OpSignature, change: Change) -> bool:
    before, after = valid(op), valid(op)
    change(after)
    if change.__qualname__.startswith("overlap."):
        return False
    return before.keys() == after.keys() and all(after[name].shape == x.shape for name, x in before.items())


VALUES = [
    (name, change, words) for name, op in OPS.items() for change, words in CASES[name] if lies_in_values(op, change)
]


def left_alone(op: OpSignature, before: dict[str, np.ndarray], after: dict[str, np.ndarray], *allowed: str) -> None:
    for name, value in before.items():
        changed = after[name] != value
        if name == "counters":
            changed[Counter.STALLED] = False
        if name not in allowed:
            np.testing.assert_array_equal(after[name][changed], value[changed], err_msg=name)


def check_fault(
    op: OpSignature, before: dict[str, np.ndarray], after: dict[str, np.ndarray], out: list[np.ndarray]
) -> None:
    """What holds after a fault, whichever it was."""
    assert after["counters"][Counter.STALLED] == FAULTS[op.name]
    rows, places, positions = before["rows"], *before["tokens"].shape
    if op is RAGGED_ADVANCE:
        left_alone(op, before, after)
        assert (out[0] == DEAD).all() and not out[1].any() and not out[2][0]
        return
    left_alone(op, before, after, *op.written)
    for found in out[:1] + out[4:5] if op is RAGGED_HALT else []:
        assert ((found == DEAD).all(axis=1) | ((found[:, 0] >= 0) & (found[:, 0] < places))).all()
        assert (found[:, 1] < positions).all() and (found[:, 2] <= 5).all()
    if op is RAGGED_HALT:
        assert ((out[6] >= 0) & (out[6] < max(1, len(rows)))).all()
    else:
        assert ((out[0] >= -1) & (out[0] < before["logits"].shape[1])).all()


@pytest.mark.parametrize(("name", "change", "words"), VALUES)
def test_every_fault_that_the_cpu_refuses(kernels: Kernels, name: str, change: Change, words: str) -> None:
    op = OPS[name]
    arrays = valid(op)
    change(arrays)
    if name == "ChooseToken" and (arrays["rows"][:, 0] < 0).any():
        pytest.skip("a row of sequence -1 is a dead one, and ChooseToken counts no rows")
    if op is RAGGED_ADVANCE:
        arrays["rows"] = padded(arrays["rows"], 10, DEAD)  # room for what starts
    before = copied(arrays)
    # the dynamic form of the others, whose fresh rows are those without a reach
    found = run(kernels, op, arrays, {**ATTRIBUTES[name], "fixed": 0}, seed=len(words))
    check_fault(op, before, arrays, found)


@pytest.mark.parametrize("name", OPS)
def test_the_first_fault_stays(kernels: Kernels, name: str) -> None:
    op = OPS[name]
    arrays = valid(op)
    arrays["counters"][Counter.STALLED] = Fault.ATTENTION
    run(kernels, op, arrays, {**ATTRIBUTES[name], "fixed": 0})
    assert arrays["counters"][Counter.STALLED] == Fault.ATTENTION
    arrays["rows"][0, Row.SEQUENCE] = 1 << 30
    run(kernels, op, arrays, {**ATTRIBUTES[name], "fixed": 0})
    assert arrays["counters"][Counter.STALLED] == Fault.ATTENTION


def test_two_rows_of_one_cell(kernels: Kernels) -> None:
    arrays = valid(RAGGED_ADVANCE)
    arrays["rows"] = arrays["rows"][[0, 0, 1]]
    arrays["sequences"][0, Column.LIVE_ROWS] = 2
    before = copied(arrays)
    check_fault(RAGGED_ADVANCE, before, arrays, run(kernels, RAGGED_ADVANCE, arrays, ATTRIBUTES["RaggedAdvance"]))


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [("rows", (0, 3), 5), ("rows", (3, 3), 18), ("rows", (1, 1), 0), ("rows", (0, 2), 3), ("slots", (0, 0, 0), 99)],
)
def test_refined_prompts(kernels: Kernels, name: str, index: tuple[int, ...], value: int) -> None:
    """What tests/ops/test_native_refined.py shows to be refused, and that the sample itself is good."""
    tables, rows, fresh = refined()
    arrays = {**tables, "rows": padded(rows, 9, DEAD), "fresh": fresh, "chosen": fresh[:0]}
    attributes = {"max_steps": STEPS, "token_major": 1, "jacobi": 1}
    for rules, faulty in ((attributes, False), ({**attributes, "jacobi": 0}, True), (attributes, True)):
        given_arrays = copied(arrays)
        if faulty and rules["jacobi"]:
            given_arrays[name][index] = value
        before = copied(given_arrays)
        found = run(kernels, RAGGED_ADVANCE, given_arrays, rules)
        if faulty:
            check_fault(RAGGED_ADVANCE, before, given_arrays, found)
        else:
            assert given_arrays["counters"][Counter.STALLED] == 0


def test_a_row_at_fault_takes_no_other_with_it(kernels: Kernels) -> None:
    """RaggedHalt: the row whose gate is no number dies, the other goes on; ChooseToken: one chooses, one cannot."""
    arrays = valid(RAGGED_HALT)
    arrays["gate_logits"][:] = 9
    arrays["gate_logits"][0, 1] = np.nan
    found = run(kernels, RAGGED_HALT, arrays, {**ATTRIBUTES["RaggedHalt"], "fixed": 0})
    assert found[0].tolist() == [[1, 2, 2, -1], [-1] * 4] and (found[4] == DEAD).all()
    assert arrays["sequences"][:2, Column.LIVE_ROWS].tolist() == [0, 1]
    assert arrays["counters"][Counter.STALLED] == Fault.HALT
    arrays = valid(CHOOSE_TOKEN)
    arrays["rows"][0, Row.POSITION] = 2
    arrays["logits"][1] = np.nan
    arrays["logits"][0, 3] = 1
    assert run(kernels, CHOOSE_TOKEN, arrays)[0].tolist() == [3, -1]
    assert arrays["sequences"][:2, Column.LENGTH].tolist() == [4, 3]
    assert arrays["counters"][Counter.STALLED] == Fault.CHOOSE


def corrupted(random: np.random.Generator, arrays: dict[str, np.ndarray], names: list[str]) -> None:
    """Overwrites one to three cells with numbers that are none of theirs."""
    for _ in range(int(random.integers(1, 4))):
        value = arrays[str(random.choice(names))]
        if value.size:
            wild = (-(1 << 31), -8, -3, -2, -1, 0, 1, 2, 3, 5, 12, 40, 300, (1 << 31) - 1)
            number = random.choice((np.nan, np.inf, -1.0, 2.0)) if value.dtype == np.float32 else random.choice(wild)
            value.reshape(-1)[random.integers(value.size)] = number


@settings(max_examples=300)
@given(st.integers(0, 1 << 30), st.sampled_from(sorted(OPS)), st.integers(0, 5))
def test_states_with_wild_numbers(kernels: Kernels, seed: int, name: str, order: int) -> None:
    """The kernel finds a fault where the CPU op does, and else gives the same."""
    random = np.random.default_rng(seed)
    op, max_steps = OPS[name], int(random.integers(1, 5))
    tables, rows, fresh = random_state(random, max_steps, pending=op is RAGGED_ADVANCE)
    if op is RAGGED_ADVANCE:
        rows = rows[: len(rows) - fresh]
        tables["sequences"][:, Column.LIVE_ROWS] = np.bincount(rows[:, 0], minlength=len(tables["sequences"]))
    count, hidden = len(rows), 6
    arrays = {**tables, "rows": rows}
    if op is RAGGED_HALT:
        arrays |= {"z": random.standard_normal((count, hidden), np.float32), "reach": np.ones(count, np.float32)}
        arrays |= {"mix": random.standard_normal((count, hidden), np.float32)}
        arrays["gate_logits"] = random.standard_normal((count, 1)).astype(np.float32)
        names = ["rows", "rows", "gate_logits", "reach", "sequences", "forced_depth", "counters"]
    elif op is CHOOSE_TOKEN:
        tables["sampling"][:, 0] = random.choice((0, 0.7))
        arrays |= {"record": tables["logits"], "logits": random.standard_normal((count, 11)).astype(np.float32)}
        names = ["rows", "rows", "logits", "sequences", "sampling", "uniform", "stop_tokens", "tokens"]
    else:
        arrays |= {"fresh": np.zeros(0, np.int32), "chosen": np.zeros(0, np.int32)}
        names = [
            *("rows", "sequences", "tokens", "forced_depth", "slots", "free_slots", "order", "control"),
            "counters",
        ]
    arrays = copied(with_dead_rows(op, arrays, count + int(random.integers(0, 4))))
    corrupted(random, arrays, names)
    arrays["counters"][Counter.STALLED] = 0
    # rows run at once: these two do not look for rows of one token, which would write the same cells in any order, nor
    # ChooseToken for one whose token is not known
    live = arrays["rows"][(arrays["rows"][:, 0] >= 0) & (arrays["rows"][:, 0] < len(tables["sequences"])), :2]
    assume(op is RAGGED_ADVANCE or len(np.unique(live, axis=0)) == len(live))
    assume(op is not CHOOSE_TOKEN or (live[:, 1] < arrays["sequences"][live[:, 0], Column.LENGTH]).all())
    before, expected = copied(arrays), copied(arrays)
    attributes = {key: value for key, value in (("tau", 0.3), ("max_steps", max_steps)) if key in op.attributes}
    try:
        wanted = native.run(op, expected, {**attributes, "fixed": 1})
    except Exception:
        wanted = None
    event(f"{name}: {'fault' if wanted is None else 'good'}")
    found = run(kernels, op, arrays, attributes, order)
    if wanted is None:
        check_fault(op, before, arrays, found)
        return
    native.assert_same(arrays, expected)
    for output, value, other in zip(op.outputs, found, wanted, strict=True):
        np.testing.assert_allclose(value.reshape(other.shape), other, rtol=1e-5, atol=1e-5, err_msg=output)
