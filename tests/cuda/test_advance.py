"""RaggedAdvance as a CUDA kernel: what tests/ops/test_native_advance.py asks of the CPU's, and where its ways part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_advance import packed_advance
from latentcot_export.ops.packed_tables import RAGGED_ADVANCE, Column, Control, Counter, padded
from tests.cuda.kernels import Kernels
from tests.cuda.state_ops import run, stand_in
from tests.ops import test_native_advance as contract
from tests.ops import test_native_refined as refined
from tests.ops.native import admit, assert_same, copied, empty_tables, random_state

NONE = np.zeros(0, np.int32)
RULES = (
    "test_decoding_starts_whatever_max_rows_says_and_prompts_share_the_rest",
    "test_rounds_begin_with_another_sequence_each_pass",
    "test_a_token_starts_only_with_its_reserve",
    "test_sequence_rows_pause_end_and_stop_bound_what_starts",
    "test_lockstep_waits_for_every_row",
    "test_a_finished_sequence_gives_its_slots_back_and_can_end_the_burst",
    "test_stalled_says_that_tokens_wait_for_slots",
)


def same(kernels: Kernels, tables: dict[str, np.ndarray], rows: np.ndarray, seed: int, **rules: int) -> np.ndarray:
    """The rows that both give; tables change in place."""
    inputs = {"rows": rows, "fresh": NONE, "chosen": NONE}
    expected = copied(tables)
    wanted = packed_advance(rows, NONE, expected, fixed=True, **rules)
    found = run(kernels, RAGGED_ADVANCE, {**tables, **inputs}, rules, seed, 4 * (seed % 2))
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    assert bool(found[2]) == wanted[2]
    assert_same(tables, expected)
    return found[0]


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.sampled_from((12, 40)))
def test_equals_the_reference_of_the_dynamic_form(kernels: Kernels, seed: int, max_steps: int, positions: int) -> None:
    """With rows enough for whatever starts, and fresh rows among those that come in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(seed), 5 * positions))
        contract.test_equals_the_reference.hypothesis.inner_test(seed, max_steps, positions)


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 5))
def test_equals_the_reference_of_refined_prompts(kernels: Kernels, seed: int, max_steps: int) -> None:
    """Several rows of a token are in flight, and each keeps the slot that its step has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refined, "run", stand_in(kernels, np.random.default_rng(seed), 60))
        refined.test_equals_the_reference.hypothesis.inner_test(seed, max_steps)


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.integers(0, 70), st.booleans(), st.booleans(), st.integers(0, 5))
def test_equals_the_reference_of_the_fixed_form(
    kernels: Kernels, seed: int, max_steps: int, spare: int, runs_on: bool, token_major: bool, order: int
) -> None:
    random = np.random.default_rng(seed)
    tables, rows, fresh = random_state(random, max_steps, pending=True, positions=40)
    later = rows[: len(rows) - fresh]
    tables["sequences"][:, Column.LIVE_ROWS] = np.bincount(later[:, 0], minlength=len(tables["sequences"]))
    if runs_on:
        tables["forced_depth"][:] = 0
    for column, value in ((Control.MAX_ROWS, (0, 3, 20, 33, 100, 1000)), (Control.SEQUENCE_ROWS, (1, 18, 1000))):
        tables["control"][column] = random.choice(value)
    found = same(
        kernels,
        tables,
        padded(later, len(later) + spare, -1),
        order,
        max_steps=max_steps,
        runs_on=int(runs_on),
        token_major=int(token_major),
    )
    event(f"rows for all {bool((found[-1:] < 0).all())}")


@pytest.mark.parametrize("name", RULES)
def test_rules(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(len(name)), 130))
    getattr(contract, name)()


@pytest.mark.parametrize("places", (0, 1))
def test_nothing_to_do(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, places: int) -> None:
    monkeypatch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(places), 3))
    contract.test_nothing_to_do(places)


@pytest.mark.parametrize(("places", "slots", "seed"), [(900, 4000, 1), (900, 700, 2), (300, 4000, 3)])
def test_more_places_than_threads_and_than_shared_memory(kernels: Kernels, places: int, slots: int, seed: int) -> None:
    """Prompts of 900 places share 400 rows, with slots for all of them and without; several passes, some finish."""
    random = np.random.default_rng(seed)
    tables = empty_tables(places, 12, 3, slots)
    for place in random.permutation(places):
        admit(tables, int(place), random.integers(0, 11, random.integers(1, 9)), int(random.integers(1, 10)))
    tables["control"][:2] = 390, 5
    tables["counters"][Counter.PASSES] = 123_456
    rows = np.full((400, 4), -1, np.int32)
    for number in range(3):
        rows = same(kernels, tables, rows, seed + number, max_steps=3)
        live = rows[rows[:, 0] >= 0]
        assert len(live) > 150
        keep = live[(live[:, 2] < 3) & (random.random(len(live)) < 0.5)]  # as RaggedHalt leaves them
        keep = keep + np.array([0, 0, 1, 0], np.int32)
        keep[:, 3] = -1
        tables["sequences"][:, Column.LIVE_ROWS] = np.bincount(keep[:, 0], minlength=places)
        tables["counters"][Counter.PASSES] += 1
        rows = padded(keep, 400, -1)


def test_a_sequence_gives_back_more_slots_than_threads(kernels: Kernels) -> None:
    """In the contract's order: 3 steps of 700 positions, some without a slot, of two of three places."""
    random = np.random.default_rng(4)
    tables = empty_tables(3, 700, 3, 6000)
    names = random.permutation(6000).astype(np.int32)
    used = 0
    for place in range(3):
        admit(tables, place, random.integers(0, 9, 650), 650)
        there = random.random((3, 650)) < 0.7
        count = int(there.sum())
        tables["slots"][place, :, :650][there] = names[used : used + count]
        used += count
        tables["sequences"][place, Column.NEXT_POSITION] = 650 if place != 1 else 600
    tables["slots"][1, :, 600:] = -1
    held = tables["slots"][tables["slots"] >= 0]
    free = np.setdiff1d(np.arange(6000), held).astype(np.int32)
    tables["free_slots"][: len(free)] = free
    tables["counters"][Counter.FREE_SLOTS] = len(free)
    same(kernels, tables, np.full((8, 4), -1, np.int32), 5, max_steps=3)
    assert (tables["slots"][[0, 2]] == -1).all() and tables["counters"][Counter.FINISHED] == 2
