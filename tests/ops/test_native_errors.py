"""What a native op refuses: one sentence that names op, input and value, and not a byte of a table changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latentcot_export.ops.packed_tables import (
    CHOOSE_TOKEN,
    RAGGED_ADVANCE,
    RAGGED_ATTENTION,
    RAGGED_HALT,
    Column,
    Control,
    Counter,
    OpSignature,
    Status,
)
from tests.ops.native import admit, assert_same, copied, empty_tables, run

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], None]
STEPS, POSITIONS, SLOTS, VOCABULARY = 3, 6, 20, 5
ATTRIBUTES: dict[str, dict[str, float]] = {
    "RaggedAttention": {"layer": 0, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4},
    "RaggedHalt": {"tau": 0.5, "max_steps": STEPS},
    "ChooseToken": {},
    "RaggedAdvance": {"max_steps": STEPS},
}


def valid(op: OpSignature) -> Arrays:
    """Two running sequences of a length of 3, one row each: (0, 1, step 2, slot 2) and the fresh (1, 2, step 1, slot 7)."""
    tables = empty_tables(3, POSITIONS, STEPS, SLOTS, VOCABULARY, recorded=2, stops=2)
    for place in range(2):
        admit(tables, place, np.array([1, 2, 3]), POSITIONS)
    tables["sequences"][:2, Column.LIVE_ROWS] = 1
    tables["sequences"][:2, Column.NEXT_POSITION] = (2, 3)
    tables["slots"][0, 0, :2] = (0, 1)
    tables["slots"][0, 1, 1] = 2
    tables["slots"][1, 0, :3] = (3, 4, 7)
    tables["free_slots"][:9] = range(11, 20)
    tables["counters"][Counter.FREE_SLOTS] = 9
    rows = np.array([[0, 1, 2, 2], [1, 2, 1, 7]], np.int32)
    if op is RAGGED_ATTENTION:
        tables["cache"] = np.zeros((1, 2, SLOTS, 1, 16), np.float32)
        tables |= {"qkv": np.ones((2, 16), np.float32), "cos": np.ones((2, 2), np.float32)}
        tables["sin"] = np.zeros((2, 2), np.float32)
    elif op is RAGGED_HALT:
        tables |= {"z": np.ones((2, 8), np.float32), "gate_logits": np.zeros((2, 2), np.float32)}
        tables |= {"reach": np.ones(1, np.float32), "mix": np.ones((1, 8), np.float32)}
    elif op is CHOOSE_TOKEN:
        tables["record"] = tables["logits"]
        tables["logits"] = np.zeros((2, VOCABULARY), np.float32)
        tables["sampling"][1] = (1.0, 0.5)
    else:
        tables |= {"fresh": np.array([3], np.int32), "chosen": np.zeros(2, np.int32)}
    return tables | {"rows": rows}


def put(name: str, index: tuple[int, ...] | int, value: float) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[name][index] = value

    return change


def shape(name: str, *sizes: int) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[name] = np.zeros(sizes, arrays[name].dtype)

    return change


def absent(name: str) -> Change:
    def change(arrays: Arrays) -> None:
        del arrays[name]

    return change


def norm(name: str, size: int) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[name] = np.ones(size, np.float32)

    return change


def both(*changes: Change) -> Change:
    def change(arrays: Arrays) -> None:
        for each in changes:
            each(arrays)

    return change


def overlap(written: str, other: str) -> Change:
    """`other` begins within the memory of `written`."""

    def change(arrays: Arrays) -> None:
        size, kind = arrays[other].size, arrays[other].dtype
        memory = np.zeros(arrays[written].nbytes + arrays[other].nbytes, np.uint8)
        memory[: arrays[written].nbytes] = arrays[written].reshape(-1).view(np.uint8)
        arrays[written] = memory[: arrays[written].nbytes].view(arrays[written].dtype).reshape(arrays[written].shape)
        start = arrays[written].nbytes - 4
        arrays[other] = memory[start : start + size * kind.itemsize].view(kind).reshape(arrays[other].shape)

    return change


ROWS: list[tuple[Change, str]] = [
    (put("rows", (0, 0), 3), "rows[0] sequence is 3, but must be at least 0 and below 3."),
    (put("rows", (1, 0), -1), "rows[1] sequence is -1,"),
    (put("rows", (0, 1), POSITIONS), "rows[0] position is 6, but must be at least 0 and below 6."),
    (put("rows", (0, 2), 0), "rows[0] step is 0, but must be at least 1"),
]
RUNNING: list[tuple[Change, str]] = [
    (put("sequences", (1, 0), Status.DONE), "rows[1] belongs to sequence 1, which is not running."),
    (shape("sequences", 3, 7), "sequences has size 7 along axis 1, but must have 8"),
    (shape("rows", 2, 3), "rows has size 3 along axis 1, but must have 4"),
    (shape("rows", 8), "rows has 1 dimensions, but must have 2."),
]
TOO_DEEP: list[tuple[Change, str]] = [(put("rows", (0, 2), STEPS + 1), "rows[0] step is 4, but must be at least 1 and")]
LIVE: list[tuple[Change, str]] = [
    (
        put("sequences", (0, Column.LIVE_ROWS), 2),
        "sequences[0, 5] (live_rows) is 2, but rows holds 1 of that sequence.",
    ),
    (put("rows", (1, 2), 2), "rows[1] runs step 2, but"),
    (put("rows", (0, 2), 1), "rows[0] runs step 1, but"),
]
CASES: dict[str, list[tuple[Change, str]]] = {
    "RaggedAttention": [
        *ROWS,
        *TOO_DEEP,
        (put("rows", (0, 3), SLOTS), "rows[0] slot is 20"),
        (put("rows", (0, 3), 9), "rows[0] slot is 9"),
        (put("slots", (0, 0, 0), SLOTS), "is 20, but must be at least 0 and below 20."),
        (shape("cos", 2, 3), "cos has size 3 along axis 1, but must have from 1 to 2 (half of head_dim)."),
        (shape("cos", 2, 0), "cos has size 0 along axis 1, but must have from 1 to 2 (half of head_dim)."),
        (shape("sin", 2, 1), "sin has size 1 along axis 1, but must have 2 (as cos)."),
        (both(norm("q_norm", 4), norm("k_norm", 3)), "k_norm has size 3 along axis 0, but must have 4 (head_dim)."),
        (norm("q_norm", 4), "k_norm is missing, but must be there where the other norm is."),
        (norm("k_norm", 4), "q_norm is missing, but must be there where the other norm is."),
        (shape("qkv", 1, 16), "qkv has size 1 along axis 0, but must have 2"),
        (overlap("cache", "slots"), "cache is written and shares memory with slots,"),
    ],
    "RaggedHalt": [
        *ROWS,
        *TOO_DEEP,
        *RUNNING,
        *LIVE,
        (put("gate_logits", (0, 1), np.nan), "gate_logits[0, 1] times reach is not a number (sequence 0, position 1"),
        (put("reach", 0, np.nan), "times reach is not a number"),
        (shape("gate_logits", 2, 3), "gate_logits has 3 columns, but must have 1 (shared) or max_steps - 1 = 2."),
        (absent("gate_logits"), "gate_logits has 0 columns"),
        (shape("gate_logits", 1, 2), "gate_logits has size 1 along axis 0"),
        (shape("reach", 3), "mix has size 1 along axis 0, but must have 3"),
        (both(shape("reach", 3), shape("mix", 3, 8)), "reach has 3 entries, but there are only 2 rows."),
        (shape("mix", 1, 7), "mix has size 7 along axis 1, but must have 8"),
        (shape("depths", 2, POSITIONS), "depths has size 2 along axis 0, but must have 3"),
        (shape("forced_depth", 3, 5), "forced_depth has size 5 along axis 1, but must have 6"),
        (shape("logits", 3, 7, 5), "logits records 7 positions, but there are only 6."),
        (put("counters", Counter.PASSES, -1), "counters[2] (passes) is -1, but must be at least 0"),
        (put("counters", Counter.EXECUTED_ROWS, 1 << 62), "counters[3] (executed rows) is 4611686018427387904,"),
        (shape("counters", 7), "counters has size 7 along axis 0, but must have 8"),
        (overlap("depths", "forced_depth"), "depths is written and shares memory with forced_depth,"),
        (overlap("depths", "sequences"), "is written and shares memory with"),
    ],
    "ChooseToken": [
        *ROWS,
        *RUNNING,
        (put("sampling", (1, 0), -1), "sampling[1, 0] (temperature) is -1.000000, but must be finite and at least 0."),
        (put("sampling", (1, 0), np.inf), "sampling[1, 0] (temperature) is above 1e15"),
        (put("sampling", (1, 0), np.nan), "sampling[1, 0] (temperature) is not a number"),
        (put("sampling", (1, 1), 0), "sampling[1, 1] (top_p) is 0.000000, but must be above 0 and at most 1."),
        (put("sampling", (1, 1), 1.5), "sampling[1, 1] (top_p) is 1.500000,"),
        (put("uniform", (1, 3), 1), "uniform[1, 3] is 1.000000, but must be at least 0 and below 1."),
        (put("sequences", (1, Column.TOP_K), -2), "sequences[1] top_k is -2,"),
        (put("logits", (1, slice(None)), np.nan), "logits[1] (sequence 1, position 2) has no largest value"),
        (shape("logits", 3, 5), "logits has size 3 along axis 0, but must have 2"),
        (shape("logits", 2, 0), "logits has a vocabulary that is 0, but must be at least 1"),
        (shape("record", 3, 2, 4), "record has size 4 along axis 2, but must have 5"),
        (shape("record", 3, 7, 5), "record has 7 positions, but there are only 6."),
        (shape("stop_tokens", 2, 2), "stop_tokens has size 2 along axis 0, but must have 3"),
        (shape("uniform", 3, 5), "uniform has size 5 along axis 1, but must have 6"),
        (overlap("tokens", "stop_tokens"), "tokens is written and shares memory with stop_tokens,"),
    ],
    "RaggedAdvance": [
        *ROWS,
        *TOO_DEEP,
        *RUNNING,
        *LIVE,
        (put("rows", (0, 3), SLOTS), "rows[0] slot is 20, but must be at least -2 and below 20."),
        (put("rows", (0, 3), 9), "slots[0, 1, 1] is 2 and rows[0] has slot 9,"),
        (put("rows", (0, 3), -1), "slots[0, 1, 1] is 2 and rows[0] has slot -1,"),
        (put("slots", (0, 0, 1), -1), "slots[0, 1, 1] belongs to step 2 of rows[0], but the step before must have"),
        (put("slots", (0, 2, 1), 9), "slots[0, 1, 1] belongs to step 2 of rows[0], but the step before must have"),
        (put("rows", (0, 1), 2), "rows[0] position is 2, but must be at least 0 and below 2."),
        (put("forced_depth", (0, 1), 1), "rows[0] step is 2, but must be at least 1 and below 2."),
        (put("sequences", (0, Column.NEXT_POSITION), 4), "sequences[0] next_position is 4, but must be at least 0 and"),
        (put("sequences", (0, Column.LENGTH), 7), "sequences[0] length is 7, but must be at least 0 and below 7."),
        (put("sequences", (0, Column.END), -1), "sequences[0] end is -1,"),
        (put("sequences", (2, Column.STATUS), 3), "sequences[2] status is 3,"),
        (put("order", 1, 0), "order[1] is 0, which already stands before it."),
        (put("order", 1, -1), "order lacks sequence 1, which is running and would never start."),
        (put("order", 2, 3), "order[2] is 3, but must be at least 0 and below 3."),
        (put("control", Control.MAX_ROWS, -1), "control[0] (max_rows) is -1,"),
        (put("control", Control.SEQUENCE_ROWS, 0), "control[1] (sequence_rows) is 0, but must be at least 1"),
        (
            put("counters", Counter.FREE_SLOTS, 21),
            "counters[0] (free slots) is 21, but must be at least 0 and below 21.",
        ),
        (put("counters", Counter.PASSES, -1), "counters[2] (passes) is -1,"),
        (put("counters", Counter.FINISHED, -1), "counters[4] (finished) is -1,"),
        (put("free_slots", 8, SLOTS), "free_slots[8] is 20, but must be at least 0 and below 20."),
        (put("tokens", (0, 2), -1), "tokens[0, 2] is -1, but a position below length needs a token of at least 0."),
        (put("slots", (0, 0, 2), 9), "slots[0, 0, 2] is 9, but a position that was not started must have no slot"),
        (
            both(put("rows", (0, 3), -1), put("slots", (0, 1, 1), -1), put("counters", Counter.FREE_SLOTS, 0)),
            "counters[0] (free slots) is 0 with what finished sequences give back, but rows that go on need 1",
        ),
        (put("counters", Counter.FREE_SLOTS, -1), "counters[0] (free slots) is -1,"),
        (shape("fresh", 3), "fresh has 3 tokens, but there are only 2 rows."),
        (shape("slots", 3, 2, 6), "slots has size 2 along axis 1, but must have 3 (max_steps)."),
        (shape("slots", 3, 3, 5), "slots has size 5 along axis 2, but must have 6"),
        (shape("order", 2), "order has size 2 along axis 0, but must have 3"),
        (overlap("slots", "free_slots"), "slots is written and shares memory with free_slots,"),
        (overlap("slots", "tokens"), "slots is written and shares memory with tokens,"),
    ],
}
OPS = {op.name: op for op in (RAGGED_ATTENTION, RAGGED_HALT, CHOOSE_TOKEN, RAGGED_ADVANCE)}


@pytest.mark.parametrize("name", OPS)
def test_the_sample_itself_is_good(name: str) -> None:
    arrays = valid(OPS[name])
    before = copied(arrays)
    run(OPS[name], arrays, ATTRIBUTES[name])
    changed = {key for key, value in arrays.items() if not np.array_equal(value, before[key])}
    assert changed and changed <= set(OPS[name].written)


@pytest.mark.parametrize(("name", "change", "words"), [(name, *case) for name in OPS for case in CASES[name]])
def test_refused_and_nothing_written(name: str, change: Change, words: str) -> None:
    arrays = valid(OPS[name])
    change(arrays)
    before = copied(arrays)
    with pytest.raises(Exception) as caught:
        run(OPS[name], arrays, ATTRIBUTES[name])
    said = str(caught.value)
    assert f"{name}: " in said and words in said, said
    assert_same(arrays, before)


def test_two_rows_of_one_cell_are_refused() -> None:
    arrays = valid(RAGGED_ADVANCE)
    arrays["rows"] = arrays["rows"][[0, 0, 1]]
    arrays["sequences"][0, Column.LIVE_ROWS] = 2
    before = copied(arrays)
    with pytest.raises(Exception, match="but a cell must hold the slot of its one row"):
        run(RAGGED_ADVANCE, arrays, ATTRIBUTES["RaggedAdvance"])
    assert_same(arrays, before)


def test_a_slot_that_is_given_back_must_be_one() -> None:
    for value, words in ((SLOTS, r"slots\[1, 0, 1\] is 20"), (-7, r"slots\[1, 0, 1\] is -7")):
        arrays = valid(RAGGED_ADVANCE)
        arrays["rows"], arrays["fresh"] = arrays["rows"][:1], arrays["fresh"][:0]
        arrays["sequences"][1, [Column.LIVE_ROWS, Column.STOPPED]] = 0, 1
        arrays["slots"][1, 0, 1] = value
        before = copied(arrays)
        with pytest.raises(Exception, match=words):
            run(RAGGED_ADVANCE, arrays, ATTRIBUTES["RaggedAdvance"])
        assert_same(arrays, before)


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        *(("RaggedHalt", "tau", -0.5), ("RaggedHalt", "max_steps", 0), ("RaggedAdvance", "max_steps", 0)),
        *(("RaggedAttention", "epsilon", -1e-5), ("RaggedAttention", "epsilon", np.nan)),
    ],
)
def test_attributes(name: str, attribute: str, value: float) -> None:
    with pytest.raises(Exception, match=attribute):
        run(OPS[name], valid(OPS[name]), ATTRIBUTES[name] | {attribute: value})
