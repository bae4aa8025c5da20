"""The fixed form of each op gives the bits of its dynamic form, reads nothing of a dead row and refuses what is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_attention import packed_attention
from latentcot_export.ops.packed_choose import packed_choose
from latentcot_export.ops.packed_halt import packed_halt
from latentcot_export.ops.packed_tables import (
    CHOOSE_TOKEN,
    DEAD,
    RAGGED_ADVANCE,
    RAGGED_ATTENTION,
    RAGGED_HALT,
    READS_ONLY,
    Column,
    OpSignature,
    Row,
    padded,
)
from latentcot_export.spec import VISIBILITIES
from tests.ops.fixed import poisoned, run_fixed
from tests.ops.native import assert_same, copied, random_state, run
from tests.ops.test_native_attention import SHAPES, case
from tests.ops.test_native_errors import ATTRIBUTES, valid
from tests.ops.test_native_state import RULES, Rules

NONE = np.zeros(0, np.int32)
BEHIND = st.sampled_from((0, 1, 5, 40))  # dead rows


def assert_bits(found: list[np.ndarray], wanted: list[np.ndarray], names: tuple[str, ...]) -> None:
    for name, value, expected in zip(names, found, wanted, strict=True):
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype), name
        assert value.tobytes() == expected.tobytes(), name


@settings(max_examples=150)
@given(st.integers(0, 1 << 30), st.integers(1, 5), RULES, st.sampled_from((0.0, 0.3, 1.0)), BEHIND)
def test_halt(seed: int, max_steps: int, rules: Rules, tau: float, behind: int) -> None:
    random = np.random.default_rng(seed)
    tables, rows, fresh = random_state(random, max_steps, pending=False)
    carried, hidden = len(rows) - fresh, int(random.integers(1, 20))
    ended = rules.runs_on and rules.stop != "tail"  # its weights are of rows that have not
    reach = random.uniform(1e-3, 1, carried) * np.where(ended & (random.random(carried) < 0.3), -1, 1)
    columns = max_steps if rules.stop == "tail" else max(1, max_steps - 1)
    tables["weights"] = np.sort(random.random((*tables["depths"].shape, max_steps)).astype(np.float32))[
        ..., ::-1
    ].copy()
    inputs = {
        **{name: random.standard_normal((len(rows), hidden), np.float32) for name in ("z", "next_input", "x")},
        "gate_logits": (random.standard_normal((len(rows), columns)) * 4).astype(np.float32),
        "rows": rows,
        "reach": reach.astype(np.float32),
        "mix": random.standard_normal((carried, hidden), np.float32),
    }
    attributes = {"tau": tau, "max_steps": max_steps, **rules.numbers()}
    dynamic, fixed = copied(tables), copied(tables)
    wanted = run(RAGGED_HALT, {**inputs, **dynamic}, attributes)
    assert_bits(
        run_fixed(RAGGED_HALT, {**inputs, **fixed}, attributes, len(rows) + behind), wanted, RAGGED_HALT.outputs
    )
    assert_same(fixed, dynamic)
    # the references agree with each other
    options = {"tau": tau, "max_steps": max_steps, "stop": rules.stop, "readout": rules.readout}
    options["skip_halted"] = rules.skip_halted
    fed = {**poisoned(RAGGED_HALT, inputs, len(rows) + behind), "fixed": True}
    first, second = (packed_halt(**f, tables=copied(tables), **options) for f in (inputs, fed))  # type: ignore[arg-type]
    assert first.decided == second.decided
    for name in RAGGED_HALT.outputs:
        filler = DEAD if name.endswith("rows") else 0
        expected = padded(getattr(first, name), len(rows) + behind, filler)
        np.testing.assert_array_equal(getattr(second, name), expected, err_msg=name)


def without_fresh(random: np.random.Generator, max_steps: int, reads_only: bool) -> tuple[dict, np.ndarray]:
    """A state before RaggedAdvance in which every row of step 1 has halted; some of the others may read alone."""
    tables, rows, _ = random_state(random, max_steps, pending=True)
    starts = rows[:, Row.STEP] == 1
    for place, position in rows[starts, :2]:
        tables["sequences"][place, Column.LIVE_ROWS] -= 1
        tables["depths"][place, position] = 1
    rows = rows[~starts]
    if reads_only:
        rows[random.random(len(rows)) < 0.3, Row.SLOT] = READS_ONLY
    return tables, rows


@settings(max_examples=300)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans(), BEHIND)
def test_advance(seed: int, max_steps: int, runs_on: bool, reads_only: bool, token_major: bool, behind: int) -> None:
    tables, rows = without_fresh(np.random.default_rng(seed), max_steps, reads_only)
    attributes = {"max_steps": max_steps, "runs_on": int(runs_on), "token_major": int(token_major)}
    inputs = {"rows": rows, "fresh": NONE, "chosen": NONE}
    dynamic, fixed = copied(tables), copied(tables)
    wanted = run(RAGGED_ADVANCE, {**inputs, **dynamic}, attributes)
    found = run_fixed(RAGGED_ADVANCE, {**inputs, **fixed}, attributes, len(wanted[0]) + behind)
    assert_bits(found, wanted, RAGGED_ADVANCE.outputs)
    assert_same(fixed, dynamic)
    # with fewer rows than that: as the reference, and never more than there are
    capacity = len(rows) + min(behind, 5)
    event(f"waits {capacity < len(wanted[0])}")
    fixed, expected = copied(tables), copied(tables)
    fed = poisoned(RAGGED_ADVANCE, inputs, capacity)
    found = run(RAGGED_ADVANCE, {**fed, **fixed}, {**attributes, "fixed": 1})
    options = {"max_steps": max_steps, "runs_on": runs_on, "token_major": token_major}
    result = packed_advance(fed["rows"], NONE, expected, **options, fixed=True)  # type: ignore[arg-type]
    assert_bits(found, [*result[:2], np.array(result[2])], RAGGED_ADVANCE.outputs)
    assert_same(fixed, expected)
    assert len(found[0]) == capacity


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), BEHIND)
def test_choose(seed: int, behind: int) -> None:
    random = np.random.default_rng(seed)
    tables, rows, _ = random_state(random, 3, pending=False)
    tables["sampling"][:, 0] = random.choice((0, 0.7), len(tables["sampling"]))
    tables["uniform"][:] = random.random(tables["uniform"].shape)
    tables["stop_tokens"][:] = random.integers(-1, 11, tables["stop_tokens"].shape)
    tables["record"] = tables.pop("logits")
    logits = (random.standard_normal((len(rows), 11)) * 3).astype(np.float32)
    inputs = {"logits": logits, "rows": rows}
    dynamic, fixed = copied(tables), copied(tables)
    wanted = run(CHOOSE_TOKEN, {**dynamic, **inputs})
    found = run_fixed(CHOOSE_TOKEN, {**fixed, **inputs}, {}, len(rows) + behind, threads=int(random.choice((1, 3))))
    assert_bits(found, wanted, CHOOSE_TOKEN.outputs)
    assert_same(fixed, dynamic)
    expected = {**copied(tables), "logits": tables["record"].copy()}
    fed = poisoned(CHOOSE_TOKEN, inputs, len(rows) + behind)
    chosen = packed_choose(fed["logits"], fed["rows"], expected, fixed=True)
    np.testing.assert_array_equal(chosen[: len(rows)] >= 0, wanted[0] >= 0)
    np.testing.assert_array_equal(expected["logits"], fixed["record"])
    assert (chosen[len(rows) :] == -1).all()


@settings(max_examples=60)
@given(
    st.integers(0, 1 << 30),
    *(st.sampled_from(SHAPES), st.booleans(), st.integers(1, 4), st.sampled_from(VISIBILITIES), st.booleans(), BEHIND),
)
def test_attention(
    seed: int, shape: tuple[int, int, int], half: bool, max_steps: int, visibility: str, normed: bool, behind: int
) -> None:
    random = np.random.default_rng(seed)
    inputs, attributes = case(random, shape, half, max_steps, normed=normed)
    attributes["visibility"] = VISIBILITIES.index(visibility)
    if visibility == "newest":
        for row in inputs["rows"][inputs["rows"][:, Row.STEP] > 1][::2]:
            inputs["slots"][row[0], row[2] - 1, row[1]] = -1
        rows = inputs["rows"]
        rows[inputs["slots"][rows[:, 0], rows[:, 2] - 1, rows[:, 1]] < 0, Row.SLOT] = READS_ONLY
    if random.random() < 0.5:
        places, steps, length = inputs["slots"].shape
        inputs["weights"] = random.uniform(1e-4, 1, (places, length, steps)).astype(np.float32)
    capacity = len(inputs["rows"]) + behind
    dynamic, fixed = copied(inputs), copied(inputs)
    wanted = run(RAGGED_ATTENTION, dynamic, attributes)
    found = run_fixed(RAGGED_ATTENTION, fixed, attributes, capacity, threads=int(random.choice((1, 3))))
    assert_bits(found, wanted, RAGGED_ATTENTION.outputs)
    assert fixed["cache"].tobytes() == dynamic["cache"].tobytes()
    results = []
    for form, arrays in ((False, copied(inputs)), (True, copied(poisoned(RAGGED_ATTENTION, inputs, capacity)))):
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        options = {**attributes, "visibility": visibility, "fixed": form}
        results.append(packed_attention(**tensors, **options).numpy())  # type: ignore[arg-type]
        assert np.isfinite(arrays["cache"]).all()
    np.testing.assert_array_equal(padded(results[0], capacity), results[1])


OPS = (RAGGED_ADVANCE, RAGGED_HALT, CHOOSE_TOKEN, RAGGED_ATTENTION)


def fixed_inputs(op: OpSignature, capacity: int = 4) -> dict[str, np.ndarray]:
    """The two rows that every op accepts and dead ones behind them; before RaggedAdvance the fresh one has halted."""
    inputs = valid(op)
    if op is RAGGED_ADVANCE:
        inputs["rows"], inputs["fresh"] = inputs["rows"][:1], NONE
        inputs["sequences"][1, Column.LIVE_ROWS] = 0
    return poisoned(op, inputs, capacity)


def refused(op: OpSignature, inputs: dict[str, np.ndarray], words: str) -> None:
    before = copied(inputs)
    with pytest.raises(Exception) as raised:
        run(op, inputs, ATTRIBUTES[op.name] | {"fixed": 1})
    assert f"{op.name}: {words}" in str(raised.value)
    assert_same(inputs, before)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_live_row_behind_a_dead_one(op: OpSignature) -> None:
    inputs = fixed_inputs(op)
    inputs["rows"] = np.roll(inputs["rows"], 1, axis=0)
    refused(op, inputs, "rows[1] is live (sequence 0), but rows[0] before it is dead and live rows must come first.")
    inputs["rows"][0] = inputs["rows"][2] if op is RAGGED_ADVANCE else (-7, 0, 1, 0)
    inputs["rows"][0, 0] = -7  # which is no sequence, and not what a dead row has
    refused(op, inputs, "rows[0] sequence is -7, but must be at least 0 and below 3.")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_only_the_first_column_of_a_dead_row_is_read(op: OpSignature) -> None:
    inputs = fixed_inputs(op)
    plain = run(op, copied(inputs), ATTRIBUTES[op.name] | {"fixed": 1})
    inputs["rows"][inputs["rows"][:, 0] == DEAD, 1:] = 1 << 30
    assert_bits(run(op, inputs, ATTRIBUTES[op.name] | {"fixed": 1}), plain, op.outputs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("capacity", [0, 3])
def test_no_live_row(op: OpSignature, capacity: int) -> None:
    inputs = fixed_inputs(op)
    inputs["sequences"][:, Column.STATUS] = 0
    for name in ("rows", "qkv", "cos", "sin", "z", "gate_logits", "reach", "mix"):
        if name in op.inputs:
            inputs[name] = inputs[name][:0]
    if op is CHOOSE_TOKEN:
        inputs["logits"] = inputs["logits"][:0]
    found = run_fixed(op, inputs, ATTRIBUTES[op.name], capacity)
    assert all(len(value) == 0 for value in found if value.ndim)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_attribute(op: OpSignature) -> None:
    with pytest.raises(Exception, match="attribute fixed is 2, but must be at least 0 and below 2"):
        run(op, fixed_inputs(op), ATTRIBUTES[op.name] | {"fixed": 2})
    inputs = fixed_inputs(op)  # the dynamic form has no dead rows
    if op is RAGGED_HALT:
        inputs["reach"], inputs["mix"] = inputs["reach"][:1], inputs["mix"][:1]
    with pytest.raises(Exception, match=r"rows\[\d\] sequence is -1, but must be at least 0"):
        run(op, inputs, ATTRIBUTES[op.name])


def test_what_the_fixed_form_does_not_take() -> None:
    inputs = fixed_inputs(RAGGED_ADVANCE)
    inputs["fresh"] = np.zeros(1, np.int32)
    refused(RAGGED_ADVANCE, inputs, "fresh has 1 tokens, but must have none in the fixed form,")
    inputs = poisoned(RAGGED_ADVANCE, valid(RAGGED_ADVANCE) | {"fresh": NONE}, 4)
    refused(RAGGED_ADVANCE, inputs, "rows[1] runs step 1, but the last 0 rows")
    inputs = fixed_inputs(RAGGED_HALT)
    inputs["reach"], inputs["mix"] = inputs["reach"][:3], inputs["mix"][:3]
    refused(RAGGED_HALT, inputs, "reach has 3 entries, but there are 4 rows.")
    inputs = fixed_inputs(RAGGED_HALT)
    inputs["reach"][0] = np.nan
    refused(RAGGED_HALT, inputs, "gate_logits[0, 1] times reach is not a number (sequence 0, position 1, step 2)")
    inputs = fixed_inputs(RAGGED_HALT)
    inputs["rows"][1] = DEAD
    refused(RAGGED_HALT, inputs, "sequences[1, 5] (live_rows) is 1, but rows holds 0 of that sequence.")
    inputs = fixed_inputs(CHOOSE_TOKEN)
    inputs["logits"][1] = np.nan
    refused(CHOOSE_TOKEN, inputs, "logits[1] (sequence 1, position 2) has no largest value to choose by")
