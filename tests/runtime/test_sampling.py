"""Seeds become the uniform numbers that docs/sampling.md states, and values out of range are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcot_export.errors import InputError
from latentcot_export.runtime import SamplingParams, uniforms

SEEDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from((0, 1, 2**63, 2**64 - 1)))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "sampling.md"


def philox4x64(counter: int, key: int) -> int:
    """First word of a Philox4x64-10 block, counter (counter, 0, 0, 0) and key (key, 0), after Salmon et al. 2011."""
    mask = 2**64 - 1
    words, keys = [counter, 0, 0, 0], [key, 0]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(second >> 64) ^ words[1] ^ keys[0], second & mask, (first >> 64) ^ words[3] ^ keys[1], first & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words[0]


def test_the_table_of_the_documentation() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `0x\w+` \| \d+ \| ([\d.]+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for seed, t, u in rows:
        assert uniforms(int(seed), int(t), 1)[0] == np.float32(u) == float(u)


@given(SEEDS, st.integers(0, 10_000), st.integers(1, 9))
def test_is_the_first_word_of_the_block_of_each_position(seed: int, start: int, count: int) -> None:
    wanted = [(philox4x64(t + 1, seed) >> 40) * 2.0**-24 for t in range(start, start + count)]
    got = uniforms(seed, start, count)
    assert got.dtype == np.float32 and got.shape == (count,)
    assert got.tolist() == wanted


def test_is_uniform_and_below_one() -> None:
    u = uniforms(5, 0, 100_000)
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    # chi-square of 99 degrees of freedom: mean 99, standard deviation 14
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * 14


def test_takes_what_numpy_gives() -> None:
    got = SamplingParams(np.float32(0.5), np.int64(3), np.float64(0.25), np.uint64(2**64 - 1))
    assert got == SamplingParams(0.5, 3, 0.25, 2**64 - 1)
    assert [type(x) for x in (got.temperature, got.top_k, got.top_p, got.seed)] == [float, int, float, int]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1e-9, float("nan"), float("inf"), -float("inf"), "1", None, True, 10**400, 1j]),
        ("top_k", [-1, 1.0, "3", None, True, float("nan")]),
        ("top_p", [0, 0.0, -0.1, 1.0000001, float("nan"), float("inf"), "1", None, True]),
        ("seed", [-1, 2**64, 0.0, "0", None, True]),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^{name} is .+, it must be .+; give ") as refusal:
            SamplingParams(**{name: value})
        assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300


def test_extremes_become_what_float32_can_hold() -> None:
    temperature, top_k, top_p = SamplingParams(1e300, 10**30, 1e-300).for_graph(96)
    assert np.isfinite(temperature) and top_k == 0 and 0 < top_p < 1e-30
    assert SamplingParams(top_k=95).for_graph(96)[1] == 95
