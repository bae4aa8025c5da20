"""`qwen3`: stock Qwen3 as transformers' Qwen3Config and Qwen3ForCausalLM write it; depth 1 of the same machine.

Llama with a norm on every query and key head before RoPE, a head size of its own and no biases in the MLP.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.llama import gated_rms, llama_config, llama_layout, llama_model
from latentcot_export.checkpoint.family import Backbone, Stock
from latentcot_export.checkpoint.keys import boolean
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec

_DEFAULTS = {
    **{"vocab_size": 151936, "intermediate_size": 22016, "head_dim": 128, "max_position_embeddings": 32768},
    **{"use_sliding_window": False},
}


def qwen3_model(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The layer stack of a Qwen3 config; absent keys take Qwen3Config's defaults. Errors: InputError, SpecError."""
    if boolean(config, "mlp_bias", False, where):
        raise InputError(f"{where}: mlp_bias is True, the MLP of this kind of model has no biases; remove that key")
    model = llama_model(ChainMap(config, _DEFAULTS), where)  # type: ignore[arg-type]
    return dataclasses.replace(model, qk_norm=True)


def qwen3_config(model: ModelSpec) -> dict[str, Any]:
    """The inverse of `qwen3_model`, in the newer spelling, without dtype."""
    keys = {name: value for name, value in llama_config(model).items() if name != "mlp_bias"}
    return {"model_type": "qwen3", **keys, "use_sliding_window": False}


QWEN3 = Backbone(
    "qwen3",
    qwen3_model,
    qwen3_config,
    lambda model: gated_rms(model) and model.block == "pre" and model.qk_norm,
    llama_layout,
)


@family("qwen3")
class Qwen3(Stock):
    """Stock Qwen3: no latents, no router."""

    backbones = (QWEN3,)
    architectures = ("Qwen3ForCausalLM",)
