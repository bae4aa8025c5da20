from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcot_export.checkpoint import init_checkpoint, read_checkpoint, tensor_shapes, write_random_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.spec import RecurrenceSpec
from tests.checkpoint.sample import MODEL, RECURRENCE, STOCK, TIED, adaptive, edit_config, same_tensors, shard, stock
from tests.families.sample import publish

OPTIONS: list[dict[str, Any]] = [
    {},
    {"router_shared": False},
    {"router_type": "mlp", "router_hidden_size": 6},
    {"router_type": "mlp", "router_hidden_size": 6, "router_shared": False, "halt_threshold": 0.3},
    {"embedding_scale": 2.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_stock_checkpoint_becomes_one_that_halts_at_once(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    base = write_random_checkpoint(tmp_path / "base", MODEL, STOCK, dtype=dtype, family="llama")
    made = read_checkpoint(init_checkpoint(tmp_path / "base", tmp_path / "out", 3, **options))
    recurrence = RecurrenceSpec(3, **options)
    assert (made.family, made.model, made.recurrence, made.dtype) == (
        "adaptive_latent_cot",
        MODEL,
        recurrence,
        dtype,
    )
    assert same_tensors({name: made.tensors[name] for name in base.tensors}, base.tensors)
    assert {name: tuple(value.shape) for name, value in made.tensors.items()} == tensor_shapes(MODEL, recurrence)
    states = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    prefixes = ["router"] if recurrence.router_shared else [f"router.{j}" for j in range(3)]
    for prefix in prefixes:
        router = {name: value.float() for name, value in made.tensors.items() if name.startswith(f"{prefix}.")}
        x = states
        if recurrence.router_type == "mlp":
            x = torch.relu(x @ router[f"{prefix}.in.weight"].T + router[f"{prefix}.in.bias"])
            assert x.count_nonzero() > x.numel() / 4  # else no gradient would reach the last layer
            prefix += ".out"
        gate = torch.sigmoid(x @ router[f"{prefix}.weight"].T + router[f"{prefix}.bias"])
        assert bool((gate <= 2.1e-9).all()) and bool((gate < recurrence.halt_threshold).all())


def test_everything_that_belongs_to_the_model_travels(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{ }",
        "special_tokens_map.json": b"{  }",
        "generation_config.json": b'{"eos_token_id": 3}',
        "heldout.txt": "é".encode(),
        "merges.txt": b"a b",
        "chat_template.jinja": b"x",
    }
    stock(tmp_path / "base", TIED, extra_files=files | {"README.md": b"x"}, extra_config={"auto_map": {}, "note": 1})
    shard(tmp_path / "base")
    out = init_checkpoint(tmp_path / "base", tmp_path / "out", 2)
    assert sorted(os.listdir(out)) == sorted([*files, "config.json", "model.safetensors"])
    for name, data in files.items():
        assert (out / name).read_bytes() == data
    before = json.loads((tmp_path / "base" / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    assert {key for key in before if key not in after} == {"architectures", "auto_map"}
    assert {key: after[key] for key in before if key in after and key != "model_type"} == {
        key: value for key, value in before.items() if key in after and key != "model_type"
    }
    assert after["note"] == 1 and after["model_type"] == "adaptive_latent_cot"


def test_the_old_spelling_is_kept(tmp_path: Path) -> None:
    stock(tmp_path / "base")
    rope = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    edit_config(tmp_path / "base", drop=("rope_parameters", "dtype"), **rope)
    out = init_checkpoint(tmp_path / "base", tmp_path / "out", 1)
    assert json.loads((out / "config.json").read_text()).items() >= rope.items()
    assert read_checkpoint(out).model == read_checkpoint(tmp_path / "base").model


def test_it_is_deterministic_and_zero_latents_are_allowed(tmp_path: Path) -> None:
    stock(tmp_path / "base")
    for name in ("a", "b"):
        init_checkpoint(tmp_path / "base", tmp_path / name, 2, router_type="mlp", router_hidden_size=3)
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert read_checkpoint(init_checkpoint(tmp_path / "base", tmp_path / "c", 0)).recurrence.max_latents == 0


@pytest.mark.parametrize(
    ("latents", "options", "sentence"),
    [
        (-1, {}, "max_latents is -1"),
        (65, {}, "max_latents is 65"),
        (2, {"router_type": "tree"}, "router_type is 'tree'"),
        (2, {"router_type": "mlp"}, "router_hidden_size is None"),
        (2, {"halt_threshold": 0.0}, "halts at once only above 4.1e-09"),
        (2, {"halt_threshold": float("nan")}, "halt_threshold is nan"),
        (2, {"embedding_scale": float("inf")}, "embedding_scale is inf"),
    ],
)
def test_options_out_of_range_get_a_sentence(
    tmp_path: Path, latents: int, options: dict[str, Any], sentence: str
) -> None:
    stock(tmp_path / "base")
    with pytest.raises(InputError, match=sentence):
        init_checkpoint(tmp_path / "base", tmp_path / "out", latents, **options)
    assert os.listdir(tmp_path) == ["base"]


def test_only_a_stock_base_and_never_onto_itself(tmp_path: Path) -> None:
    adaptive(tmp_path / "ours", MODEL, RECURRENCE)
    with pytest.raises(InputError, match="starts from a stock one"):
        init_checkpoint(tmp_path / "ours", tmp_path / "out", 2)
    publish(tmp_path / "neox", "gpt_neox")
    with pytest.raises(InputError, match="checkpoint of gpt_neox, to whose layer stack no family adds a router"):
        init_checkpoint(tmp_path / "neox", tmp_path / "out", 2)
    stock(tmp_path / "models" / "base")
    for out in (tmp_path / "models" / "base", tmp_path / "models", tmp_path / "models" / "x" / ".." / "base"):
        with pytest.raises(InputError, match="is the base checkpoint or holds it"):
            init_checkpoint(tmp_path / "models" / "base", out, 2, force=True)
    with pytest.raises(InputError, match="--force"):
        init_checkpoint(tmp_path / "models" / "base", tmp_path / "ours", 2)
    init_checkpoint(tmp_path / "models" / "base", tmp_path / "ours", 2, force=True)
    assert read_checkpoint(tmp_path / "ours").recurrence.max_latents == 2
