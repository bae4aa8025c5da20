"""Gates far below 1 decide like the oracle's: a runtime's approximate Sigmoid would halt or go on elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latentcot_export.bundle import open_bundle
from latentcot_export.checkpoint import random_tensors, write_checkpoint, write_random_checkpoint
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.runtime.session import CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec

SPEC = ModelSpec(64, 24, 32, 1, 2, 1, 8, 1e-5, 512)


@pytest.mark.parametrize("tau", [1e-4, 1e-12, 0.0])
def test_depths_at_small_tau(tmp_path: Path, tau: float) -> None:
    recurrence = RecurrenceSpec(max_latents=2, halt_threshold=tau)
    tensors = random_tensors(SPEC, recurrence, 1)
    # gates spread over a few powers of ten around tau, or around where an approximation gives 0
    tensors["router.weight"] = torch.randn(1, 24, generator=torch.Generator().manual_seed(0)) * 0.5
    tensors["router.bias"] = torch.tensor([np.log(tau or 1e-12)], dtype=torch.float32)
    folder = tmp_path / "checkpoint"
    config = write_random_checkpoint(folder, SPEC, recurrence, 1, "float32").config
    write_checkpoint(folder, config, tensors, force=True)
    session = GraphSession(open_bundle(export(folder, tmp_path / "bundle", validate=False).folder))
    tokens = np.random.default_rng(0).integers(0, 64, (4, 100))
    state = BatchState.new(SPEC, recurrence, "float32", tokens, 1)
    session.feed(state, CallInputs.greedy(4, 100), np.full(4, 100))
    truth = step_major(LatentCoT.from_tensors(SPEC, recurrence, tensors, torch.float64), torch.from_numpy(tokens))
    close = (
        (truth.next_reach[..., :-1] / tau - 1).abs().nan_to_num(1) < 1e-5 if tau else torch.zeros(1, dtype=torch.bool)
    )
    assert not close.any(), "the example must not hang on rounding"
    assert state.arrays["depths"].tolist() == truth.depths.tolist()
    assert tau == 0 or len(truth.depths.unique()) > 1
