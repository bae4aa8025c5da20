"""The native AddNorm and GatedUnit equal their references in float64; a row's bits depend on nothing but the row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.add_norm import add_norm
from latentcot_export.ops.gated_unit import gated_unit
from latentcot_export.ops.packed_tables import ADD_NORM, GATED_UNIT
from tests.ops.native import run

WIDTHS = st.sampled_from((1, 2, 7, 16, 17, 63, 64, 65, 96, 131, 576, 1536))
ROWS = st.sampled_from((0, 1, 2, 5, 33, 70))
Arrays = dict[str, np.ndarray]


def norm_case(random: np.random.Generator, rows: int, width: int) -> Arrays:
    """Rows of very different sizes."""
    size = random.lognormal(0, 3, (rows, 1))
    return {
        "x": (random.standard_normal((rows, width)) * size).astype(np.float32),
        "residual": (random.standard_normal((rows, width)) * size).astype(np.float32),
        "weight": random.standard_normal(width).astype(np.float32),
    }


def norm(inputs: Arrays, epsilon: float = 1e-5, threads: int = 1) -> list[np.ndarray]:
    return run(ADD_NORM, inputs, {"epsilon": epsilon}, threads)


def gated(gate_up: np.ndarray, threads: int = 1) -> np.ndarray:
    return run(GATED_UNIT, {"gate_up": gate_up}, {}, threads)[0]


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), ROWS, WIDTHS, st.sampled_from((0.0, 1e-6, 1e-2)), st.sampled_from((1, 3)))
def test_add_norm_equals_the_reference(seed: int, rows: int, width: int, epsilon: float, threads: int) -> None:
    inputs = norm_case(np.random.default_rng(seed), rows, width)
    normed, total = norm(inputs, epsilon, threads)
    np.testing.assert_array_equal(total, inputs["x"] + inputs["residual"])
    # the sum is rounded to float32 before it is normed, in the graph as in the model
    wanted, _ = add_norm(
        torch.from_numpy(total).double(),
        torch.zeros(rows, width, dtype=torch.float64),
        torch.from_numpy(inputs["weight"]).double(),
        epsilon=epsilon,
    )
    np.testing.assert_allclose(normed, wanted.numpy(), rtol=1e-5, atol=1e-30)


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), ROWS, WIDTHS, st.sampled_from((0.1, 3.0, 40.0)), st.sampled_from((1, 3)))
def test_gated_unit_equals_the_reference(seed: int, rows: int, width: int, size: float, threads: int) -> None:
    random = np.random.default_rng(seed)
    gate_up = (random.standard_normal((rows, 2 * width)) * size).astype(np.float32)
    wanted = gated_unit(torch.from_numpy(gate_up).double()).numpy()
    # relative: a small gate is as exact as a large one
    np.testing.assert_allclose(gated(gate_up, threads), wanted, rtol=1e-6, atol=1e-30)


def test_silu_at_the_ends() -> None:
    gates = np.array(
        [0.0, -0.0, 1e-8, -1e-8, 90.0, -90.0, 3e38, -3e38, np.inf, -np.inf, np.nan, -87.0, 1e-42], np.float32
    )
    found = gated(np.concatenate((gates, np.ones_like(gates)))[None])[0]
    wanted = F.silu(torch.from_numpy(gates)).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-35)
    assert found[8] == np.inf and np.isnan(found[[9, 10]]).all()


def test_what_is_not_a_number_stays_in_its_row() -> None:
    inputs = norm_case(np.random.default_rng(3), 4, 70)
    wanted = norm(inputs)
    inputs["x"][2, 69] = np.nan
    found = norm(inputs)
    assert np.isnan(found[0][2]).all() and np.isnan(found[1][2]).sum() == 1
    for a, b in zip(found, wanted, strict=True):
        assert np.delete(a, 2, 0).tobytes() == np.delete(b, 2, 0).tobytes()


@pytest.mark.parametrize("width", [5, 64, 203, 1536])
def test_neighbours_and_threads_do_not_change_a_bit(width: int) -> None:
    random = np.random.default_rng(5)
    inputs = norm_case(random, 70, width)
    gate_up = (random.standard_normal((70, 2 * width)) * 3).astype(np.float32)
    together = [*norm(inputs), gated(gate_up)]
    for threads in (2, 4):
        assert [x.tobytes() for x in (*norm(inputs, threads=threads), gated(gate_up, threads))] == [
            x.tobytes() for x in together
        ]
    for part in (slice(0, 1), slice(69, 70), slice(3, 20), slice(17, 50)):
        rows = {"x": inputs["x"][part], "residual": inputs["residual"][part], "weight": inputs["weight"]}
        for found, all_rows in zip((*norm(rows), gated(gate_up[part])), together, strict=True):
            assert found.tobytes() == all_rows[part].tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residual": (3, 8)}, "AddNorm: residual has size 3 along axis 0, but must have 2 (the rows of x)."),
        ({"residual": (2, 7)}, "AddNorm: residual has size 7 along axis 1, but must have 8 (the width of x)."),
        ({"weight": (9,)}, "AddNorm: weight has size 9 along axis 0, but must have 8 (the width of x)."),
        ({"weight": (1, 8)}, "AddNorm: weight has 2 dimensions, but must have 1."),
        ({"x": (2, 0), "residual": (2, 0), "weight": (0,)}, "AddNorm: x has no columns, but a norm needs at least 1."),
    ],
)
def test_add_norm_refuses(change: dict[str, tuple[int, ...]], words: str) -> None:
    inputs = norm_case(np.random.default_rng(0), 2, 8)
    inputs |= {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(Exception) as caught:
        norm(inputs)
    assert words in str(caught.value)


@pytest.mark.parametrize("epsilon", [-1e-5, np.inf, np.nan])
def test_an_epsilon_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(Exception, match=r"AddNorm: attribute epsilon is .*, but must be finite and at least 0\."):
        norm(norm_case(np.random.default_rng(0), 2, 8), epsilon)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 7), "GatedUnit: gate_up has 7 columns, but must have an even number: gates, then ups."),
        ((8,), "GatedUnit: gate_up has 1 dimensions, but must have 2."),
    ],
)
def test_gated_unit_refuses(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(Exception) as caught:
        gated(np.zeros(shape, np.float32))
    assert words in str(caught.value)


def test_nothing_of_nothing() -> None:
    assert gated(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert gated(np.zeros((0, 6), np.float32)).shape == (0, 3)
