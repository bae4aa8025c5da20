"""`llama`: stock Llama as transformers' LlamaConfig and LlamaForCausalLM write it; depth 1 of the same machine.

`llama_model` and `llama_config` serve every backbone that differs from Llama in a few keys alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.family import Backbone, Stock
from latentcot_export.checkpoint.keys import refuse_unsupported
from latentcot_export.checkpoint.layout import Layout, as_is, tied_head
from latentcot_export.checkpoint.rope import rope_from_config, rope_to_config
from latentcot_export.checkpoint.shapes import layer_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec
from latentcot_export.strict_json import shown

_SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "only silu is supported, so this checkpoint cannot be exported"),
}


def llama_model(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The layer stack of a Llama-shaped config; keys that are absent take LlamaConfig's defaults.

    Errors: InputError for what is not supported, SpecError for values out of range.
    """
    refuse_unsupported(config, where, _SUPPORTED)
    hidden, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    if head_dim is None:
        if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
            raise InputError(
                f"{where}: hidden_size {shown(hidden)} is not a multiple of num_attention_heads {shown(heads)} and "
                "there is no head_dim; fix config.json"
            )
        head_dim = hidden // heads
    positions = config.get("max_position_embeddings", 2048)
    if type(positions) is not int or positions < 1:
        raise InputError(
            f"{where}: max_position_embeddings is {shown(positions)}, it must be a positive integer; fix config.json"
        )
    rope = rope_from_config(config, positions, where)
    if rope.kind == "dynamic" and head_dim == 2:
        # transformers raises its base to head_dim / (head_dim - 2)
        raise InputError(f"{where}: dynamic RoPE is undefined for head_dim 2; use another rope_type")
    epsilon = config.get("rms_norm_eps", 1e-6)
    return ModelSpec(
        vocab_size=config.get("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=config.get("intermediate_size", 11008),
        num_layers=config.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(epsilon) if type(epsilon) is int else epsilon,
        max_position_embeddings=positions,
        rope=rope,
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def llama_config(model: ModelSpec) -> dict[str, Any]:
    """The inverse of `llama_model`, in the newer spelling, without `model_type` and dtype."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_parameters": rope_to_config(model.rope),
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
        "tie_word_embeddings": model.tie_word_embeddings,
    }


def llama_layout(model: ModelSpec) -> Layout:
    """Canonical names are Llama's, so every tensor is published as it is."""
    return Layout(as_is(layer_shapes(model))).plus(tied_head(model))


def gated_rms(model: ModelSpec) -> bool:
    """What Llama and its kin share: RMS norms, a gated silu MLP, whole heads turned."""
    return (model.norm, model.mlp, model.activation, model.rotary_dim) == ("rms", "gated", "silu", None)


LLAMA = Backbone(
    "llama",
    llama_model,
    lambda model: {"model_type": "llama", **llama_config(model)},
    lambda model: gated_rms(model) and model.block == "pre" and not model.qk_norm,
    llama_layout,
)


@family("llama")
class Llama(Stock):
    """Stock Llama: no latents, no router."""

    backbones = (LLAMA,)
    architectures = ("LlamaForCausalLM",)
