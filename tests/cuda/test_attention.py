"""RaggedAttention's CUDA kernels, run on the CPU, equal the reference; a row's bits depend on its own sequence alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_tables import Counter
from latentcot_export.spec import VISIBILITIES
from tests.cuda.attention import KINDS, Call, attend, call_of_rows, decoded, encoded, random_call, reference, workspace
from tests.cuda.kernels import Kernels

# Heads, kv heads, head_dim: those of the tensor cores up to 128, whole and in part; longer ones; more query heads of a kv
# head than one warp takes at once.
SHAPES = (
    (1, 1, 2),
    (3, 3, 10),
    (6, 2, 64),
    (4, 1, 80),
    (18, 1, 96),
    (2, 1, 128),
    (2, 2, 130),
    (1, 1, 272),
    (2, 1, 520),
)
# With a half cache, queries and weights are rounded to its type before their products, as its keys and values are: each of
# some ten numbers that decide a result is off by half a unit in its last place, 2^-12 of float16 and 2^-9 of bfloat16.
LIMITS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
UNIT = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}  # of the last place, at 1
FAULT = -4


@pytest.mark.parametrize("kind", ("float16", "bfloat16"))
def test_a_product_of_the_tensor_cores_has_its_published_layout(kernels: Kernels, kind: str) -> None:
    """Fragments laid out by the tables of the PTX ISA (mma.m16n8k16): element i of lane 4 group + thread."""
    random = np.random.default_rng(1)
    a, b = random.integers(-8, 8, (16, 16)), random.integers(-8, 8, (3, 16, 8))
    c = random.integers(-8, 8, (3, 16, 8)).astype(np.float32)
    group, thread = np.arange(32) // 4, np.arange(32) % 4
    of_a = [(group + 8 * (i % 4 // 2), 2 * thread + i % 2 + 8 * (i // 4)) for i in range(8)]
    of_b = [(2 * thread + i % 2 + 8 * (i // 2), group) for i in range(4)]
    of_c = [(group + 8 * (i // 2), 2 * thread + i % 2) for i in range(4)]

    def bits(numbers: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(encoded(numbers.astype(np.float32), kind)).view(np.uint32)

    lanes_a = bits(np.stack([a[row, k] for row, k in of_a], axis=1))
    lanes_b = bits(np.stack([b[:, k, column].T for k, column in of_b], axis=2))
    lanes_c = np.ascontiguousarray(np.stack([c[:, row, column].T for row, column in of_c], axis=2))
    kernels.run("mma", lanes_a, lanes_b, lanes_c, np.array([KINDS.index(kind)], np.int64))
    wanted = c + a @ b
    for i, (row, column) in enumerate(of_c):
        np.testing.assert_array_equal(lanes_c[:, :, i], wanted[:, row, column].T)


def check(kernels: Kernels, call: Call, **how: object) -> None:
    """One run, against the reference: results, cache, and nothing written that is nobody's."""
    stored, data = call.arrays["cache"].copy(), call.arrays["qkv"]
    wanted, cache = reference(call)
    found = decoded(attend(kernels, call, **how))  # type: ignore[arg-type]
    after, before = decoded(call.arrays["cache"]), decoded(stored)
    limit = LIMITS[KINDS[0] if stored.dtype == np.float32 else KINDS[1] if stored.dtype == np.float16 else KINDS[2]]
    if data.dtype != np.float32:  # the result is rounded too
        limit += UNIT["float16" if data.dtype == np.float16 else "bfloat16"]
    np.testing.assert_allclose(found, wanted, rtol=limit, atol=limit)
    rows = call.arrays["rows"]
    written = np.zeros(after.shape[1], bool)
    written[rows[:, 3][rows[:, 3] >= 0]] = True
    unit = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2**-10}.get(stored.dtype, 2**-7)
    dims = slice(call.head_dim)
    np.testing.assert_allclose(after[:, written][..., dims], cache[:, written][..., dims], rtol=unit, atol=1e-5)
    assert after[:, ~written].tobytes() == before[:, ~written].tobytes()
    assert not after[:, written, :, call.head_dim :].any()
    assert not call.counters.any()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from(SHAPES),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.integers(1, 5),
    st.sampled_from((12, 12, 70, 150)),
    st.sampled_from(VISIBILITIES),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_equals_the_reference(
    kernels: Kernels,
    seed: int,
    shape: tuple[int, int, int],
    stored: str,
    data: str,
    steps: int,
    positions: int,
    visibility: str,
    weighted: bool,
    normed: bool,
    prompt: bool,
    more: st.DataObject,
) -> None:
    random = np.random.default_rng(seed)
    pairs = more.draw(st.sampled_from((shape[2] // 2, 1, max(1, shape[2] // 8))))
    switches = {"steps": steps, "positions": positions, "visibility": visibility, "data": data, "stored": stored}
    call = random_call(random, shape, pairs=pairs, weighted=weighted, normed=normed, **switches)
    if len(call.arrays["rows"]) > 40:
        call = call.part(sorted(random.choice(len(call.arrays["rows"]), 40, replace=False).tolist()))
        rows = call.arrays["rows"]
        others = np.ones(call.arrays["cache"].shape[1], bool)  # rows left out: their keys are there already
        others[rows[:, 3][rows[:, 3] >= 0]] = False
        owned = np.zeros_like(others)
        owned[call.arrays["slots"][call.arrays["slots"] >= 0]] = True
        call.arrays["cache"][:, others & owned] = 0
    check(kernels, call, prompt=prompt, seed=int(random.integers(0, 3)))


def long_call(stored: str, shape: tuple[int, int, int], visibility: str = "duo", least: int = 150) -> Call:
    """More rows than one pass spreads by chunk: whole tiles, parts of tiles and rows alone; three chunks of keys."""
    return call_of_rows(least, shape, steps=3, positions=150, visibility=visibility, stored=stored, weighted=True)


@pytest.mark.parametrize(("stored", "shape"), [*zip(KINDS, ((6, 2, 40), (5, 1, 72), (2, 1, 128)), strict=True)])
def test_a_long_prompt_equals_the_reference(kernels: Kernels, stored: str, shape: tuple[int, int, int]) -> None:
    check(kernels, long_call(stored, shape), prompt=True, seed=1)


@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_nobody_changes_a_bit_of_a_row(kernels: Kernels, stored: str, visibility: str) -> None:
    call = long_call(stored, (3, 1, 24), visibility)
    random, count = np.random.default_rng(5), len(call.arrays["rows"])
    together = attend(kernels, call, prompt=True)  # keys and values stand in the cache now: a row sees what it saw
    for part, prompt, dead in (
        (slice(None), False, 0),  # every row by itself
        (slice(None, None, -1), True, 0),
        (slice(count // 3, count // 3 + 30), True, 3),  # few enough to be spread by chunk
        (slice(count // 2, count // 2 + 20), True, 150),  # many, of which few live
        (slice(count - 1, None), False, 2),
    ):
        some = call.part(part)
        found = attend(kernels, some.with_dead(random, dead), prompt=prompt, seed=1)
        live = len(some.arrays["rows"])
        assert found[:live].tobytes() == np.ascontiguousarray(together[part]).tobytes()
        assert not found[live:].any()


@pytest.mark.parametrize("prompt", (False, True))
def test_the_same_workspace_serves_again(kernels: Kernels, prompt: bool) -> None:
    """A captured graph replays: the call leaves the memory such that the next one finds it as good as new."""
    call = long_call("bfloat16", (2, 1, 16)).part(slice(0, 140 if prompt else 60))
    call.arrays["cache"] = np.nan_to_num(decoded(call.arrays["cache"]))
    call.arrays["cache"] = encoded(call.arrays["cache"], "bfloat16")
    memory = workspace(kernels, call, prompt)
    first = attend(kernels, call, prompt=prompt, memory=memory, seed=1)
    rows = call.arrays["rows"].copy()
    call.arrays["rows"][len(rows) // 2 :] = -1  # fewer rows in between
    assert attend(kernels, call, prompt=prompt, memory=memory, seed=2)[: len(rows) // 2].tobytes() == (
        first[: len(rows) // 2].tobytes()
    )
    call.arrays["rows"][:] = rows
    assert attend(kernels, call, prompt=prompt, memory=memory, seed=3).tobytes() == first.tobytes()


@pytest.mark.parametrize("stored", KINDS)
def test_a_value_that_is_no_number_reaches_who_sees_it(kernels: Kernels, stored: str) -> None:
    """A later token's NaN stays out of earlier rows, though one tile reads its values for all of them."""
    random = np.random.default_rng(2)
    call = call_of_rows(2, (2, 1, 64), steps=1, positions=16, stored=stored)
    slots = np.full((1, 1, 16), -1, np.int32)
    slots[0, 0] = random.permutation(16)
    rows = np.stack([np.zeros(16), np.arange(16), np.ones(16), slots[0, 0]], axis=1).astype(np.int32)
    lines = random.integers(0, len(call.arrays["qkv"]), 16)
    more = {n: np.ascontiguousarray(call.arrays[n][lines]) for n in ("qkv", "cos", "sin")}
    cache = encoded(np.full((2, 16, 1, 64), np.nan, np.float32), stored)
    call.arrays = more | {"rows": rows, "slots": slots, "cache": cache}
    wanted = attend(kernels, call.part(slice(None)), prompt=True)
    call.arrays["qkv"][9, 3 * 64 + 5] = np.nan  # value of position 9, dimension 5
    for prompt in (True, False):
        found = attend(kernels, call.part(slice(None)), prompt=prompt)
        assert found[:9].tobytes() == wanted[:9].tobytes()
        # the tensor cores' kernel may give up the whole of a row that sees one
        assert np.isnan(found[9:, [5, 64 + 5]]).all()


def test_a_float16_cache_keeps_what_is_too_large(kernels: Kernels) -> None:
    call = call_of_rows(4, (2, 1, 16), steps=2, positions=12, stored="float16")
    call.arrays["qkv"][:] = 1e6
    assert np.isfinite(attend(kernels, call)).all()
    assert np.isfinite(call.arrays["cache"][:, call.arrays["rows"][:, 3]]).all()


FAULTS = {
    "a sequence": lambda call: call.arrays["rows"].__setitem__((2, 0), 5),
    "a sequence below 0": lambda call: call.arrays["rows"].__setitem__((2, 0), -7),
    "a position": lambda call: call.arrays["rows"].__setitem__((2, 1), call.arrays["slots"].shape[2]),
    "step 0": lambda call: call.arrays["rows"].__setitem__((2, 2), 0),
    "a step": lambda call: call.arrays["rows"].__setitem__((2, 2), 4),
    "a slot": lambda call: call.arrays["rows"].__setitem__((2, 3), call.arrays["cache"].shape[1]),
    "a slot of another": lambda call: call.arrays["rows"].__setitem__((2, 3), call.arrays["rows"][1, 3]),
    "no slot": lambda call: call.arrays["rows"].__setitem__((2, 3), -1),
}


@pytest.mark.parametrize("prompt", (False, True))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_no_table_has_is_dead(kernels: Kernels, fault: str, prompt: bool) -> None:
    call = call_of_rows(8, (2, 1, 16), steps=3, positions=40, stored="float16")
    attend(kernels, call)
    right = attend(kernels, call.part(slice(None)), prompt=prompt)
    FAULTS[fault](call)
    cache = call.arrays["cache"].copy()
    found = attend(kernels, call, prompt=prompt)
    assert call.counters[Counter.STALLED] == FAULT and np.count_nonzero(call.counters) == 1
    assert not found[2].any()
    assert np.delete(found, 2, 0).tobytes() == np.delete(right, 2, 0).tobytes()
    assert call.arrays["cache"].tobytes() == cache.tobytes()
    call.counters[Counter.STALLED] = -1  # what went wrong first stays
    attend(kernels, call, prompt=prompt)
    assert call.counters[Counter.STALLED] == -1


@pytest.mark.parametrize("fault", ("slots", "weights"))
def test_what_is_read_is_checked(kernels: Kernels, fault: str) -> None:
    call = call_of_rows(8, (2, 1, 16), steps=3, positions=40, weighted=True)
    place, position, step, _ = call.arrays["rows"][
        np.argmax(call.arrays["rows"][:, 1] * (call.arrays["rows"][:, 2] > 1))
    ]
    assert position > 0 and step > 1
    call.arrays["slots"][place, 1, 0] = 0
    if fault == "slots":
        call.arrays["slots"][place, 1, 0] = call.arrays["cache"].shape[1]
    else:
        call.arrays["weights"][place, 0, 1] = 1.5
    attend(kernels, call)
    assert call.counters[Counter.STALLED] == FAULT


def test_many_steps_and_no_rows(kernels: Kernels) -> None:
    """More planes than a list has entries for 64 positions; and calls with nothing to do."""
    call = call_of_rows(8, (2, 1, 32), steps=40, positions=20, visibility="all", stored="float16")
    check(kernels, call.part(slice(None)), prompt=True)
    check(kernels, call, prompt=False)
    assert attend(kernels, call.part(slice(0, 0))).shape == (0, 64)
    dead = call.part(slice(0, 0)).with_dead(np.random.default_rng(1), 4)
    assert not attend(kernels, dead, prompt=True).any() and not dead.counters.any()
