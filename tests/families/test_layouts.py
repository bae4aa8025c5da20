"""Every family's published layout: what is written is what the field publishes, and it is read as the canonical tensors."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file

from latentcot_export.checkpoint import (
    family_names,
    random_tensors,
    read_checkpoint,
    tensor_shapes,
    write_checkpoint,
    write_random_checkpoint,
)
from latentcot_export.checkpoint.families import find_family
from latentcot_export.checkpoint.read import specs_of
from latentcot_export.errors import InputError
from tests.checkpoint.sample import edit_tensors, same_tensors, shard
from tests.families.sample import RECURRENCE_KEYS, SAMPLES, configs, publish

LAYER = "gpt_neox.layers.1."


def test_every_family_is_among_the_samples() -> None:
    assert set(family_names()) == set(RECURRENCE_KEYS) == {family for family, _ in SAMPLES.values()}


@given(configs())
@settings(max_examples=100)
def test_specs_survive_the_config_of_every_family(drawn: tuple[str, dict[str, Any]]) -> None:
    family, config = drawn
    handler = find_family(family, "c")
    specs = specs_of(handler, config, "c")
    written = handler.config(*specs)
    assert handler.specs(written, "c") == specs
    assert handler.recognises(written) and handler.recognises(config)
    json.dumps(written)


@given(configs())
@settings(max_examples=40)
def test_a_layout_makes_every_canonical_tensor_once(drawn: tuple[str, dict[str, Any]]) -> None:
    family, config = drawn
    handler = find_family(family, "c")
    model, recurrence = specs_of(handler, config, "c")
    layout, shapes = handler.published(model, recurrence, config), tensor_shapes(model, recurrence)
    made = [name for stored in layout.stored if not stored.optional for name in stored.makes]
    assert sorted(made) == sorted(shapes)
    names = [stored.name for stored in layout.stored]
    assert len(names) == len(set(names))
    for stored in layout.stored:
        if not stored.optional:
            assert math.prod(stored.shape) == sum(math.prod(shapes[name]) for name in stored.makes)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_random_checkpoint_comes_back_as_it_was_drawn(tmp_path: Path, sample: str, sharded: bool) -> None:
    family = SAMPLES[sample][0]
    written = publish(tmp_path / "c", sample)
    want = random_tensors(written.model, written.recurrence, 0)
    if sharded:
        shard(tmp_path / "c")
    read = read_checkpoint(tmp_path / "c")
    assert (read.family, read.model, read.recurrence) == (family, written.model, written.recurrence)
    assert same_tensors(read.tensors, want) and list(read.tensors) == list(want)
    assert read_checkpoint(tmp_path / "c", family=family).recurrence == read.recurrence


@given(configs())
@settings(max_examples=25)
def test_any_size_comes_back_in_half_precision(drawn: tuple[str, dict[str, Any]]) -> None:
    family, config = drawn
    model, recurrence = specs_of(find_family(family, "c"), config, "c")
    with tempfile.TemporaryDirectory() as place:
        read = write_random_checkpoint(Path(place) / "c", model, recurrence, 3, "bfloat16", family=family)
        assert same_tensors(read.tensors, random_tensors(model, recurrence, 3, "bfloat16"))
        again = write_checkpoint(Path(place) / "d", read.config, read.tensors)
        one, two = load_file(Path(place) / "c" / "model.safetensors"), load_file(again / "model.safetensors")
        assert same_tensors(one, two)


def published(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_gpt_neox_fuses_query_key_and_value_by_head(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "gpt_neox")
    stored = published(tmp_path / "c")
    assert {name.removeprefix(LAYER) for name in stored if name.startswith(LAYER)} == {
        f"{name}.{part}"
        for name in (
            *("input_layernorm", "post_attention_layernorm", "attention.query_key_value", "attention.dense"),
            *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        )
        for part in ("weight", "bias")
    }
    assert {name for name in stored if not name.startswith("gpt_neox.layers.")} == {
        *("gpt_neox.embed_in.weight", "embed_out.weight"),
        *("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"),
    }
    head_dim, heads = read.model.head_dim, read.model.num_heads
    fused, bias = stored[f"{LAYER}attention.query_key_value.weight"], stored[f"{LAYER}attention.query_key_value.bias"]
    for head in range(heads):  # rows 3 d h to 3 d (h + 1) are q, k and v of head h
        for j, which in enumerate("qkv"):
            rows = slice(3 * head_dim * head + j * head_dim, 3 * head_dim * head + (j + 1) * head_dim)
            ours = slice(head * head_dim, (head + 1) * head_dim)
            prefix = f"model.layers.1.self_attn.{which}_proj"
            assert torch.equal(read.tensors[f"{prefix}.weight"][ours], fused[rows])
            assert torch.equal(read.tensors[f"{prefix}.bias"][ours], bias[rows])


def test_gpt_neox_buffers_are_dropped_and_biases_are_not(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "gpt_neox")
    buffers = {
        f"{LAYER}attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        f"{LAYER}attention.masked_bias": torch.tensor(float("-inf")),
        f"{LAYER}attention.rotary_emb.inv_freq": torch.full((2,), float("nan")),
        "gpt_neox.rotary_emb.inv_freq": torch.full((2,), float("nan")),
    }
    edit_tensors(tmp_path / "c", buffers)
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, read.tensors)
    edit_tensors(tmp_path / "c", drop=(f"{LAYER}attention.dense.bias",))
    with pytest.raises(InputError, match=rf"1 tensor is missing \({re.escape(LAYER)}attention.dense.bias\)"):
        read_checkpoint(tmp_path / "c")


def test_the_head_of_gpt_neox_has_two_names_but_not_at_once(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "gpt_neox")
    head = published(tmp_path / "c")["embed_out.weight"]
    edit_tensors(tmp_path / "c", {"lm_head.weight": head.clone()})
    with pytest.raises(InputError, match=r"holds '\w+\.weight' twice, also as '\w+\.weight'; remove one"):
        read_checkpoint(tmp_path / "c")
    edit_tensors(tmp_path / "c", drop=("embed_out.weight",))
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, read.tensors)


def test_a_tied_gpt_neox_head_must_equal_the_embedding(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "gpt_neox", tie_word_embeddings=True)
    table = read.tensors["model.embed_tokens.weight"].clone()
    assert "embed_out.weight" not in published(tmp_path / "c")
    edit_tensors(tmp_path / "c", {"embed_out.weight": table})
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, read.tensors)
    edit_tensors(tmp_path / "c", {"embed_out.weight": table + 1})
    with pytest.raises(InputError, match="tie_word_embeddings is true but"):
        read_checkpoint(tmp_path / "c")


def test_shapes_are_checked_in_published_names_before_anything_is_read(tmp_path: Path) -> None:
    publish(tmp_path / "c", "gpt_neox")
    name = f"{LAYER}attention.query_key_value.weight"
    edit_tensors(tmp_path / "c", {name: torch.full((47, 16), torch.nan), "lm_head.bias": torch.ones(1)})
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "c")
    assert f"{name} is [47, 16] and should be [48, 16]" in str(caught.value)
    assert "1 tensor is unexpected (lm_head.bias)" in str(caught.value)
    edit_tensors(tmp_path / "c", {name: torch.full((48, 16), torch.nan)}, drop=("lm_head.bias",))
    with pytest.raises(InputError, match=f"'{re.escape(name)}' holds nan"):
        read_checkpoint(tmp_path / "c")


def test_qwen3_has_head_norms_and_ouro_four_norms_a_layer(tmp_path: Path) -> None:
    publish(tmp_path / "q", "qwen3")
    names = {name.removeprefix("model.layers.0.") for name in published(tmp_path / "q")}
    assert {"self_attn.q_norm.weight", "self_attn.k_norm.weight"} < names and "lm_head.weight" not in names
    publish(tmp_path / "o", "ouro at 1.0")
    stored = published(tmp_path / "o")
    names = {name.removeprefix("model.layers.0.") for name in stored}
    assert {f"{name}_layernorm{end}.weight" for name in ("input", "post_attention") for end in ("", "_2")} < names
    gate = stored["model.early_exit_gate.weight"], stored["model.early_exit_gate.bias"]
    assert [tuple(part.shape) for part in gate] == [(1, 16), (1,)]  # there although nothing asks it


def test_the_exit_gate_of_ouro_is_our_router_with_the_other_sign(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "ouro")
    stored = published(tmp_path / "c")
    for part in ("weight", "bias"):
        assert torch.equal(read.tensors[f"router.{part}"], -stored[f"model.early_exit_gate.{part}"])
    edit_tensors(tmp_path / "c", drop=("model.early_exit_gate.bias",))
    with pytest.raises(InputError, match=r"missing \(model.early_exit_gate.bias\)"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("sample", ["ponderlm2 on llama", "ponderlm on llama"])
def test_pondering_adds_no_tensor_to_the_stock_ones(tmp_path: Path, sample: str) -> None:
    publish(tmp_path / "c", sample)
    publish(tmp_path / "s", "llama")
    assert published(tmp_path / "c").keys() == published(tmp_path / "s").keys()
    assert json.loads((tmp_path / "c" / "config.json").read_text())["model_type"] == "llama"


def test_tensors_published_as_they_are_stay_mapped(tmp_path: Path) -> None:
    before = publish(tmp_path / "c", "gpt_neox").tensors
    name = "model.layers.0.mlp.up_proj.weight"
    assert before[name].untyped_storage().data_ptr() == before[name].data_ptr()
    resident = [each for each, value in before.items() if value.untyped_storage().nbytes() > 2 * value.nbytes]
    assert not any("q_proj" in each for each in resident)  # a part does not keep the fused tensor alive
