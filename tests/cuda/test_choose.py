"""ChooseToken as a CUDA kernel: what tests/ops/test_native_choose.py asks of the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_tables import CHOOSE_TOKEN, Column, Counter, Fault
from tests.cuda.kernels import Kernels
from tests.cuda.state_ops import run, stand_in
from tests.ops import test_native_choose as contract
from tests.ops.native import admit, copied, empty_tables

RULES = (
    "test_ends_of_the_unit_interval",
    "test_a_mass_that_is_reached_exactly_is_enough",
    "test_rounding_never_chooses_what_has_no_weight",
)
TOP_P, GRIDS = st.sampled_from((1e-6, 0.3, 0.9, 0.999, 1.0)), st.sampled_from((0.0, 0.5, 1.0))


@settings(max_examples=120)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from((1, 2, 3, 15, 16, 17, 63, 300, 1025, 5000)),
    st.sampled_from((0.05, 0.7, 1.0, 3.0)),
    st.sampled_from((0, 1, 2, 7, 40, 1000)),
    TOP_P,
    GRIDS,
)
def test_equals_the_sorting_definition(
    kernels: Kernels, seed: int, vocab: int, temperature: float, top_k: int, top_p: float, grid: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(seed), 1))
        inner = contract.test_equals_the_sorting_definition.hypothesis.inner_test
        inner(seed, vocab, temperature, top_k, top_p, grid)


@settings(max_examples=5)
@given(st.integers(0, 1 << 30), st.sampled_from((0, 3, 50, 300, 3000, 40000)), st.sampled_from((0.5, 0.95, 1.0)))
def test_a_real_vocabulary(kernels: Kernels, seed: int, top_k: int, top_p: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(seed), 0))
        inner = contract.test_equals_the_sorting_definition_on_a_real_vocabulary.hypothesis.inner_test
        inner(seed, top_k, top_p)


@settings(max_examples=60)
@given(st.integers(0, 1 << 30))
def test_tables_as_the_reference_leaves_them(kernels: Kernels, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(seed), 4))
        contract.test_tables_as_the_reference_leaves_them.hypothesis.inner_test(seed)


@pytest.mark.parametrize("name", RULES)
def test_rules(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(contract, "run", stand_in(kernels, np.random.default_rng(len(name)), 1))
    getattr(contract, name)()


def one(kernels: Kernels, logits: np.ndarray, *choice: float) -> int | None:
    """The token of one row by temperature, top_k, top_p and uniform; None where the kernel reports a fault."""
    temperature, top_k, top_p, uniform = choice
    tables = empty_tables(1, 2, 1, 1, len(logits))
    admit(tables, 0, np.array([1]), 2)
    tables["sequences"][0, [Column.NEXT_POSITION, Column.TOP_K]] = 1, top_k
    tables["sampling"][0] = temperature, top_p
    tables["uniform"][0, 1] = uniform
    tables |= {"record": tables["logits"], "logits": logits.astype(np.float32)[None]}
    chosen = int(run(kernels, CHOOSE_TOKEN, {**tables, "rows": np.array([[0, 0, 1, 0]], np.int32)})[0][0])
    if tables["counters"][Counter.STALLED] == Fault.CHOOSE:
        assert chosen == -1 and tables["sequences"][0, Column.LENGTH] == 1 and tables["tokens"][0, 1] == -1
        return None
    assert chosen == tables["tokens"][0, 1] >= 0
    return chosen


@pytest.mark.parametrize("width", (3, 100, 5000))
def test_numbers_that_are_none(kernels: Kernels, width: int) -> None:
    """As the test of that name for the CPU; where that refuses, a fault is left."""
    logits = np.full(width, np.nan)
    assert one(kernels, logits, 0, 0, 1, 0) is None
    logits[1] = -5
    assert one(kernels, logits, 0, 0, 1, 0) == 1
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5), (2, 0.5), (40, 0.9)):
        assert one(kernels, logits, 1.0, top_k, top_p, 0.9) == 1
    logits[2] = -4
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.99), (40, 0.99)):
        assert one(kernels, logits, 1.0, top_k, top_p, 0.0) == 1
        assert one(kernels, logits, 1.0, top_k, top_p, 0.999) == 2
    logits[0] = np.inf
    assert one(kernels, logits, 0, 0, 1, 0) == 0
    assert one(kernels, logits, 1.0, 0, 1, 0) is None
    assert one(kernels, np.array([np.inf, np.nan, -np.inf]), 0, 0, 1, 0) is None
    logits[:] = -np.inf
    assert one(kernels, logits, 0, 0, 1, 0) is None
    logits[2] = 3e38
    logits[1] = -3e38
    assert [one(kernels, logits, t, k, p, 0.9) for t, k, p in ((0, 0, 1), (1, 0, 1), (1, 0, 0.5), (1, 2, 0.9))] == [
        2
    ] * 4


def test_values_spread_over_all_exponents(kernels: Kernels) -> None:
    """Where cutting a range into equal slices decides few values a look."""
    signs = np.where(np.arange(5000) % 2, 1, -1)
    logits = (signs * np.ldexp(1.0, np.arange(5000) % 270 - 145)).astype(np.float32)
    for top_k in (1, 9, 300, 2500, 4999):
        floor = np.sort(logits)[::-1][top_k - 1]
        assert one(kernels, logits, 3e38, top_k, 1, 0) == int(np.argmax(logits >= floor))
        kept = np.flatnonzero(logits >= floor)
        assert one(kernels, logits, 3e38, top_k, 1, 1 - 2**-24) == kept[-1]


def test_neighbours_and_order_do_not_change_a_choice(kernels: Kernels) -> None:
    random = np.random.default_rng(5)
    places, vocab = 12, 3000
    tables = empty_tables(places, 2, 1, 99, vocab, recorded=1)
    for place in range(places):
        admit(tables, place, np.array([1]), 2)
    tables["uniform"][:] = random.random(tables["uniform"].shape)
    tables["sampling"][:] = np.stack((random.choice((0, 0.7, 2.0), places), random.choice((0.8, 1.0), places)), 1)
    tables["sequences"][:, Column.TOP_K] = random.choice((0, 5, 900), places)
    tables["record"] = tables["logits"]
    logits = random.standard_normal((places, vocab), np.float32)
    rows = np.array([[s, 0, 1, 0] for s in range(places)], np.int32)

    def chosen(picked: np.ndarray, seed: int, offset: int = 0) -> list[int]:
        given = copied(tables) | {"logits": logits[picked], "rows": rows[picked]}
        found = run(kernels, CHOOSE_TOKEN, given, seed=seed, offset=offset)[0]
        np.testing.assert_array_equal(given["record"][picked, 0], logits[picked])
        return found.tolist()

    together = chosen(np.arange(places), 0)
    assert min(together) >= 0
    assert chosen(np.arange(places), 3, 4) == together  # 4: no 16 bytes at a time
    assert chosen(np.arange(places)[::-1], 4) == together[::-1]
    for i in range(places):
        assert chosen(np.array([i]), i) == [together[i]]
