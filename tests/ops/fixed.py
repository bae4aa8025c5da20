"""An op in its fixed form behind the inputs and outputs of its dynamic form, with poison wherever nothing may be read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from latentcot_export.ops.packed_tables import (
    CHOOSE_TOKEN,
    DEAD,
    RAGGED_ADVANCE,
    RAGGED_ATTENTION,
    RAGGED_HALT,
    OpSignature,
    Row,
    live_rows,
    padded,
)
from tests.ops.native import run

# Inputs and outputs with one entry for each row.
BY_ROW = {"rows", "qkv", "cos", "sin", "z", "gate_logits", "reach", "mix", "next_input", "x"}
HEADS = ("head_rows", "head_mix", "head_index")


def poisoned(op: OpSignature, inputs: Mapping[str, np.ndarray], capacity: int) -> dict[str, np.ndarray]:
    """The inputs of a fixed call with `capacity` rows: dead ones behind those given, NaN for what belongs to none."""
    given = BY_ROW | ({"logits"} if op is CHOOSE_TOKEN else set())  # elsewhere a table has that name
    made = dict(inputs)
    for name in given & made.keys() & set(op.inputs):
        value = made[name]
        made[name] = padded(value, capacity, DEAD if name == "rows" else np.nan)
    return made


def stripped(rows: np.ndarray, *others: np.ndarray, filler: int = 0) -> list[np.ndarray]:
    """The live rows and the others' entries of them, behind which there is nothing but filler."""
    live = live_rows(rows, True)
    assert (rows[live:] == DEAD).all()
    for value in others:
        assert len(value) == len(rows)
        np.testing.assert_array_equal(value[live:], filler)
    return [value[:live] for value in (rows, *others)]


def run_fixed(
    op: OpSignature,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, float] | None,
    capacity: int,
    threads: int = 1,
) -> list[np.ndarray]:
    """As `run` of the dynamic form, by way of the fixed one; it is checked that dead rows come out as they must."""
    fed = poisoned(op, inputs, capacity)
    return strip_outputs(op, fed, run(op, fed, {**(attributes or {}), "fixed": 1}, threads))


def strip_outputs(op: OpSignature, fed: Mapping[str, np.ndarray], found: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a fixed call with inputs `fed` as the dynamic form has them; fails where dead rows are not dead."""
    if op is RAGGED_ATTENTION:
        return stripped(fed["rows"], *found)[1:]
    if op is CHOOSE_TOKEN:
        return stripped(fed["rows"], *found, filler=-1)[1:]
    if op is RAGGED_HALT:
        return [*stripped(*found[:4]), *stripped(*found[4:])]
    assert op is RAGGED_ADVANCE
    rows, fresh, again = found
    rows, fresh = stripped(rows, fresh)
    assert len(found[0]) == len(found[1]) == len(fed["rows"])
    starts = rows[:, Row.STEP] == 1
    assert not fresh[~starts].any() and starts.tolist() == sorted(starts)  # those that start stand behind the others
    return [rows, fresh[starts], again]
