"""Samples follow the softmax they claim: a chi-square test of thousands of seeds against the oracle's probabilities."""

from __future__ import annotations

import functools

import pytest
import torch

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.ops.choose_token import choose_reference
from tests.runtime.sample import Oracle

PROMPT = [5, 17, 60]
SAMPLES = 2560
SETTINGS = [(1.0, 0, 1.0), (0.6, 0, 1.0), (2.5, 0, 1.0), (1.0, 6, 1.0), (1.5, 0, 0.7), (2.0, 12, 0.8)]


@functools.cache
def counts_of(model: LatentCoTForCausalLM, setting: tuple[float, int, float]) -> torch.Tensor:
    """How often each token came first after PROMPT, over one seed a sample; float64 `[V]`."""
    temperature, top_k, top_p = setting
    first = 1000 * SETTINGS.index(setting)
    seeds = list(range(first, first + SAMPLES))
    out = model.generate([PROMPT] * SAMPLES, 1, temperature=temperature, top_k=top_k, top_p=top_p, seed=seeds)
    return torch.bincount(torch.tensor(out.ids)[:, 0], minlength=96).double()


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Standard deviations of the statistic above its mean; rare tokens count as one, so that all expect >= 5."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed, expected = (torch.cat((x[common], x[~common].sum().view(1))) for x in (counts, expected))
    some = expected > 0
    statistic = float(((observed - expected)[some] ** 2 / expected[some]).sum())
    freedom = int(some.sum()) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("setting", SETTINGS)
def test_samples_follow_the_softmax(
    model: LatentCoTForCausalLM, oracle: Oracle, setting: tuple[float, int, float]
) -> None:
    logits = oracle.read(PROMPT)[0][-1]
    counts = counts_of(model, setting)
    _, probabilities = choose_reference(logits, *setting, uniform=0.5)
    kept = int((probabilities > 0).sum())
    assert kept >= 3 and (setting[1] == 0 or kept <= setting[1])
    assert counts[probabilities == 0].sum() == 0, "a token that was cut off was chosen"
    # one-sided 4.5 standard deviations; the seeds are fixed, so this cannot fail by bad luck on another day
    assert chi_square(counts, probabilities) < 4.5


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_test_sees_a_wrong_distribution(
    model: LatentCoTForCausalLM, oracle: Oracle, setting: tuple[float, int, float]
) -> None:
    temperature, top_k, top_p = setting
    logits = oracle.read(PROMPT)[0][-1]
    _, colder = choose_reference(logits, temperature * 0.75, top_k, top_p, 0.5)
    assert chi_square(counts_of(model, setting), colder) > 4.5
