"""Checkpoints and bundles that tests of several floors share: made once per run, never changed by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcot_export.spec import ModelSpec, RecurrenceSpec

RANDOM_MODEL = ModelSpec(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    attention_bias=True,
)
RANDOM_RECURRENCE = RecurrenceSpec(max_latents=4, halt_threshold=0.3)


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of random weights whose tokens think for 1 to 5 steps; no tokenizer."""
    from latentcot_export.checkpoint import write_random_checkpoint

    folder = tmp_path_factory.mktemp("shared") / "random-checkpoint"
    write_random_checkpoint(folder, RANDOM_MODEL, RANDOM_RECURRENCE, 3, "float32")
    return folder


@pytest.fixture(scope="session")
def random_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle folder of `random_checkpoint`: opset 24, float32, not validated."""
    from latentcot_export.export import export

    folder = tmp_path_factory.mktemp("shared") / "random-bundle"
    export(random_checkpoint, folder, validate=False)
    return folder
