"""What transformers saves is what we read: every tensor, every fact of the config, both spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from latentcot_export.checkpoint import read_checkpoint, special_tokens
from latentcot_export.model.rope import rope_frequencies
from latentcot_export.spec import RecurrenceSpec
from tests.checkpoint.sample import edit_tensors, same_tensors

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
}


def save(folder: Path, dtype: torch.dtype = torch.float32, shard_size: str = "5GB", **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **config}))
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where mixing them up would not show
        torch.nn.init.normal_(parameter)
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def expected(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    tied = model.config.tie_word_embeddings
    return {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def check(folder: Path, model: LlamaForCausalLM, dtype: str = "float32") -> None:
    read = read_checkpoint(folder)
    want = expected(model)
    assert same_tensors({name: read.tensors[name] for name in want}, want) and len(read.tensors) == len(want)
    assert (read.family, read.dtype, read.recurrence) == ("llama", dtype, RecurrenceSpec(max_latents=0))
    config, spec = model.config, read.model
    assert (spec.vocab_size, spec.hidden_size, spec.intermediate_size, spec.num_layers) == (
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    assert (spec.attention_bias, spec.mlp_bias, spec.tie_word_embeddings, spec.rms_norm_eps) == (
        config.attention_bias,
        config.mlp_bias,
        config.tie_word_embeddings,
        config.rms_norm_eps,
    )
    rope = dict(config.rope_parameters)
    assert (spec.rope.kind, spec.rope.theta) == (rope.pop("rope_type"), rope.pop("rope_theta"))
    for name, value in rope.items():
        assert getattr(spec.rope, name) == value, name


def to_old_spelling(folder: Path, type_key: str) -> None:
    """Rewrites config.json as transformers 4 did: rope_theta, rope_scaling and torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {type_key: kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2, "attention_bias": True},
        {"num_key_value_heads": 1, "mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 6, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1},
    ],
    ids=["mha", "tied", "gqa-bias", "mqa-mlp-bias", "head-dim"],
)
@pytest.mark.parametrize("shard_size", ["5GB", "4KB"])
def test_every_tensor_is_read_as_saved(tmp_path: Path, config: dict[str, Any], shard_size: str) -> None:
    model = save(tmp_path, shard_size=shard_size, **config)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    check(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_as_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    check(tmp_path, save(tmp_path, dtype), str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("kind", list(ROPES))
def test_both_spellings_of_rope_say_the_same(tmp_path: Path, kind: str) -> None:
    model = save(tmp_path, rope_parameters=dict(ROPES[kind]))
    check(tmp_path, model)
    new = read_checkpoint(tmp_path).model
    for type_key in ("rope_type", "type"):
        save(tmp_path, rope_parameters=dict(ROPES[kind]))
        to_old_spelling(tmp_path, type_key)
        check(tmp_path, model)
        assert read_checkpoint(tmp_path).model == new


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 123.0},
        {"rope_theta": 123},
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "mscale": 0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 7.0},
        {"rope_parameters": {"rope_theta": 7.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": None},
    ],
    ids=lambda config: json.dumps(config)[:60],
)
def test_rope_frequencies_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "rope_parameters"}
    path.write_text(json.dumps(kept | config))
    spec = read_checkpoint(tmp_path).model
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).model.rotary_emb
    frequencies, scale = rope_frequencies(spec.rope, spec.head_dim, spec.max_position_embeddings)
    torch.testing.assert_close(frequencies.to(torch.float32), theirs.inv_freq, rtol=1e-6, atol=0.0)
    assert scale == pytest.approx(theirs.attention_scaling)


def test_absent_keys_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    model = save(tmp_path, hidden_size=64, num_attention_heads=32, vocab_size=32000, num_hidden_layers=1)
    path = tmp_path / "config.json"
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    path.write_text(json.dumps({name: json.loads(path.read_text())[name] for name in kept}))
    check(tmp_path, model)
    assert special_tokens(read_checkpoint(tmp_path)) == ((2,), 1)  # generation_config.json still says so
    (tmp_path / "generation_config.json").unlink()
    assert special_tokens(read_checkpoint(tmp_path)) == ((), None)


def test_buffers_of_old_transformers_and_a_stored_tied_head_are_dropped(tmp_path: Path) -> None:
    model = save(tmp_path, tie_word_embeddings=True)
    head = model.state_dict()["model.embed_tokens.weight"].clone()
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((2,), float("nan")) for i in range(2)}
    edit_tensors(tmp_path, {**buffers, "lm_head.weight": head})
    check(tmp_path, model)
