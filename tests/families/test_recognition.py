"""Which family a config is taken for, and that every key that would change the computation is computed or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.checkpoint import family_of, read_checkpoint, stock_config
from latentcot_export.checkpoint.families import find_family, recognise
from latentcot_export.checkpoint.read import specs_of
from latentcot_export.errors import InputError
from latentcot_export.spec import RecurrenceSpec
from tests.checkpoint.sample import MODEL, edit_config, same_tensors
from tests.families.sample import BACKBONES, PONDERLM, PONDERLM2, SAMPLES, publish


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_family_is_recognised_by_its_config_alone(sample: str) -> None:
    family, config = SAMPLES[sample]
    assert recognise(config, "c").name == family


@pytest.mark.parametrize("sample", [name for name, (family, _) in SAMPLES.items() if family not in BACKBONES])
@pytest.mark.parametrize("stock", ["llama", "gpt_neox", "qwen3"])
def test_a_stock_family_refuses_every_recurrent_checkpoint(sample: str, stock: str) -> None:
    family, config = SAMPLES[sample]
    with pytest.raises(InputError, match=r"which makes this a recurrent checkpoint of \w+, not one of"):
        specs_of(find_family(stock, "c"), config, "c")
    assert recognise(config, "c").name == family


def test_checkpoints_that_bring_code_are_read_without_it(tmp_path: Path) -> None:
    before = publish(tmp_path / "c", "ouro")
    edit_config(tmp_path / "c", auto_map={"AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM"})
    (tmp_path / "c" / "modeling_ouro.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nraise SystemExit")
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, before.tensors)
    assert not (tmp_path / "mark").exists()


def test_two_families_at_once_are_refused() -> None:
    with pytest.raises(
        InputError, match="its keys are those of ponderlm and ponderlm2; remove the keys of the wrong one"
    ):
        recognise({**BACKBONES["llama"], **PONDERLM, **PONDERLM2}, "c")
    with pytest.raises(
        InputError, match="ponderinglm is True, which makes this a recurrent checkpoint of ponderlm, not"
    ):
        specs_of(find_family("ponderlm2", "c"), {**BACKBONES["llama"], **PONDERLM, **PONDERLM2}, "c")


@pytest.mark.parametrize(
    ("sample", "changes", "named"),
    [
        ("ouro", {"total_ut_steps": 0}, "total_ut_steps is 0"),
        ("ouro", {"total_ut_steps": 4.0}, "total_ut_steps is 4.0"),
        ("ouro", {"early_exit_threshold": "high"}, "early_exit_threshold is 'high'"),
        ("ouro", {"early_exit_threshold": -0.1}, "early_exit_threshold is -0.1"),
        ("ouro", {"early_exit_step": 4}, "early_exit_step is 4, it must be an integer from 0 to 3"),
        ("ouro", {"latentcot_exit": "maybe"}, "latentcot_exit is 'maybe', it must be one of skip, as_released"),
        ("ouro", {"latentcot_readout": "sum"}, "latentcot_readout is 'sum'"),
        ("ouro", {"attention_bias": True}, "attention_bias is True"),
        ("ouro", {"sliding_window": 8, "use_sliding_window": True}, "sliding_window is 8"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "layer_types is"),
        ("qwen3", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("gpt_neox", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ("gpt_neox", {"hidden_size": 15}, "hidden_size 15 is not a multiple"),
        ("gpt_neox", {"rotary_pct": 0.0}, "rotary_pct 0 of a head of 8 turns 0 dimensions"),
        ("gpt_neox", {"rotary_pct": 0.4}, "turns 3 dimensions"),
        ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct is 1.5"),
        ("gpt_neox", {"rope_theta": 1e4}, "rotary_emb_base and rope_theta contradict"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "rotary_pct and partial_rotary_factor"),
        ("gpt_neox", {"layer_norm_eps": None, "use_parallel_residual": "yes"}, "use_parallel_residual is 'yes'"),
        ("gpt_neox", {"layer_norm_eps": 2}, "layer_norm_eps is 2"),
        ("gpt_neox", {"quantization_config": {}}, "quantization_config is"),
        ("ponderlm2 on llama", {"interpolation": None}, "interpolation is missing"),
        ("ponderlm2 on llama", {"recurrent_model": False}, "recurrent_model is false"),
        ("ponderlm2 on llama", {"residual_interpolated_embeds": True}, "residual_interpolated_embeds is True"),
        ("ponderlm2 on llama", {"num_latent_thoughts": 65}, "num_latent_thoughts is 65"),
        ("ponderlm2 on llama", {"num_jacobi_iterations": -1}, "num_jacobi_iterations is -1"),
        ("ponderlm2 interpolated", {"interpolation_topk": 31}, "interpolation_topk is 31"),
        ("ponderlm2 on llama", {"scale_embeds": 1}, "scale_embeds is 1"),
        ("ponderlm on llama", {"ponderinglm": False}, "ponderinglm is false or missing"),
        ("ponderlm on llama", {"softmax_temperature": 0.5}, "softmax_temperature is not 1.0"),
        ("ponderlm on llama", {"pondering_steps": -1}, "pondering_steps is -1"),
        ("adaponderlm on llama", {"backbone": "qwen3"}, "backbone is 'qwen3', it must be one of gpt_neox, llama"),
        ("adaponderlm on llama", {"readout": "mean"}, "readout is 'mean'"),
        ("adaponderlm on llama", {"halt_threshold": 0}, "halt_threshold is 0"),
        ("adaponderlm on llama", {"gate_activation": "swish"}, "gate_activation is 'swish'"),
        ("ponderlm3", {"renormalise": True}, "renormalise is True"),
        ("ponderlm3", {"mixture_includes_first": False}, "mixture_includes_first is False"),
        ("adaptive", {"router_type": "decider"}, "router_type is 'decider'"),
    ],
    ids=str,
)
def test_what_would_change_the_computation_is_named(sample: str, changes: dict[str, Any], named: str) -> None:
    family, config = SAMPLES[sample]
    with pytest.raises(InputError) as caught:
        specs_of(find_family(family, "c"), config | changes, "c")
    text = str(caught.value)
    assert text.startswith("c: ") and named in text and "\n" not in text and "; " in text


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"early_exit_threshold": 1.0}, {"stop": "count", "visibility": "same"}),
        ({"early_exit_threshold": None}, {"stop": "count", "visibility": "same"}),
        ({"early_exit_step": 1}, {"stop": "count", "max_latents": 1}),
        ({"early_exit_threshold": 0.25}, {"stop": "reach", "halt_threshold": 0.75, "visibility": "newest"}),
        ({"latentcot_exit": "as_released"}, {"stop": "reach", "visibility": "same", "skip_halted": False}),
        ({"latentcot_readout": "mixture", "early_exit_threshold": 1.0}, {"halt_threshold": 0.0, "skip_halted": False}),
    ],
    ids=str,
)
def test_exits_of_ouro(changes: dict[str, Any], want: dict[str, Any]) -> None:
    _, recurrence = specs_of(find_family("ouro", "c"), SAMPLES["ouro"][1] | changes, "c")
    assert {name: getattr(recurrence, name) for name in want} == want


def test_no_thoughts_are_the_stock_model_but_for_the_scale() -> None:
    keys = {**BACKBONES["llama"], **PONDERLM2, "num_latent_thoughts": 0, "scale_embeds": False}
    model, recurrence = specs_of(find_family("ponderlm2", "c"), keys, "c")
    assert model == specs_of(find_family("llama", "c"), BACKBONES["llama"], "c")[0]
    assert (recurrence.max_latents, recurrence.embedding_scale, recurrence.feedback) == (0, 1.0, None)


def test_families_are_asked_for_what_specs_they_can_say(tmp_path: Path) -> None:
    for family, config in SAMPLES.values():
        model, recurrence = specs_of(find_family(family, "c"), config, "c")
        found = family_of(model, recurrence)
        assert found.specs(found.config(model, recurrence), "c") == (model, recurrence)
        if model.block != "sandwich":
            assert stock_config(model)["model_type"] in ("llama", "gpt_neox", "qwen3")
    with pytest.raises(InputError, match="no stock family"):
        stock_config(specs_of(find_family("ouro", "c"), BACKBONES["ouro"], "c")[0])
    with pytest.raises(InputError, match="no known family"):
        family_of(MODEL, RecurrenceSpec(2, visibility="all"))
    json.dumps(stock_config(MODEL))
