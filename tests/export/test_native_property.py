"""Random checkpoints as `--target ort`: the oracle's tokens and depths, and results that no neighbour can change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.checkpoint import random_tensors
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.model import LatentCoT
from latentcot_export.model import run as truth_of
from latentcot_export.spec import AdapterSpec, FeedbackSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate.packed import PackedEngine
from latentcot_export.validate.runs import Run
from latentcot_export.validate.weights import bundle_tensors
from tests.checkpoints import in_memory
from tests.specs import backbones, decided, recurrences, thinking

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


def check(
    folder: Path,
    spec: ModelSpec,
    recurrence: RecurrenceSpec,
    seed: int,
    near_tie: float,
    engine_of: Callable[[Bundle], PackedEngine] = PackedEngine,
) -> None:
    """The exported graph finds the oracle's depths and its tokens, unless their logits are within `near_tie`."""
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", target="ort", validate=False)
    prompts = random_prompts(spec, seed)
    runs = same_in_any_company(engine_of(open_bundle(bundle.folder)), prompts)
    oracle = LatentCoT.from_tensors(spec, recurrence, random_tensors(spec, recurrence, seed), torch.float64)
    for prompt, run in zip(prompts, runs, strict=True):
        truth = truth_of(oracle, torch.tensor([list(run.tokens)[:-1]]))
        assume(decided(truth, recurrence.halt_threshold))
        assert list(run.depths) == truth.depths[0].tolist()
        logits = oracle.head(truth.mix)[0]
        np.testing.assert_allclose(run.logits, logits.numpy(), rtol=2e-3, atol=2e-3)
        best = logits[len(prompt) - 1 :].topk(2)
        clear = (best.values[:, 0] - best.values[:, 1] > near_tie).tolist()
        chosen = zip(list(run.tokens)[len(prompt) :], best.indices[:, 0].tolist(), clear, strict=True)
        assert all(found == wanted for found, wanted, certain in chosen if certain)


@EXPORTS
@given(backbones(), recurrences(), st.integers(0, 1000))
def test_exported_graph_equals_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int
) -> None:
    check(tmp_path_factory.mktemp("property"), spec, recurrence, seed, 0.0)


@EXPORTS
@given(backbones(), st.data(), st.integers(0, 1000))
def test_any_recurrence_equals_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, data: st.DataObject, seed: int
) -> None:
    check(tmp_path_factory.mktemp("property"), spec, data.draw(thinking(spec.num_layers)), seed, 4e-3)


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


def test_a_table_that_steps_multiply_by_is_not_quantised(tmp_path: Path) -> None:
    spec = ModelSpec(64, 16, 33, 1, 1, 1, 16, 1e-6, 64)
    whole = RecurrenceSpec(max_latents=1, stop="count", readout="last", feedback=FeedbackSpec())
    with (
        in_memory(tmp_path / "checkpoint", spec, whole, 0) as checkpoint,
        pytest.raises(InputError, match="over the whole vocabulary; export it without --quantize"),
    ):
        export(checkpoint, tmp_path / "bundle", target="ort", validate=False, quantize="int8")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_table_gives_the_rows_that_a_step_expects(tmp_path: Path, quantize: str) -> None:
    """The oracle of the bundle's own weights: depths and logits, which it would miss with other rows of the table."""
    spec = ModelSpec(64, 32, 64, 2, 2, 1, 16, 1e-6, 64, tie_word_embeddings=True)
    recurrence = RecurrenceSpec(
        max_latents=2, stop="count", readout="sum", feedback=FeedbackSpec(5, residual=False), adapter=AdapterSpec(3)
    )
    with in_memory(tmp_path / "checkpoint", spec, recurrence, 0) as checkpoint:
        bundle = export(checkpoint, tmp_path / "bundle", target="ort", validate=False, quantize=quantize)
    run = PackedEngine(bundle).write([[1, 2, 3]], NEW)[0]
    oracle = LatentCoT.from_tensors(spec, recurrence, bundle_tensors(bundle), torch.float64)
    truth = oracle.head(truth_of(oracle, torch.tensor([list(run.tokens)[:-1]])).mix)[0].numpy()
    assert np.corrcoef(run.logits.ravel(), truth.ravel())[0, 1] > 0.99  # activations are int8
