"""The native RaggedAdvance equals its reference in every integer, and the rules of the contract hold one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_tables import RAGGED_ADVANCE, Column, Control, Counter, Status
from tests.ops.native import admit, assert_same, copied, empty_tables, random_state, run

NONE = np.zeros(0, np.int32)
NO_ROWS = np.zeros((0, 4), np.int32)


def advance(
    tables: dict[str, np.ndarray], rows: np.ndarray = NO_ROWS, fresh: np.ndarray = NONE, max_steps: int = 3
) -> tuple[np.ndarray, np.ndarray, bool]:
    inputs = {**tables, "rows": rows, "fresh": fresh, "chosen": NONE}
    rows, fresh, again = run(RAGGED_ADVANCE, inputs, {"max_steps": max_steps})
    return rows, fresh, bool(again)


def started(rows: np.ndarray) -> list[tuple[int, int]]:
    """(sequence, position) of the rows."""
    return [(int(s), int(t)) for s, t in rows[:, :2]]


@settings(max_examples=500)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.sampled_from((12, 40)))
def test_equals_the_reference(seed: int, max_steps: int, positions: int) -> None:
    random = np.random.default_rng(seed)
    tables, rows, fresh = random_state(random, max_steps, pending=True, positions=positions)
    tokens = np.array([tables["tokens"][s, t] for s, t in rows[len(rows) - fresh :, :2]], np.int32)
    expected, found = copied(tables), copied(tables)
    wanted_rows, wanted_fresh, wanted_again = packed_advance(rows, tokens, expected, max_steps=max_steps)
    found_rows, found_fresh, again = advance(found, rows, tokens, max_steps)
    np.testing.assert_array_equal(found_rows, wanted_rows)
    np.testing.assert_array_equal(found_fresh, wanted_fresh)
    assert again == wanted_again
    assert_same(found, expected)
    assert found_rows.dtype == found_fresh.dtype == np.int32
    event(f"started {len(found_rows) > len(rows)}")
    event(f"finished {(found['sequences'] != tables['sequences'])[:, Column.STATUS].any()}")
    held = found["slots"][found["slots"] >= 0]
    free = found["free_slots"][: found["counters"][Counter.FREE_SLOTS]]
    assert sorted([*held, *free]) == list(range(len(found["free_slots"])))  # every slot has one owner


def test_decoding_starts_whatever_max_rows_says_and_prompts_share_the_rest() -> None:
    tables = empty_tables(4, 60, 3, 999)
    for place, known in ((2, 40), (0, 9), (3, 50), (1, 5)):
        admit(tables, place, np.arange(known), 60)
    tables["sequences"][0, Column.NEXT_POSITION] = 8  # decodes
    tables["sequences"][3, Column.NEXT_POSITION] = 49  # decodes
    tables["control"][Control.MAX_ROWS] = 1
    assert started(advance(copied(tables))[0]) == [(0, 8), (3, 49)]
    tables["control"][Control.MAX_ROWS] = 2 + 16 + 5 + 16 + 3
    rows, fresh, again = advance(tables)
    assert again
    # order is 2, 0, 3, 1: 16 of sequence 2, all five of sequence 1, then sequence 2 goes on
    assert started(rows) == [(2, t) for t in range(35)] + [(0, 8), (3, 49)] + [(1, t) for t in range(5)]
    assert fresh.tolist() == [t for _, t in started(rows)]
    assert (tables["slots"][:, 0] >= 0).sum() == len(rows)


def test_rounds_begin_with_another_sequence_each_pass() -> None:
    tables = empty_tables(3, 60, 3, 999)
    for place in (1, 2, 0):
        admit(tables, place, np.arange(50), 60)
    tables["control"][Control.MAX_ROWS] = 20
    for passes, counts in ((0, (0, 16, 4)), (1, (4, 0, 16)), (2, (16, 4, 0)), (3, (0, 16, 4))):
        tables["counters"][Counter.PASSES] = passes
        rows, _, _ = advance(copied(tables))
        assert tuple(np.bincount(rows[:, 0], minlength=3)) == counts


def test_a_token_starts_only_with_its_reserve() -> None:
    tables = empty_tables(2, 8, 3, 5)
    admit(tables, 0, np.arange(6), 8)
    admit(tables, 1, np.arange(6), 8)
    rows, _, _ = advance(tables)  # 5 free slots: one token of three steps, then 2 free and 2 reserved
    assert started(rows) == [(0, 0)] and tables["counters"][Counter.RESERVED] == 2
    tables = empty_tables(2, 8, 3, 5)
    admit(tables, 0, np.arange(6), 8)
    admit(tables, 1, np.arange(6), 8)
    tables["forced_depth"][1, :2] = (1, 1)
    # rounds: place 0 takes 3 slots with its reserve; the two shallow tokens of place 1 fit beside them, a third does not
    assert started(advance(tables)[0]) == [(0, 0), (1, 0), (1, 1)]
    assert tables["counters"][[Counter.FREE_SLOTS, Counter.RESERVED, Counter.MOST_SLOTS]].tolist() == [2, 2, 3]


def test_sequence_rows_pause_end_and_stop_bound_what_starts() -> None:
    tables = empty_tables(4, 20, 3, 999)
    admit(tables, 0, np.arange(10), 20)
    admit(tables, 1, np.arange(10), 20, pause=2)
    admit(tables, 2, np.arange(10), 1)
    admit(tables, 3, np.arange(10), 20)
    tables["sequences"][3, Column.STOPPED] = 1
    tables["control"][Control.SEQUENCE_ROWS] = 3
    rows, fresh, _ = advance(tables)
    assert started(rows) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    assert tables["sequences"][3, Column.STATUS] == Status.DONE  # nothing live, nothing wanted
    assert started(advance(tables, rows, fresh)[0][6:]) == []


def test_lockstep_waits_for_every_row() -> None:
    tables = empty_tables(2, 8, 3, 99)
    for place in range(2):
        admit(tables, place, np.arange(3), 8)
    tables["control"][Control.LOCKSTEP] = 1
    rows, fresh, _ = advance(tables)
    assert len(rows) == 6
    tables["sequences"][0, Column.LIVE_ROWS] = 0
    tables["sequences"][0, Column.LENGTH] = 4
    tables["tokens"][0, 3] = 7
    rows, fresh, _ = advance(tables, rows[3:], fresh[3:])
    assert len(rows) == 3
    tables["sequences"][1, Column.LIVE_ROWS] = 0
    rows, fresh, again = advance(tables)
    assert started(rows) == [(0, 3)] and fresh.tolist() == [7] and again


def test_a_finished_sequence_gives_its_slots_back_and_can_end_the_burst() -> None:
    tables = empty_tables(2, 4, 3, 20)
    admit(tables, 0, np.arange(2), 2)
    admit(tables, 1, np.arange(2), 4)
    rows, fresh, _ = advance(tables)
    keep = rows[:, 0] == 1
    tables["sequences"][0, Column.LIVE_ROWS] = 0
    tables["control"][Control.YIELD_WHEN_DONE] = 1
    rows, _, again = advance(tables, rows[keep], fresh[keep])
    assert not again and len(rows) == 2
    assert tables["sequences"][:, Column.STATUS].tolist() == [Status.DONE, Status.RUNNING]
    assert (tables["slots"][0] == -1).all()
    assert tables["counters"][[Counter.FREE_SLOTS, Counter.FINISHED]].tolist() == [18, 1]
    tables["counters"][Counter.FINISHED] = 0  # as the host does once it has seen it
    assert advance(tables, rows, np.array([0, 1], np.int32))[2]


def test_stalled_says_that_tokens_wait_for_slots() -> None:
    tables = empty_tables(1, 4, 3, 2)  # three steps never fit
    admit(tables, 0, np.arange(2), 4)
    rows, _, again = advance(tables)
    assert len(rows) == 0 and not again and tables["counters"][Counter.STALLED] == 1
    tables["forced_depth"][0] = 2
    rows, _, again = advance(tables)
    assert len(rows) == 1 and again and tables["counters"][Counter.STALLED] == 0


@pytest.mark.parametrize("places", (0, 1))
def test_nothing_to_do(places: int) -> None:
    tables = empty_tables(places, 4, 3, 2)
    rows, fresh, again = advance(tables)
    assert rows.shape == (0, 4) and fresh.shape == (0,) and not again
    assert tables["counters"].tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
