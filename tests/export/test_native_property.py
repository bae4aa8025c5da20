"""Random checkpoints as `--target ort`: the oracle's tokens and depths, and results that no neighbour can change."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from latentcot_export.bundle import open_bundle
from latentcot_export.checkpoint import random_tensors
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.validate.packed import PackedEngine
from latentcot_export.validate.runs import Run
from tests.checkpoints import in_memory
from tests.specs import backbones, decided, recurrences

NEW = 7
EXAMPLES = int(os.environ.get("LATENTCOT_EXAMPLES", "25"))
EXPORTS = settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)


def random_prompts(spec: ModelSpec, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, spec.vocab_size, n).tolist() for n in (1, 5, 14)]


def same_in_any_company(engine: PackedEngine, prompts: list[list[int]]) -> list[Run]:
    """Tokens and depths of the prompts together, which are those alone, in another order and in lockstep."""

    def facts(runs: list[Run]) -> list[tuple[list[int], list[int]]]:
        return [(list(run.tokens), list(run.depths)) for run in runs]

    runs = engine.write(prompts, NEW)
    assert facts([engine.write([prompt], NEW)[0] for prompt in prompts]) == facts(runs)
    assert facts(engine.write(prompts[::-1], NEW))[::-1] == facts(runs)
    assert facts(engine.write(prompts, NEW, lockstep=True)) == facts(runs)
    return runs


@EXPORTS
@given(backbones(), recurrences(), st.integers(0, 1000))
def test_exported_graph_equals_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("property")
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", target="ort", validate=False)
    prompts = random_prompts(spec, seed)
    runs = same_in_any_company(PackedEngine(open_bundle(bundle.folder)), prompts)
    oracle = LatentCoT.from_tensors(spec, recurrence, random_tensors(spec, recurrence, seed), torch.float64)
    for prompt, run in zip(prompts, runs, strict=True):
        truth = step_major(oracle, torch.tensor([list(run.tokens)[:-1]]))
        assume(decided(truth, recurrence.halt_threshold))
        assert list(run.depths) == truth.depths[0].tolist()
        best = oracle.head(truth.mix)[0, len(prompt) - 1 :].argmax(-1).tolist()
        assert list(run.tokens)[len(prompt) :] == best


@EXPORTS
@given(backbones(), recurrences(), st.integers(0, 1000), st.sampled_from(("int8", "int4")))
def test_quantised_results_do_not_depend_on_neighbours(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, quantize: str
) -> None:
    """Quantised logits are bits of their own row only; what they are worth is for `validate` to say."""
    folder = tmp_path_factory.mktemp("property")
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", target="ort", validate=False, quantize=quantize)
    runs = same_in_any_company(PackedEngine(open_bundle(bundle.folder)), random_prompts(spec, seed))
    assert all(np.isfinite(run.logits).all() for run in runs)
