"""Which tensors a checkpoint must hold, and the sentence about those that are missing, unexpected or misshapen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from latentcot_export.checkpoint.thinking_shapes import Shape, adapter_shapes, router_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Non-persistent buffers that transformers before 4.32 saved; they are recomputed from the RoPE parameters.
_BUFFER = re.compile(r"(.+\.)?rotary_emb\.inv_freq")
_LISTED = 3


def is_harmless_buffer(name: str) -> bool:
    """Whether a stored tensor is one that every reader recomputes and ignores."""
    return _BUFFER.fullmatch(name) is not None


def layer_shapes(model: ModelSpec) -> dict[str, Shape]:
    """The tensors of the layer stack and its head: {name: shape}, under Llama's names where Llama has them.

    Linear weights are `[out, in]`; a tied head has no tensor of its own. Layer norms have a bias; the norms on what
    attention and MLP give (`block` sandwich) are called `*_2`; `q_norm` and `k_norm` `[head_dim]` serve all heads.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
    }
    mlp = {"mlp.gate_proj": (inner, hidden)} if model.mlp == "gated" else {}
    mlp |= {"mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    head_norms = ["self_attn.q_norm", "self_attn.k_norm"] if model.qk_norm else []
    after = "_2" if model.block == "sandwich" else None
    shapes: dict[str, Shape] = {EMBEDDING: (model.vocab_size, hidden)}
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}"
        shapes |= _norm_shapes(model, f"{prefix}.input_layernorm", after)
        shapes |= _linear_shapes(prefix, attention, model.attention_bias)
        shapes |= {f"{prefix}.{name}.weight": (model.head_dim,) for name in head_norms}
        shapes |= _linear_shapes(prefix, mlp, model.mlp_bias)
        shapes |= _norm_shapes(model, f"{prefix}.post_attention_layernorm", after)
    shapes |= _norm_shapes(model, "model.norm", None)
    if not model.tie_word_embeddings:
        shapes[HEAD] = (model.vocab_size, hidden)
    return shapes


def _norm_shapes(model: ModelSpec, name: str, after: str | None) -> dict[str, Shape]:
    """A norm over the hidden dimension and, where `after` is the end of its name, the one on what follows it."""
    names = [name] if after is None else [name, f"{name}{after}"]
    parts = ("weight",) if model.norm == "rms" else ("weight", "bias")
    return {f"{each}.{part}": (model.hidden_size,) for each in names for part in parts}


def _linear_shapes(prefix: str, linears: Mapping[str, Shape], bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, shape in linears.items():
        shapes[f"{prefix}.{name}.weight"] = shape
        if bias:
            shapes[f"{prefix}.{name}.bias"] = shape[:1]
    return shapes


def tensor_shapes(model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Shape]:
    """Every tensor that must be there: {name: shape} in the order of a forward pass, adapters and router last."""
    layers = layer_shapes(model)
    return layers | adapter_shapes(layers, recurrence) | router_shapes(model, recurrence)


def account_for(
    found: Mapping[str, Shape],
    required: Mapping[str, Shape],
    optional: Mapping[str, Shape],
    where: str,
    config: str = "config.json",
) -> None:
    """Hold the tensors found against those wanted, as the file `config` says.

    Errors: InputError, one sentence that names all three faults.
    """
    missing = [name for name in required if name not in found]
    wanted = {**optional, **required}
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} is {list(found[name])} and should be {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    faults = [
        f"{_count(items)} {kind} ({_some(items)})"
        for kind, items in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if items
    ]
    if faults:
        raise InputError(
            f"{where} and its {config} disagree: {', '.join(faults)}; {_advice(missing, misshapen, config)}"
        )


def _count(items: Sequence[str]) -> str:
    return "1 tensor is" if len(items) == 1 else f"{len(items)} tensors are"


def _some(items: Sequence[str]) -> str:
    listed = ", ".join(shown(item, 160)[1:-1] for item in items[:_LISTED])
    return listed if len(items) <= _LISTED else f"{listed} and {len(items) - _LISTED} more"


def _advice(missing: Sequence[str], misshapen: Sequence[str], config: str) -> str:
    if misshapen:
        return f"use the {config} that was saved with these weights"
    if missing == [HEAD]:
        return "set tie_word_embeddings to true if the head shares the embedding"
    if missing and all(name.startswith("router.") for name in missing):
        return "make an adaptive checkpoint of a stock one with `latentcot init`"
    return "use the config.json and the model_type that were saved with these weights"
