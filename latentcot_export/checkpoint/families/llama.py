"""`llama`: stock Llama as transformers' LlamaConfig and LlamaForCausalLM write it; depth 1 of the same machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentcot_export.checkpoint.families import Shapes, family
from latentcot_export.checkpoint.rope import rope_from_config, rope_to_config
from latentcot_export.checkpoint.shapes import EMBEDDING, HEAD, layer_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

# key: (values that mean what is computed here, what to do about others); an absent key is fine
_SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "only silu is supported, so this checkpoint cannot be exported"),
    "pretraining_tp": ((None, 1), "save the checkpoint with pretraining_tp 1"),
    "quantization_config": ((None,), "quantized weights are not read, use the unquantized checkpoint"),
    "rope_interleaved": ((None, False), "interleaved rotation is not supported, permute the weights first"),
    "num_local_experts": ((None,), "mixtures of experts are not supported"),
    "num_experts": ((None,), "mixtures of experts are not supported"),
    "is_encoder_decoder": ((None, False), "only decoders are supported"),
    "add_cross_attention": ((None, False), "only decoders are supported"),
    "dtype": ((None, "float32", "float16", "bfloat16"), "save the weights as float32, float16 or bfloat16"),
    "torch_dtype": ((None, "float32", "float16", "bfloat16"), "save the weights as float32, float16 or bfloat16"),
}
# Recurrent checkpoints that call themselves llama: read as stock ones they would run and be wrong.
_RECURRENT = ("recurrent_model", "num_latent_thoughts", "ponderinglm", "pondering_steps", "total_ut_steps")


def llama_model(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The layer stack of a Llama-shaped config; keys that are absent take LlamaConfig's defaults.

    Errors: InputError for what is not supported, SpecError for values out of range.
    """
    _refuse_unsupported(config, where)
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


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    for key, (accepted, advice) in _SUPPORTED.items():
        if key in config and config[key] not in accepted:
            raise InputError(f"{where}: {key} is {shown(config[key])}; {advice}")
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True) is not False:
        raise InputError(
            f"{where}: sliding_window is {shown(config['sliding_window'])}; only full attention is supported, "
            "set it to null if the model was trained without"
        )
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise InputError(f"{where}: layer_types is {shown(kinds)}; only full_attention is supported in every layer")
    for key in _RECURRENT:
        if config.get(key):
            raise InputError(
                f"{where}: {key} is {shown(config[key])}, so this is a recurrent model of another family; "
                "it is not supported yet"
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


def tied_head(model: ModelSpec) -> Shapes:
    """The redundant copy of the embedding that some tied checkpoints store."""
    return {HEAD: layer_shapes(model)[EMBEDDING]} if model.tie_word_embeddings else {}


@family("llama")
class Llama:
    """Stock Llama: no latents, no router."""

    def specs(self, config: Mapping[str, Any], where: str) -> tuple[ModelSpec, RecurrenceSpec]:
        """See Family. A config with latents is refused: as a stock model it would be a different one."""
        if config.get("max_latents"):
            raise InputError(
                f"{where}: max_latents is {shown(config['max_latents'])}, which a stock llama has not; "
                "set model_type to adaptive_latent_cot"
            )
        return llama_model(config, where), RecurrenceSpec(max_latents=0)

    def config(self, model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Any]:
        """See Family."""
        if recurrence != RecurrenceSpec(max_latents=0):
            raise InputError("a stock llama has no latents, router or embedding scale; write it as adaptive_latent_cot")
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **llama_config(model)}

    def optional_shapes(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Shapes:
        """See Family."""
        return tied_head(model)
