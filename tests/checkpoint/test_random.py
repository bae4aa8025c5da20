from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors, tensor_shapes, write_random_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.model import LatentCoT
from latentcot_export.model.oracle import step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec, RopeSpec
from tests.checkpoint.sample import MODEL, RECURRENCE, SIZES, STOCK, TIED, same_tensors


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    kv_heads = draw(st.integers(1, 2))
    return ModelSpec(
        vocab_size=draw(st.integers(1, 30)),
        hidden_size=draw(st.integers(1, 20)),
        intermediate_size=draw(st.integers(1, 20)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        rms_norm_eps=1e-6,
        max_position_embeddings=draw(st.integers(1, 128)),
        rope=draw(st.sampled_from([RopeSpec(), RopeSpec("linear", 500.0, 2.0)])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


recurrences = st.builds(
    RecurrenceSpec,
    max_latents=st.integers(0, 6),
    halt_threshold=st.sampled_from([0.0, 1e-4, 0.3, 1.0]),
    router_type=st.sampled_from(["linear", "mlp"]),
    router_hidden_size=st.integers(1, 8),
    router_shared=st.booleans(),
    embedding_scale=st.floats(-8.0, 8.0),
)


@settings(max_examples=40)
@given(models(), recurrences, st.integers(0, 2**32), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_random_checkpoints_round_trip(model: ModelSpec, recurrence: RecurrenceSpec, seed: int, dtype: str) -> None:
    tensors = random_tensors(model, recurrence, seed, dtype)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == tensor_shapes(model, recurrence)
    with tempfile.TemporaryDirectory() as folder:
        read = write_random_checkpoint(Path(folder) / "c", model, recurrence, seed, dtype)
        assert (read.model, read.recurrence, read.dtype) == (model, recurrence, dtype)
        assert same_tensors(read.tensors, tensors)


def test_a_seed_is_the_same_model_in_every_dtype() -> None:
    exact = random_tensors(MODEL, RECURRENCE, 5)
    half = random_tensors(MODEL, RECURRENCE, 5, torch.bfloat16)
    assert same_tensors(half, {name: value.bfloat16() for name, value in exact.items()})
    other = random_tensors(MODEL, RECURRENCE, 6)
    assert not any(torch.equal(exact[name], other[name]) for name in exact if name != "router.bias")
    with pytest.raises(InputError, match="float64"):
        random_tensors(MODEL, RECURRENCE, 5, torch.float64)


@pytest.mark.parametrize(
    "recurrence",
    [
        RecurrenceSpec(3, 1e-4),
        RecurrenceSpec(3, 0.01, router_shared=False),
        RecurrenceSpec(3, 0.3, "mlp", 16),
        RecurrenceSpec(3, 1e-4, "mlp", 16, router_shared=False),
    ],
    ids=str,
)
def test_depths_are_ragged(recurrence: RecurrenceSpec) -> None:
    depths = []
    for seed in range(4):
        model = LatentCoT.from_tensors(MODEL, recurrence, random_tensors(MODEL, recurrence, seed), torch.float32)
        tokens = torch.randint(0, 40, (2, 20), generator=torch.Generator().manual_seed(seed))
        depths.append(step_major(model, tokens).depths[:, :20].flatten())
    counts = torch.bincount(torch.cat(depths), minlength=5)
    assert bool((counts[1:] > 0).all()), counts  # every depth occurs
    assert counts.max() < 144, counts  # and none takes nearly all of the 160


def test_scale_and_families() -> None:
    wide = random_tensors(MODEL, RECURRENCE, 0, scale=2.0)["router.weight"]
    torch.testing.assert_close(wide, 2.0 * random_tensors(MODEL, RECURRENCE, 0)["router.weight"])
    assert "lm_head.weight" not in random_tensors(TIED, STOCK, 0)


def test_options_reach_the_folder(tmp_path: Path) -> None:
    options: dict[str, Any] = {"extra_config": {"eos_token_id": 3}, "extra_files": {"heldout.txt": b"x"}}
    read = write_random_checkpoint(tmp_path / "c", ModelSpec(**SIZES), STOCK, family="llama", **options)
    assert (read.family, read.config["eos_token_id"]) == ("llama", 3)
    assert (tmp_path / "c" / "heldout.txt").read_bytes() == b"x"
    with pytest.raises(InputError, match="--force"):
        write_random_checkpoint(tmp_path / "c", MODEL, STOCK)
    write_random_checkpoint(tmp_path / "c", MODEL, RECURRENCE, force=True)
