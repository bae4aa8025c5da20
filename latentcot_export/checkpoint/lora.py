"""A LoRA (arXiv 2106.09685) as peft saves it: `lora/adapter_config.json` and `lora/adapter_model.safetensors`.

y = W x + scaling * B (A x), scaling = lora_alpha / r; the canonical `adapter_out` is scaling * B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from latentcot_export.checkpoint.keys import integer, number
from latentcot_export.checkpoint.layout import Stored
from latentcot_export.checkpoint.shapes import layer_shapes
from latentcot_export.checkpoint.thinking_shapes import adapted, adapter_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ADAPTABLE, MAX_DIMENSION, AdapterSpec, ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

CONFIG, WEIGHTS = "lora/adapter_config.json", "lora/adapter_model.safetensors"
ALL = "all-linear"
# Options of peft that change the computation, with the values that leave it as it is.
_PLAIN: tuple[Any, ...] = (None, False, {}, [], "none", "LORA", "CAUSAL_LM")
_OPTIONS = (
    *("peft_type", "bias", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform"),
    *(
        "layers_pattern",
        "layer_replication",
        "modules_to_save",
        "exclude_modules",
        "trainable_token_indices",
        "lora_bias",
    ),
    *("megatron_config", "alora_invocation_tokens", "target_parameters"),
)


def lora_spec(config: Mapping[str, Any], where: str) -> AdapterSpec:
    """The adapter of an adapter_config.json. Errors: InputError for options that are not computed."""
    for key in _OPTIONS:
        if config.get(key) not in _PLAIN:
            raise InputError(f"{where}: {key} is {shown(config[key])}; only a plain LoRA on linear layers is supported")
    rank = integer(config, "r", 8, where, 1, MAX_DIMENSION)
    wanted = config.get("target_modules")
    if wanted == ALL:
        return AdapterSpec(rank)
    if not isinstance(wanted, list) or not wanted or not all(isinstance(name, str) for name in wanted):
        raise InputError(
            f'{where}: target_modules is {shown(wanted)}, it must be "{ALL}" or a list of names of linears'
        )
    modules = tuple(name for name in ADAPTABLE if any(name == each or name.endswith(f".{each}") for each in wanted))
    unknown = [each for each in wanted if not any(name == each or name.endswith(f".{each}") for name in modules)]
    if unknown:
        raise InputError(f"{where}: target_modules names {shown(unknown[0])}, supported are {', '.join(ADAPTABLE)}")
    return AdapterSpec(rank, modules)


def lora_scaling(config: Mapping[str, Any], where: str) -> float:
    """lora_alpha / r, or with use_rslora lora_alpha / sqrt(r). Errors: InputError."""
    rank = integer(config, "r", 8, where, 1, MAX_DIMENSION)
    alpha = number(config, "lora_alpha", 8, where, 1e-6, 1e6)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def lora_config(adapter: AdapterSpec) -> dict[str, Any]:
    """An adapter_config.json that `lora_spec` reads, with scaling 1."""
    modules: Any = ALL if adapter.modules == ADAPTABLE else [name.rpartition(".")[2] for name in adapter.modules]
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "target_modules": modules,
        "bias": "none",
    }


def lora_layout(model: ModelSpec, recurrence: RecurrenceSpec, scaling: float) -> list[Stored]:
    """Where the canonical adapter tensors lie. Exact both ways where scaling is a power of two, as 2.0 is."""
    layers = layer_shapes(model)
    shapes = adapter_shapes(layers, recurrence)
    if not shapes or recurrence.adapter is None:
        return []
    stored = []
    for name in adapted(layers, recurrence.adapter):
        for part, canonical in (("lora_A", f"{name}.adapter_in.weight"), ("lora_B", f"{name}.adapter_out.weight")):
            prefix = f"{WEIGHTS}:base_model.model.{name}.{part}"
            aliases = (f"{prefix}.default.weight",)  # a copy of what peft holds in memory
            if part == "lora_A" or scaling == 1.0:
                stored.append(Stored(f"{prefix}.weight", shapes[canonical], (canonical,), aliases=aliases))
                continue
            stored.append(
                Stored(
                    f"{prefix}.weight",
                    shapes[canonical],
                    (canonical,),
                    aliases=aliases,
                    split=lambda x: ((x.float() * scaling).to(x.dtype),),
                    join=lambda parts: (parts[0].float() / scaling).to(parts[0].dtype),
                )
            )
    return stored
