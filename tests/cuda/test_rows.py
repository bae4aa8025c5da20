"""AddNorm and GatedUnit in CUDA, run on the CPU, equal their references; a row's bits depend on the row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.add_norm import add_norm
from latentcot_export.ops.gated_unit import gated_unit
from tests.cuda.attention import KINDS, decoded, encoded, kind_of
from tests.cuda.kernels import Kernels, guarded, poisoned

WIDTHS = st.sampled_from((1, 2, 7, 16, 17, 64, 65, 96, 132, 576, 1100, 2050))
ROWS = st.sampled_from((0, 1, 2, 5, 33))
# A unit in the last place of a result of that type, which is rounded once; float32 has its sums' errors.
LIMITS = {"float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}
LEAST = {"float32": 1e-30, "float16": 2**-24, "bfloat16": 1e-30}  # below it float16 has no numbers
Arrays = dict[str, np.ndarray]


def norm(kernels: Kernels, inputs: Arrays, epsilon: float = 1e-5, offset: int = 0, seed: int = 0) -> list[np.ndarray]:
    """normed and total of x, residual and weight, as stored; arrays lie `offset` bytes behind a multiple of 256."""
    rows, width = inputs["x"].shape
    kind = inputs["x"].dtype
    arrays = inputs | {"normed": poisoned((rows, width), kind), "total": poisoned((rows, width), np.float32)}
    sizes = np.array([rows, width, KINDS.index(kind_of(inputs["x"]))], np.int64)
    with guarded(arrays, offset) as held:
        names = ("x", "residual", "weight", "normed", "total")
        kernels.run("add_norm", sizes, np.array([epsilon], np.float32), *(held[n] for n in names), seed=seed)
    return [arrays["normed"], arrays["total"]]


def gated(kernels: Kernels, gate_up: np.ndarray, offset: int = 0) -> np.ndarray:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    arrays = {"gate_up": gate_up, "out": poisoned((rows, width), gate_up.dtype)}
    with guarded(arrays, offset) as held:
        sizes = np.array([rows, width, KINDS.index(kind_of(gate_up))], np.int64)
        kernels.run("gated_unit", sizes, held["gate_up"], held["out"])
    return arrays["out"]


def norm_case(random: np.random.Generator, rows: int, width: int, kind: str = "float32") -> Arrays:
    """Rows of very different sizes; of float16 those whose squares it could not hold too."""
    size = random.lognormal(0, 3, (rows, 1)) if kind != "float16" else random.lognormal(0, 1, (rows, 1))
    return {
        "x": encoded((random.standard_normal((rows, width)) * size).astype(np.float32), kind),
        "residual": (random.standard_normal((rows, width)) * size).astype(np.float32),
        "weight": random.standard_normal(width).astype(np.float32),
    }


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1 << 30),
    ROWS,
    WIDTHS,
    st.sampled_from(KINDS),
    st.sampled_from((0.0, 1e-6, 1e-2)),
    st.sampled_from((0, 4)),
)
def test_add_norm_equals_the_reference(
    kernels: Kernels, seed: int, rows: int, width: int, kind: str, epsilon: float, offset: int
) -> None:
    inputs = norm_case(np.random.default_rng(seed), rows, width, kind)
    normed, total = norm(kernels, inputs, epsilon, offset, seed % 3)
    assert total.dtype == np.float32
    np.testing.assert_array_equal(total, decoded(inputs["x"]) + inputs["residual"])
    wanted, _ = add_norm(
        torch.from_numpy(total).double(),
        torch.zeros(rows, width, dtype=torch.float64),
        torch.from_numpy(inputs["weight"]).double(),
        epsilon=epsilon,
    )
    seen = ~torch.isnan(wanted).numpy()  # a row of zeros has no norm without epsilon
    np.testing.assert_allclose(decoded(normed)[seen], wanted.numpy()[seen], rtol=LIMITS[kind], atol=LEAST[kind])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1 << 30),
    ROWS,
    WIDTHS,
    st.sampled_from(KINDS),
    st.sampled_from((0.1, 3.0, 40.0)),
    st.sampled_from((0, 4)),
)
def test_gated_unit_equals_the_reference(
    kernels: Kernels, seed: int, rows: int, width: int, kind: str, size: float, offset: int
) -> None:
    random = np.random.default_rng(seed)
    gate_up = encoded((random.standard_normal((rows, 2 * width)) * size).astype(np.float32), kind)
    wanted = gated_unit(torch.from_numpy(decoded(gate_up)).double()).numpy()
    # relative: a small gate is as exact as a large one
    limit = 1e-6 if kind == "float32" else LIMITS[kind]
    np.testing.assert_allclose(decoded(gated(kernels, gate_up, offset)), wanted, rtol=limit, atol=LEAST[kind])


def test_silu_at_the_ends(kernels: Kernels) -> None:
    gates = np.array(
        [0.0, -0.0, 1e-8, -1e-8, 90.0, -90.0, 3e38, -3e38, np.inf, -np.inf, np.nan, -87.0, 1e-42], np.float32
    )
    found = gated(kernels, np.concatenate((gates, np.ones_like(gates)))[None])[0]
    wanted = F.silu(torch.from_numpy(gates)).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-35)
    assert found[8] == np.inf and np.isnan(found[[9, 10]]).all()


def test_what_is_not_a_number_stays_in_its_row(kernels: Kernels) -> None:
    inputs = norm_case(np.random.default_rng(3), 4, 70)
    wanted = norm(kernels, inputs)
    inputs["x"][2, 69] = np.nan
    found = norm(kernels, inputs)
    assert np.isnan(found[0][2]).all() and np.isnan(found[1][2]).sum() == 1
    for a, b in zip(found, wanted, strict=True):
        assert np.delete(a, 2, 0).tobytes() == np.delete(b, 2, 0).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [5, 64, 203, 1536])
def test_neighbours_and_addresses_do_not_change_a_bit(kernels: Kernels, width: int, kind: str) -> None:
    random = np.random.default_rng(5)
    inputs = norm_case(random, 40, width, kind)
    gate_up = encoded((random.standard_normal((40, 2 * width)) * 3).astype(np.float32), kind)
    together = [*norm(kernels, inputs), gated(kernels, gate_up)]
    apart = [*norm(kernels, inputs, offset=4, seed=1), gated(kernels, gate_up, offset=4)]  # not 16 bytes at once
    assert [x.tobytes() for x in apart] == [x.tobytes() for x in together]
    for part in (slice(0, 1), slice(39, 40), slice(3, 20)):
        rows = {"x": inputs["x"][part], "residual": inputs["residual"][part], "weight": inputs["weight"]}
        for found, all_rows in zip((*norm(kernels, rows), gated(kernels, gate_up[part])), together, strict=True):
            assert found.tobytes() == all_rows[part].tobytes()


def test_nothing_of_nothing(kernels: Kernels) -> None:
    assert gated(kernels, np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert gated(kernels, np.zeros((0, 6), np.float32)).shape == (0, 3)
