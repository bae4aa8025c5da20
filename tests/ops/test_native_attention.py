"""The native RaggedAttention equals its reference in float64; its bits depend on nothing but the row's own sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_attention import packed_attention
from latentcot_export.ops.packed_tables import RAGGED_ATTENTION
from latentcot_export.spec import VISIBILITIES
from tests.ops.native import random_state, run

SHAPES = ((1, 1, 2), (2, 1, 4), (3, 3, 10), (6, 2, 16), (9, 3, 64), (4, 2, 72))  # heads, kv heads, head_dim


def attend(inputs: dict[str, np.ndarray], attributes: dict[str, float], threads: int = 1) -> np.ndarray:
    return run(RAGGED_ATTENTION, inputs, attributes, threads)[0]


def case(
    random: np.random.Generator,
    shape: tuple[int, int, int],
    half: bool,
    max_steps: int,
    positions: int = 12,
    *,
    pairs: int | None = None,
    normed: bool = False,
    refined: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Inputs with a random cache and random rows of several sequences, layer 1 of 3. RoPE turns `pairs` of each head.

    `refined`: beside a row run all earlier steps of its token.
    """
    heads, kv_heads, head_dim = shape
    tables, rows, _ = random_state(random, max_steps, pending=False, positions=positions)
    if refined:
        steps = [[s, t, j, tables["slots"][s, j - 1, t]] for s, t, k, _ in rows.tolist() for j in range(1, k + 1)]
        rows = np.array(steps, np.int32).reshape(-1, 4)
    lanes = -(-head_dim // 16) * 16
    cache = np.zeros((3, 2, len(tables["free_slots"]), kv_heads, lanes), np.float16 if half else np.float32)
    cache[..., :head_dim] = random.standard_normal((*cache.shape[:-1], head_dim))
    angles = rows[:, 1:2] * random.uniform(0, 1, head_dim // 2 if pairs is None else pairs)
    inputs = {
        "qkv": random.standard_normal((len(rows), (heads + 2 * kv_heads) * head_dim)).astype(np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "rows": rows,
        "slots": tables["slots"],
        "cache": cache,
    }
    attributes: dict[str, float] = {"layer": 1, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    attributes["visibility"] = VISIBILITIES.index("duo")
    if normed:
        # queries and keys of very different sizes, which the norms make alike
        turned = (heads + kv_heads) * head_dim
        inputs["qkv"][:, :turned] *= random.lognormal(0, 3, (len(rows), 1)).astype(np.float32)
        inputs |= {name: random.normal(1, 0.3, head_dim).astype(np.float32) for name in ("q_norm", "k_norm")}
        attributes["epsilon"] = 1e-5
    return inputs, attributes


@settings(max_examples=100)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from(SHAPES),
    st.booleans(),
    st.integers(1, 5),
    st.sampled_from((12, 12, 70)),
    st.sampled_from(VISIBILITIES),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_equals_the_reference(
    seed: int,
    shape: tuple[int, int, int],
    half: bool,
    max_steps: int,
    positions: int,
    visibility: str,
    weighted: bool,
    normed: bool,
    data: st.DataObject,
) -> None:
    random = np.random.default_rng(seed)
    pairs = data.draw(st.sampled_from((shape[2] // 2, 1, max(1, shape[2] // 8))))
    refined = data.draw(st.booleans())
    inputs, attributes = case(
        random,
        shape,
        half,
        max_steps,
        positions,
        pairs=pairs,
        normed=normed,
        refined=refined and visibility != "newest",
    )
    attributes["visibility"] = VISIBILITIES.index(visibility)
    if weighted:
        places, steps, length = inputs["slots"].shape
        inputs["weights"] = random.uniform(1e-4, 1, (places, length, steps)).astype(np.float32)
    if visibility == "newest":  # some rows read and write nothing
        for row in inputs["rows"]:
            if row[2] > 1 and random.random() < 0.3:
                inputs["slots"][row[0], row[2] - 1, row[1]] = -1
                row[3] = -2
    expected = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    if not half:
        expected["cache"] = expected["cache"].double()
    wanted = packed_attention(
        *(expected[n].double() for n in ("qkv", "cos", "sin")),
        *(expected[n] for n in ("rows", "slots", "cache")),
        **{**attributes, "visibility": visibility},  # type: ignore[arg-type]
        **{name: expected.get(name) for name in ("weights", "q_norm", "k_norm")},  # type: ignore[arg-type]
    )
    found = attend(inputs, attributes, threads=int(random.choice((1, 1, 3))))
    # a float16 cache may round a key that float32 computed to the neighbour of what float64 rounds to
    limit = 2e-3 if half else 1e-5
    np.testing.assert_allclose(found, wanted.numpy(), rtol=limit, atol=limit)
    np.testing.assert_allclose(inputs["cache"], expected["cache"].numpy(), rtol=limit, atol=1e-3 if half else 1e-6)
    written = np.zeros(inputs["cache"].shape[2], bool)
    written[inputs["rows"][:, 3][inputs["rows"][:, 3] >= 0]] = True
    assert (inputs["cache"][:, :, ~written] == expected["cache"].numpy()[:, :, ~written]).all()
    assert not inputs["cache"][..., shape[2] :].any()


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("head", ("plain", "normed and turned in part"))
def test_neighbours_and_threads_do_not_change_a_bit(half: bool, visibility: str, head: str) -> None:
    random = np.random.default_rng(11)
    plain = head == "plain"
    inputs, attributes = case(random, (6, 2, 40), half, 4, 300, pairs=None if plain else 5, normed=not plain)
    attributes["visibility"] = VISIBILITIES.index(visibility)
    together = attend(inputs, attributes)
    assert attend(inputs, attributes, threads=4).tobytes() == together.tobytes()
    for i in range(0, len(together), 7):  # keys and values are written already: a row sees what it saw
        alone = {**inputs, **{name: inputs[name][i : i + 1] for name in ("qkv", "cos", "sin", "rows")}}
        assert attend(alone, attributes).tobytes() == together[i].tobytes()
    backwards = {name: np.ascontiguousarray(inputs[name][::-1]) for name in ("qkv", "cos", "sin", "rows")}
    assert attend({**inputs, **backwards}, attributes)[::-1].tobytes() == together.tobytes()


def test_a_float16_cache_keeps_what_is_too_large() -> None:
    inputs, attributes = case(np.random.default_rng(2), (2, 1, 16), True, 2)
    inputs["qkv"][:] = 1e6
    assert np.isfinite(attend(inputs, attributes)).all()
    assert np.isfinite(inputs["cache"]).all()


def test_a_head_of_zeros_is_finite_with_an_epsilon() -> None:
    inputs, attributes = case(np.random.default_rng(2), (2, 1, 16), False, 2, normed=True)
    inputs["qkv"][:] = 0
    assert np.isfinite(attend(inputs, attributes)).all()
