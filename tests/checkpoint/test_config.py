from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.checkpoint.families import family, family_names, find_family
from latentcot_export.checkpoint.read import specs_of
from latentcot_export.checkpoint.rope import rope_from_config, rope_to_config
from latentcot_export.errors import InputError
from latentcot_export.spec import ROPE_KINDS, ModelSpec, RecurrenceSpec, RopeSpec, SpecError
from latentcot_export.strict_json import parse_object, shown
from tests.checkpoint.sample import MODEL, RECURRENCE, SIZES, edit_config, stock

BASE = find_family("llama", "test").config(MODEL, RecurrenceSpec())


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        specs_of(find_family("llama", "c"), BASE | changes, "c")
    text = str(caught.value)
    assert text.startswith("c: ") and "\n" not in text and len(text) < 500
    assert "; " in text or ", " in text
    return text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("pretraining_tp", 2),
        ("quantization_config", {"quant_method": "gptq"}),
        ("sliding_window", 4096),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", "full_attention"),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("num_local_experts", 8),
        ("is_encoder_decoder", True),
        ("dtype", "float64"),
        ("torch_dtype", 16),
        ("recurrent_model", True),
        ("ponderinglm", True),
        ("total_ut_steps", 4),
        ("max_latents", 3),
        ("vocab_size", 0),
        ("vocab_size", "40"),
        ("vocab_size", True),
        ("vocab_size", 1 << 40),
        ("hidden_size", None),
        ("hidden_size", 18.0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 3),
        ("head_dim", []),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", -1),
        ("max_position_embeddings", None),
        ("attention_bias", 1),
        ("mlp_bias", "no"),
        ("tie_word_embeddings", None),
        ("vocab_size", "x" * 10000),
        ("rope_theta", 77.0),
        ("rope_parameters", 5),
        ("rope_parameters", {"rope_type": "longrope", "factor": 2.0}),
        ("rope_parameters", {"rope_type": ["yarn"]}),
        ("rope_parameters", {"rope_type": "yarn", "type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "linear"}),
        ("rope_parameters", {"rope_type": "linear", "factor": 0}),
        ("rope_parameters", {"rope_type": "linear", "factor": "2"}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "facto": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "truncate": 1}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 4}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1}),
        ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.25}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": -1}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("rope_scaling", {"type": "linear", "factor": 3.0}),
    ],
    ids=lambda value: shown(value, 50),
)
def test_what_is_wrong_or_not_supported_gets_a_sentence_with_the_key(key: str, value: Any) -> None:
    text = refusal(**{key: value})
    named = {"rope_parameters": ("rope", "factor"), "rope_scaling": ("rope_scaling",)}.get(key, (key,))
    assert any(name in text.lower() for name in named), text


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "swish"},
        {"pretraining_tp": None},
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention", "full_attention"]},
        {"partial_rotary_factor": 1.0},
        {"rope_interleaved": False, "is_llama_config": True},
        {"dtype": None, "torch_dtype": "bfloat16"},
        {"attention_dropout": 0.1, "initializer_range": 0.02, "use_cache": False, "_name_or_path": "x", "future": [1]},
        {"rope_theta": 10000},
        {"max_latents": 0},
        {"num_key_value_heads": 2, "hidden_size": 18},  # not a multiple of the heads, but head_dim is given
    ],
    ids=lambda value: shown(value, 50),
)
def test_what_changes_nothing_is_accepted(changes: dict[str, Any]) -> None:
    model, recurrence = specs_of(find_family("llama", "c"), BASE | changes, "c")
    assert (model.rope, recurrence) == (MODEL.rope, RecurrenceSpec())


def test_spec_errors_name_the_config_s_own_keys(tmp_path: Path) -> None:
    stock(tmp_path / "c")
    edit_config(tmp_path / "c", num_hidden_layers=0)
    with pytest.raises(InputError, match=r"config.json: num_hidden_layers is 0, it must be an integer from 1 to"):
        read_checkpoint(tmp_path / "c")
    edit_config(tmp_path / "c", num_hidden_layers=2, num_attention_heads=5)
    with pytest.raises(InputError, match="num_attention_heads 5 is not a multiple of num_key_value_heads 2"):
        read_checkpoint(tmp_path / "c")
    edit_config(tmp_path / "c", num_attention_heads=5, head_dim=None)
    with pytest.raises(InputError, match="hidden_size 16 is not a multiple of num_attention_heads 5"):
        read_checkpoint(tmp_path / "c")


numbers = st.floats(0.5, 64.0, allow_nan=False)


@st.composite
def ropes(draw: st.DrawFn) -> RopeSpec:
    kind = draw(st.sampled_from(ROPE_KINDS))
    values: dict[str, Any] = {"kind": kind, "theta": draw(st.floats(2.0, 1e6))}
    if kind != "default":
        values["factor"] = draw(numbers)
    if kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = draw(st.integers(1, 64))
    if kind == "dynamic":
        values["original_max_position_embeddings"] = 64
    if kind == "llama3":
        low = draw(st.floats(0.1, 8.0))
        values |= {"low_freq_factor": low, "high_freq_factor": low * 2}
    if kind == "yarn":
        slow = draw(st.none() | st.floats(0.1, 1.0))
        values |= {"beta_slow": slow, "beta_fast": draw(st.none() | st.floats(1.0, 64.0))}
        names = ("attention_factor", "mscale", "mscale_all_dim")
        values |= {name: draw(st.none() | numbers) for name in names}
        values["truncate"] = draw(st.none() | st.booleans())
    return RopeSpec(**values)


@given(ropes())
def test_rope_survives_both_spellings(rope: RopeSpec) -> None:
    written = rope_to_config(rope)
    assert rope_from_config({"rope_parameters": written}, 64, "c") == rope
    theta = written.pop("rope_theta")
    assert rope_from_config({"rope_theta": theta, "rope_scaling": written}, 64, "c") == rope
    written["type"] = written.pop("rope_type")
    assert rope_from_config({"rope_theta": theta, "rope_scaling": written}, 64, "c") == rope


@given(ropes(), st.booleans(), st.booleans(), st.integers(0, 8), st.booleans())
def test_specs_survive_the_config_of_every_family(
    rope: RopeSpec, tied: bool, bias: bool, latents: int, shared: bool
) -> None:
    model = ModelSpec(**SIZES, rope=rope, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=not bias)
    recurrence = RecurrenceSpec(latents, 0.3, "mlp", 4, shared, -1.5)
    ours = find_family("adaptive_latent_cot", "c")
    assert ours.specs(ours.config(model, recurrence), "c") == (model, recurrence)
    llama = find_family("llama", "c")
    assert llama.specs(llama.config(model, RecurrenceSpec()), "c") == (model, RecurrenceSpec())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted([*BASE, "rope_scaling", "rope_theta", "max_latents", "halt_threshold", "router_type", "sliding_window"])
ROPE_KEYS = ("rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "low_freq_factor", "x")


@given(
    st.sampled_from(family_names()),
    st.dictionaries(
        st.sampled_from(KEYS), json_values | st.dictionaries(st.sampled_from(ROPE_KEYS), json_values, max_size=4)
    ),
)
def test_any_value_of_any_key_gives_specs_or_a_sentence(name: str, changes: dict[str, Any]) -> None:
    try:
        model, recurrence = specs_of(find_family(name, "c"), {**BASE, "max_latents": 0, **changes}, "c")
    except InputError as error:
        assert "\n" not in str(error) and str(error).isascii() and len(str(error)) < 600
    else:
        assert isinstance(model, ModelSpec) and isinstance(recurrence, RecurrenceSpec)
        assert math.isfinite(model.rope.theta)


def test_families_register_once_and_stock_has_no_recurrence() -> None:
    assert {"adaptive_latent_cot", "llama"} < set(family_names())
    with pytest.raises(ValueError, match="registered twice"):
        family("llama")(type("Again", (), {}))
    with pytest.raises(
        InputError, match=r"model_type is missing; known families are .*adaptive_latent_cot, gpt_neox, llama, "
    ):
        find_family(None, "c")
    with pytest.raises(InputError, match="of llama cannot say max_latents 3; write it as another family"):
        find_family("llama", "c").config(MODEL, RECURRENCE)
    with pytest.raises(SpecError):
        find_family("llama", "c").specs(BASE | {"vocab_size": -1}, "c")


def test_strict_json_accepts_what_json_is() -> None:
    text = b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00", {}], "b": {"c": 18446744073709551615}}'
    assert parse_object(text, "c") == {"a": [1, -2500.0, True, None, "é😀", {}], "b": {"c": 2**64 - 1}}
