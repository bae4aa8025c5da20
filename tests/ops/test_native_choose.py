"""The native ChooseToken equals the definition by sorting, row by row, with ties, extremes and numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.choose_token import choose_reference
from latentcot_export.ops.packed_choose import packed_choose
from latentcot_export.ops.packed_tables import CHOOSE_TOKEN, Column
from tests.ops.native import admit, assert_same, copied, empty_tables, random_state, run


def choose(tables: dict[str, np.ndarray], logits: np.ndarray, rows: np.ndarray, threads: int = 1) -> np.ndarray:
    """The op; its `record` is the table `logits`, its `logits` are the rows'."""
    inputs = {**tables, "record": tables["logits"], "logits": logits, "rows": rows}
    return run(CHOOSE_TOKEN, inputs, threads=threads)[0]


def choose_one(logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, uniform: float = 0.0) -> int:
    tables = empty_tables(1, 2, 1, 1, len(logits))
    admit(tables, 0, np.array([1]), 2)
    tables["sequences"][0, [Column.NEXT_POSITION, Column.TOP_K]] = 1, top_k
    tables["sampling"][0] = temperature, top_p
    tables["uniform"][0, 1] = uniform
    return int(choose(tables, logits.astype(np.float32)[None], np.array([[0, 0, 1, 0]], np.int32))[0])


def undecided(logits: np.ndarray, temperature: float, top_k: int, top_p: float, uniform: float) -> bool:
    """Whether float32 may rightly fall on the other side of a boundary."""
    row = torch.from_numpy(logits)
    _, kept = choose_reference(row, temperature, top_k, 1.0, uniform)
    mass = kept.sort(descending=True).values.cumsum(0)
    if top_p < 1 and bool((mass - top_p).abs().min() < 1e-5):
        return True
    _, kept = choose_reference(row, temperature, top_k, top_p, uniform)
    return bool((kept.cumsum(0) - uniform).abs().min() < 1e-5)


@settings(max_examples=400)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from((1, 2, 3, 15, 16, 17, 63, 300, 1025, 5000)),
    st.sampled_from((0.05, 0.7, 1.0, 3.0)),
    st.sampled_from((0, 1, 2, 7, 40, 1000)),
    st.sampled_from((1e-6, 0.3, 0.9, 0.999, 1.0)),
    st.sampled_from((0.0, 0.5, 1.0)),
)
def test_equals_the_sorting_definition(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, grid: float
) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal(vocab) * 4
    if grid:
        logits = np.round(logits / grid) * grid  # many equal logits: they must stay or go together
    logits = logits.astype(np.float32)
    uniform = float(random.random(dtype=np.float32))
    assert choose_one(logits, 0) == int(np.argmax(logits))
    if not undecided(logits, temperature, top_k, top_p, uniform):
        wanted, _ = choose_reference(torch.from_numpy(logits), temperature, top_k, top_p, uniform)
        assert choose_one(logits, temperature, top_k, top_p, uniform) == wanted


@settings(max_examples=20)
@given(st.integers(0, 1 << 30), st.sampled_from((0, 3, 50, 300, 3000, 40000)), st.sampled_from((0.5, 0.95, 1.0)))
def test_equals_the_sorting_definition_on_a_real_vocabulary(seed: int, top_k: int, top_p: float) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(49152) * 3).astype(np.float32)
    logits[random.integers(0, 49152, 100)] = random.integers(0, 9)
    uniform = float(random.random(dtype=np.float32))
    if not undecided(logits, 1.0, top_k, top_p, uniform):
        wanted, _ = choose_reference(torch.from_numpy(logits), 1.0, top_k, top_p, uniform)
        assert choose_one(logits, 1.0, top_k, top_p, uniform) == wanted


@settings(max_examples=150)
@given(st.integers(0, 1 << 30))
def test_tables_as_the_reference_leaves_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    tables, rows, _ = random_state(random, 3, pending=False)
    tables["stop_tokens"][:] = random.integers(-1, 11, tables["stop_tokens"].shape)
    tables["uniform"][:] = random.random(tables["uniform"].shape)
    tables["sequences"][:, Column.TOP_K] = random.integers(0, 14, len(tables["sequences"]))
    tables["sampling"][:] = np.stack(
        (random.choice((0, 0.7, 2), len(tables["sampling"])), random.uniform(0.1, 1, 5)), 1
    )
    logits = (random.standard_normal((len(rows), 11)) * 3).astype(np.float32)
    for row, (place, position) in enumerate(rows[:, :2]):
        temperature, top_p = tables["sampling"][place]
        following = min(position + 1, tables["tokens"].shape[1] - 1)
        uniform = float(tables["uniform"][place, following])
        top_k = int(tables["sequences"][place, Column.TOP_K])
        if temperature > 0 and undecided(logits[row], float(temperature), top_k, float(top_p), uniform):
            tables["sampling"][place, 0] = 0
    expected, found = copied(tables), copied(tables)
    np.testing.assert_array_equal(choose(found, logits, rows), packed_choose(logits, rows, expected))
    assert_same(found, expected)


def test_ends_of_the_unit_interval() -> None:
    logits = np.array([0.0, 5.0, -200.0, 5.0])
    assert choose_one(logits, 1.0) == 0
    assert choose_one(logits, 1.0, uniform=1 - 2**-24) == 3
    assert choose_one(logits, 1.0, top_k=1, uniform=0.75) == 3  # both largest stay at top_k 1
    assert choose_one(logits, 1.0, top_p=1e-6, uniform=0.25) == 1
    assert choose_one(logits, 1e-38, uniform=0.75) == 3
    assert choose_one(logits, 3e38, uniform=0.75) == 3


def test_a_mass_that_is_reached_exactly_is_enough() -> None:
    logits = np.array([0.0, 0.0, -200.0, -200.0])  # weights 1, 1, 0, 0
    assert [choose_one(logits, 1.0, top_p=1.0, uniform=u) for u in (0.0, 0.5)] == [0, 1]
    assert choose_one(np.zeros(1024), 1.0, top_p=0.001, uniform=1023.5 / 1024) == 1023  # equals stay together


@pytest.mark.parametrize("width", (3, 100, 5000))
def test_numbers_that_are_none(width: int) -> None:
    logits = np.full(width, np.nan)
    with pytest.raises(Exception, match=r"ChooseToken: logits\[0\] \(sequence 0, position 0\) has no largest value"):
        choose_one(logits, 0)
    logits[1] = -5
    assert choose_one(logits, 0) == 1
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5), (2, 0.5), (40, 0.9)):
        assert choose_one(logits, 1.0, top_k, top_p, 0.9) == 1
    logits[2] = -4
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.99), (40, 0.99)):
        assert choose_one(logits, 1.0, top_k, top_p, 0.0) == 1
        assert choose_one(logits, 1.0, top_k, top_p, 0.999) == 2
    logits[0] = np.inf
    assert choose_one(logits, 0) == 0
    with pytest.raises(Exception, match="no largest value"):
        choose_one(logits, 1.0)
    with pytest.raises(Exception, match="no largest value"):
        choose_one(np.array([np.inf, np.nan, -np.inf]), 0)
    logits[:] = -np.inf
    logits[2] = 3e38
    logits[1] = -3e38
    assert [choose_one(logits, t, k, p, 0.9) for t, k, p in ((0, 0, 1), (1, 0, 1), (1, 0, 0.5), (1, 2, 0.9))] == [2] * 4


def test_candidates_that_all_lie_in_one_part() -> None:
    """top_k first looks at maxima of strided parts of the logits; here one part holds every number there is."""
    logits = np.full(49152, np.nan)
    logits[: 64 * 16 : 16] = 5
    logits[0], logits[63 * 16] = 6, 4
    chosen = {choose_one(logits, 1.0, top_k=50, uniform=u) for u in np.linspace(0, 0.999, 300)}
    assert chosen == set(range(0, 63 * 16, 16))


def test_rounding_never_chooses_what_has_no_weight() -> None:
    for seed in range(200):
        logits = np.full(200, -np.inf)
        logits[:150] = np.random.default_rng(seed).standard_normal(150)
        assert 0 <= choose_one(logits, 1.0, uniform=1 - 2**-24) < 150


def test_a_failing_row_leaves_the_tables_alone() -> None:
    tables = empty_tables(2, 3, 1, 9, 5, recorded=3)
    for place in range(2):
        admit(tables, place, np.array([1]), 3)
    before = copied(tables)
    logits = np.array([[0, 1, 2, 3, 4], [np.nan] * 5], np.float32)
    with pytest.raises(Exception, match="sequence 1, position 0"):
        choose(tables, logits, np.array([[0, 0, 1, 0], [1, 0, 1, 1]], np.int32))
    assert_same(tables, before)


def test_neighbours_and_threads_do_not_change_a_choice() -> None:
    random = np.random.default_rng(5)
    places, vocab = 24, 3001
    tables = empty_tables(places, 2, 1, 99, vocab)
    for place in range(places):
        admit(tables, place, np.array([1]), 2)
    tables["uniform"][:] = random.random(tables["uniform"].shape)
    tables["sampling"][:] = np.stack((random.choice((0, 0.7, 2.0), places), random.choice((0.8, 1.0), places)), 1)
    tables["sequences"][:, Column.TOP_K] = random.choice((0, 5, 900), places)
    logits = random.standard_normal((places, vocab), np.float32)
    rows = np.array([[s, 0, 1, 0] for s in range(places)], np.int32)
    together = choose(copied(tables), logits, rows, threads=4)
    assert (together >= 0).all()
    for i in range(places):
        assert choose(copied(tables), logits[i : i + 1], rows[i : i + 1])[0] == together[i]
    backwards = choose(copied(tables), np.ascontiguousarray(logits[::-1]), np.ascontiguousarray(rows[::-1]))
    np.testing.assert_array_equal(backwards[::-1], together)
