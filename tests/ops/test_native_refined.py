"""RaggedAdvance with `jacobi`: several rows of a token are in flight, and each keeps the slot that its step has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_tables import RAGGED_ADVANCE, Column, Control, Counter
from tests.ops.native import admit, assert_same, copied, empty_tables, random_state, run

STEPS = 3


def advance(
    tables: dict[str, np.ndarray], rows: np.ndarray, fresh: np.ndarray, max_steps: int = STEPS, jacobi: int = 1
) -> tuple[np.ndarray, np.ndarray, bool]:
    inputs = {**tables, "rows": rows, "fresh": fresh, "chosen": np.zeros(0, np.int32)}
    attributes = {"max_steps": max_steps, "token_major": 1, "jacobi": jacobi}
    found_rows, found_fresh, again = run(RAGGED_ADVANCE, inputs, attributes)
    return found_rows, found_fresh, bool(again)


def with_earlier_steps(
    random: np.random.Generator, tables: dict[str, np.ndarray], rows: np.ndarray, fresh: int
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of earlier steps beside those there are, with and without their slot; the tokens of the fresh ones."""
    later, started = [*rows[: len(rows) - fresh].tolist()], [*rows[len(rows) - fresh :].tolist()]
    for place, position, step, _ in rows.tolist():
        for k in range(1, step):
            if random.random() < 0.7:
                slot = int(tables["slots"][place, k - 1, position]) if random.random() < 0.3 else -1
                (started if k == 1 else later).append([place, position, k, slot])
                tables["sequences"][place, Column.LIVE_ROWS] += 1
    random.shuffle(later)
    random.shuffle(started)
    all_rows = np.array(later + started, np.int32).reshape(-1, 4)
    return all_rows, np.array([tables["tokens"][row[0], row[1]] for row in started], np.int32)


@settings(max_examples=300)
@given(st.integers(0, 1 << 30), st.integers(1, 5))
def test_equals_the_reference(seed: int, max_steps: int) -> None:
    random = np.random.default_rng(seed)
    tables, plain, fresh_count = random_state(random, max_steps, pending=True)
    rows, fresh = with_earlier_steps(random, tables, plain, fresh_count)
    expected, found = copied(tables), copied(tables)
    wanted = packed_advance(rows, fresh, expected, max_steps=max_steps, token_major=True, jacobi=True)
    given_rows, given_fresh, again = advance(found, rows, fresh, max_steps)
    np.testing.assert_array_equal(given_rows, wanted[0])
    np.testing.assert_array_equal(given_fresh, wanted[1])
    assert again == wanted[2]
    assert_same(found, expected)
    event(f"several rows of a token {len(rows) > len(plain)}")
    for place, position, step, slot in given_rows.tolist():
        assert found["slots"][place, step - 1, position] == slot >= 0
    held = found["slots"][found["slots"] >= 0]
    free = found["free_slots"][: found["counters"][Counter.FREE_SLOTS]]
    assert sorted([*held, *free]) == list(range(len(found["free_slots"])))  # every slot has one owner
    # what a token takes and reserves does not depend on the rows of its earlier steps
    tables["control"][Control.LOCKSTEP] = 1  # nothing starts
    alone = copied(tables)
    alone["sequences"][:, Column.LIVE_ROWS] = np.bincount(plain[:, 0], minlength=len(tables["sequences"]))
    if len(plain):
        tokens = np.array([tables["tokens"][s, t] for s, t in plain[len(plain) - fresh_count :, :2]], np.int32)
        advance(alone, plain, tokens, max_steps)
        advance(tables, rows, fresh, max_steps)
        assert alone["counters"].tolist() == tables["counters"].tolist()


def refined() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two tokens in the second pass: step 2 goes on without a slot yet, step 1 runs again."""
    tables = empty_tables(1, 6, STEPS, 20)
    admit(tables, 0, np.array([4, 5]), 6)
    tables["sequences"][0, [Column.NEXT_POSITION, Column.LIVE_ROWS, Column.PAUSE]] = 2, 4, 0
    tables["slots"][0, 0, :2] = 18, 19
    tables["counters"][Counter.FREE_SLOTS] = 18
    rows = np.array([[0, 0, 2, -1], [0, 1, 2, -1], [0, 0, 1, -1], [0, 1, 1, 19]], np.int32)
    return tables, rows, np.array([4, 5], np.int32)


def test_a_row_keeps_the_slot_of_its_step_and_only_the_deepest_reserves() -> None:
    tables, rows, fresh = refined()
    rows, fresh, again = advance(tables, rows, fresh)
    assert again and fresh.tolist() == [4, 5]
    assert rows[:, 3].tolist() == [17, 16, 18, 19]
    assert tables["counters"][[Counter.FREE_SLOTS, Counter.RESERVED]].tolist() == [16, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jacobi": 0}, "a cell must hold the slot of its one row"),
        ({"row": (0, 3, 5)}, r"slots\[0, 1, 0\] is -1 and rows\[0\] has slot 5"),
        ({"row": (3, 3, 18)}, r"slots\[0, 0, 1\] is 19 and rows\[3\] has slot 18"),
        ({"row": (1, 1, 0)}, r"slots\[0, 1, 0\] is -1 and rows\[1\] has slot -1"),  # two rows of one cell
        ({"row": (0, 2, 3)}, "the step before must have a slot"),
        ({"slot": (0, 0, 99)}, r"slots\[0, 0, 0\] is 99"),
    ],
)
def test_what_it_refuses(change: dict[str, object], words: str) -> None:
    tables, rows, fresh = refined()
    if "row" in change:
        i, column, value = change["row"]  # type: ignore[misc]
        rows[i, column] = value
    if "slot" in change:
        k, t, value = change["slot"]  # type: ignore[misc]
        tables["slots"][0, k, t] = value
    before = copied(tables)
    with pytest.raises(Exception, match=words):
        advance(tables, rows, fresh, jacobi=int(change.get("jacobi", 1)))  # type: ignore[call-overload]
    assert_same(tables, before)
