"""`gpt_neox`: stock GPT-NeoX (Pythia) as transformers' GPTNeoXConfig and GPTNeoXForCausalLM write it; depth 1.

Layer norms with bias, attention and MLP beside each other (`use_parallel_residual`) or one after the other, RoPE on the
first `rotary_pct` of a head, one linear for query, key and value with its rows grouped by head.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.family import Backbone, Stock
from latentcot_export.checkpoint.keys import boolean, choice, integer, number, refuse_unsupported
from latentcot_export.checkpoint.layout import HEAD, Layout, Stored, fused_heads, tied_head
from latentcot_export.checkpoint.rope import rope_from_config, rope_to_config, rotary_factor
from latentcot_export.checkpoint.shapes import layer_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_DIMENSION, MAX_LAYERS, ModelSpec
from latentcot_export.strict_json import shown

# transformers' names; the three of the tanh form differ by less than float32 can show
_ACTIVATIONS = {
    **{"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"},
    **{"silu": "silu", "swish": "silu"},
}
_NAMES = (
    *(("model.embed_tokens.", "gpt_neox.embed_in."), ("model.norm.", "gpt_neox.final_layer_norm.")),
    *(("model.layers.", "gpt_neox.layers."), ("self_attn.q_proj", "attention.query_key_value")),
    *(("self_attn.o_proj", "attention.dense"), ("mlp.up_proj", "mlp.dense_h_to_4h")),
    *(("mlp.down_proj", "mlp.dense_4h_to_h"), (HEAD, "embed_out.weight")),
)
# Causal masks and RoPE tables that older versions of transformers saved; anchored, or it would take biases of linears.
_BUFFERS = re.compile(r"gpt_neox\.(layers\.\d+\.attention\.(masked_bias|bias)|(.+\.)?rotary_emb\.inv_freq)")


def neox_model(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The layer stack of a GPT-NeoX config; absent keys take GPTNeoXConfig's defaults. Errors: InputError, SpecError."""
    refuse_unsupported(config, where)
    hidden = integer(config, "hidden_size", 6144, where, 1, MAX_DIMENSION)
    heads = integer(config, "num_attention_heads", 64, where, 1, 1 << 16)
    if hidden % heads:
        raise InputError(
            f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; fix config.json"
        )
    head_dim = hidden // heads
    for key, only in (("num_key_value_heads", heads), ("head_dim", head_dim)):
        if config.get(key) not in (None, only):
            raise InputError(f"{where}: {key} is {shown(config[key])}, this kind of model has always {only}; remove it")
    positions = integer(config, "max_position_embeddings", 2048, where, 1, MAX_DIMENSION)
    base = config.get("rotary_emb_base")
    spelled = config if base is None else ChainMap({"rope_theta": base}, config)  # type: ignore[arg-type]
    if base is not None and config.get("rope_theta") not in (None, base):
        raise InputError(f"{where}: rotary_emb_base and rope_theta contradict each other; keep the one that is right")
    factor = rotary_factor(config, where)
    if factor is not None and config.get("rotary_pct") not in (None, factor):
        raise InputError(
            f"{where}: rotary_pct and partial_rotary_factor contradict each other; keep the one that is right"
        )
    share = number({"rotary_pct": factor} if factor is not None else config, "rotary_pct", 0.25, where, 0.0, 1.0)
    turned = int(head_dim * share)
    if turned < 2 or turned % 2:
        raise InputError(
            f"{where}: rotary_pct {share:g} of a head of {head_dim} turns {turned} dimensions, RoPE needs an even number; "
            "fix config.json"
        )
    activation = choice(config, "hidden_act", "gelu", where, tuple(_ACTIVATIONS))
    return ModelSpec(
        vocab_size=integer(config, "vocab_size", 50432, where, 1, MAX_DIMENSION),
        hidden_size=hidden,
        intermediate_size=integer(config, "intermediate_size", 24576, where, 1, MAX_DIMENSION),
        num_layers=integer(config, "num_hidden_layers", 44, where, 1, MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        rms_norm_eps=number(config, "layer_norm_eps", 1e-5, where, 0.0, 1.0),
        max_position_embeddings=positions,
        rope=rope_from_config(spelled, positions, where, partial=True),
        attention_bias=boolean(config, "attention_bias", True, where),
        mlp_bias=True,
        tie_word_embeddings=boolean(config, "tie_word_embeddings", False, where),
        norm="layer",
        block="parallel" if boolean(config, "use_parallel_residual", True, where) else "pre",
        mlp="plain",
        activation=_ACTIVATIONS[activation],
        rotary_dim=None if turned == head_dim else turned,
    )


def neox_config(model: ModelSpec) -> dict[str, Any]:
    """The inverse of `neox_model`, in the newer spelling, without dtype."""
    share = model.turned / model.head_dim
    if int(model.head_dim * share) < model.turned:
        share = math.nextafter(share, 1.0)
    return {
        "model_type": "gpt_neox",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(model.activation, model.activation),
        "layer_norm_eps": model.rms_norm_eps,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_parameters": {**rope_to_config(model.rope), "partial_rotary_factor": share},
        "use_parallel_residual": model.block == "parallel",
        "attention_bias": model.attention_bias,
        "tie_word_embeddings": model.tie_word_embeddings,
    }


def neox_layout(model: ModelSpec) -> Layout:
    """Published names and the fused linear of every layer; transformers 5 calls the head `lm_head` in memory."""
    stored = []
    for canonical, shape in layer_shapes(model).items():
        if ".k_proj." in canonical or ".v_proj." in canonical:
            continue
        name = canonical
        for ours, theirs in _NAMES:
            name = name.replace(ours, theirs)
        if ".q_proj." in canonical:
            makes = tuple(canonical.replace("q_proj", f"{which}_proj") for which in "qkv")
            stored.append(fused_heads(name, makes, model.num_heads, (3 * shape[0], *shape[1:])))
        else:
            stored.append(Stored(name, shape, (canonical,), aliases=(HEAD,) if canonical == HEAD else ()))
    return Layout((*stored, *tied_head(model, "embed_out.weight", (HEAD,))), _BUFFERS)


GPT_NEOX = Backbone("gpt_neox", neox_model, neox_config, lambda model: model.norm == "layer", neox_layout)


@family("gpt_neox")
class GPTNeoX(Stock):
    """Stock GPT-NeoX: no latents, no router."""

    backbones = (GPT_NEOX,)
    architectures = ("GPTNeoXForCausalLM",)
