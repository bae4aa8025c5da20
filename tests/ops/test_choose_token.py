"""ChooseToken equals its definition by sorting, ties and extremes included."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.choose_token import choose_reference, sample_tokens


def choose(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    rows = logits.float().unsqueeze(0)
    numbers = [torch.tensor([x], dtype=torch.float32) for x in (temperature, top_p, uniform)]
    return int(sample_tokens(rows, numbers[0], torch.tensor([top_k]), numbers[1], numbers[2]))


@settings(max_examples=300)
@given(
    st.integers(0, 10_000),
    st.integers(2, 300),
    st.sampled_from((0.1, 0.7, 1.0, 3.0)),
    st.sampled_from((0, 1, 2, 7, 1000)),
    st.sampled_from((1e-6, 0.3, 0.9, 0.999, 1.0)),
    st.booleans(),
)
def test_equals_the_sorting_definition(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab, generator=generator) * 4
    if ties:
        logits = logits.round()  # many equal logits: they must stay or go together
    uniform = float(torch.rand(1, generator=generator))
    wanted, probabilities = choose_reference(logits, temperature, top_k, top_p, uniform)
    running = probabilities.cumsum(0)
    if (running - uniform).abs().min() < 1e-5:
        return  # float32 may fall on either side of a boundary this close
    kept = probabilities.sort(descending=True).values.cumsum(0)
    if top_p < 1 and (kept - top_p).abs().min() < 1e-5:
        return
    assert choose(logits, temperature, top_k, top_p, uniform) == wanted


def test_ends_of_the_unit_interval() -> None:
    logits = torch.tensor([0.0, 5.0, -200.0, 5.0])
    assert choose(logits, 1.0, 0, 1.0, 0.0) == 0
    assert choose(logits, 1.0, 0, 1.0, 1 - 2**-24) == 3
    assert choose(logits, 1.0, 1, 1.0, 0.75) == 3  # both largest stay at top_k 1
    assert choose(logits, 1.0, 0, 1e-6, 0.25) == 1


def test_no_rows() -> None:
    nothing = torch.zeros(0)
    assert sample_tokens(torch.zeros(0, 5), nothing + 1, nothing.long(), nothing, nothing).shape == (0,)
