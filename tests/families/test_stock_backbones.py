"""What transformers saves of GPT-NeoX and Qwen3 is what we read, and at depth 1 our oracle computes what it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import RecurrenceSpec

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
QWEN3: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 12}
NEOX_CASES: dict[str, dict[str, Any]] = {
    "pythia": {"rotary_pct": 0.25},
    "sequential": {"use_parallel_residual": False, "rotary_pct": 1.0, "rotary_emb_base": 500},
    "tied": {"tie_word_embeddings": True, "hidden_act": "gelu_new"},
    "without biases of attention": {"attention_bias": False, "layer_norm_eps": 1e-2},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
}
QWEN3_CASES: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "untied": {"rms_norm_eps": 1e-2},
    "biases": {"attention_bias": True},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}


def save(folder: Path, model: PreTrainedModel, shard_size: str = "5GB") -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where mixing them up would not show
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model.double().eval()


@torch.no_grad()
def compare(folder: Path, theirs: PreTrainedModel, family: str) -> None:
    read = read_checkpoint(folder)
    assert (read.family, read.recurrence) == (family, RecurrenceSpec(max_latents=0))
    ours = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    tokens = torch.randint(48, (2, 40), generator=torch.Generator().manual_seed(1))
    found = ours.head(step_major(ours, tokens).mix)
    # transformers turns by float32 angles
    torch.testing.assert_close(found, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", NEOX_CASES)
def test_gpt_neox_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    theirs = save(tmp_path, GPTNeoXForCausalLM(GPTNeoXConfig(**{**SIZES, **NEOX_CASES[case]})))
    compare(tmp_path, theirs, "gpt_neox")


@pytest.mark.parametrize("case", QWEN3_CASES)
def test_qwen3_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    compare(tmp_path, save(tmp_path, Qwen3ForCausalLM(Qwen3Config(**{**QWEN3, **QWEN3_CASES[case]}))), "qwen3")


def test_shards_of_transformers_are_read(tmp_path: Path) -> None:
    theirs = save(tmp_path, GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)), "20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(tmp_path, theirs, "gpt_neox")


@pytest.mark.parametrize("spelling", [{}, {"rotary_pct": 0.5, "rotary_emb_base": 777}, {"rotary_pct": 1}])
def test_the_old_spelling_of_rope_is_read_as_transformers_reads_it(tmp_path: Path, spelling: dict[str, Any]) -> None:
    save(tmp_path, GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)))
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "rotary_pct", "rotary_emb_base", "partial_rotary_factor", "rope_theta"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config | spelling))
    compare(tmp_path, GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval(), "gpt_neox")
