from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.errors import InputError
from tests.checkpoint.sample import MODEL, TIED, adaptive, edit_config, edit_tensors, stock


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text and "; " in text, text
    return text


def test_missing_unexpected_and_misshapen_are_named_in_one_sentence(tmp_path: Path) -> None:
    adaptive(tmp_path / "c")
    edit_tensors(
        tmp_path / "c",
        drop=("model.norm.weight", "router.bias"),
        changes={
            "model.extra": torch.ones(1),
            "model.layers.0.mlp.up_proj.weight": torch.ones(24, 15),
            "model.layers.1.mlp.up_proj.weight": torch.ones(384),
        },
    )
    text = refusal(tmp_path / "c")
    assert "2 tensors are missing (model.norm.weight, router.bias)" in text
    assert "1 tensor is unexpected (model.extra)" in text
    assert (
        "2 tensors are misshapen (model.layers.0.mlp.up_proj.weight is [24, 15] and should be [24, 16], "
        "model.layers.1.mlp.up_proj.weight is [384] and should be [24, 16])" in text
    )


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    stock(tmp_path / "c")
    edit_config(tmp_path / "c", num_hidden_layers=4)
    text = refusal(tmp_path / "c")
    assert "18 tensors are missing (model.layers.2.input_layernorm.weight, " in text
    assert "and 15 more)" in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"attention_bias": True}, ["8 tensors are missing (model.layers.0.self_attn.q_proj.bias"]),
        ({"mlp_bias": True}, ["6 tensors are missing (model.layers.0.mlp.gate_proj.bias"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings is true but lm_head.weight differs"]),
        ({"vocab_size": 41}, ["2 tensors are misshapen (model.embed_tokens.weight is [40, 16] and should be [41, 16]"]),
        ({"head_dim": 8}, ["8 tensors are misshapen"]),
        ({"num_key_value_heads": 4}, ["4 tensors are misshapen (model.layers.0.self_attn.k_proj.weight is [8, 16]"]),
        ({"router_shared": False}, ["6 tensors are missing (router.0.weight", "2 tensors are unexpected (router."]),
        ({"router_type": "mlp", "router_hidden_size": 7}, ["4 tensors are missing (router.in.weight, router.in.bias"]),
        ({"model_type": "llama", "max_latents": 0}, ["2 tensors are unexpected (router."]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_of_another_model_is_noticed(tmp_path: Path, change: dict[str, Any], faults: list[str]) -> None:
    adaptive(tmp_path / "c")
    edit_config(tmp_path / "c", **change)
    text = refusal(tmp_path / "c")
    for fault in faults:
        assert fault in text


def test_advice_fits_the_fault(tmp_path: Path) -> None:
    stock(tmp_path / "head")
    edit_tensors(tmp_path / "head", drop=("lm_head.weight",))
    assert "set tie_word_embeddings to true" in refusal(tmp_path / "head")
    stock(tmp_path / "router", TIED)
    edit_config(tmp_path / "router", model_type="adaptive_latent_cot", max_latents=2)
    assert "`latentcot init`" in refusal(tmp_path / "router")


def test_a_tied_head_must_equal_the_embedding_in_dtype_too(tmp_path: Path) -> None:
    head = stock(tmp_path / "c", TIED).tensors["model.embed_tokens.weight"].clone()
    edit_tensors(tmp_path / "c", {"lm_head.weight": head})
    read_checkpoint(tmp_path / "c")
    edit_tensors(tmp_path / "c", {"lm_head.weight": head.bfloat16()})
    assert "differs from model.embed_tokens.weight" in refusal(tmp_path / "c")
    edit_tensors(tmp_path / "c", {"lm_head.weight": head[:-1].clone()})
    assert "lm_head.weight is [39, 16] and should be [40, 16]" in refusal(tmp_path / "c")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = adaptive(tmp_path / "c").tensors[name].to(dtype)
    tensor[3, 5] = value
    edit_tensors(tmp_path / "c", {name: tensor})
    assert f"'{name}' holds {value} at flat index 53" in refusal(tmp_path / "c")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float8_e4m3fn, torch.bool])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    adaptive(tmp_path / "c", MODEL)
    edit_tensors(tmp_path / "c", {"model.norm.weight": torch.ones(16).to(dtype)})
    assert "'model.norm.weight' is 'F64'" in refusal(tmp_path / "c") or dtype != torch.float64
    assert "only F32, F16 and BF16 are read" in refusal(tmp_path / "c")
