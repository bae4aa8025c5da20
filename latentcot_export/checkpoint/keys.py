"""Single keys of a config.json, each with the sentence for a value that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

# key: (values that mean what is computed here, what to do about others); an absent key is fine
_SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
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


def refuse_unsupported(
    config: Mapping[str, Any], where: str, further: Mapping[str, tuple[tuple[Any, ...], str]] | None = None
) -> None:
    """Refuse, by name, keys that no layer stack here computes; `further` ones are {key: (accepted values, advice)}.

    Errors: InputError.
    """
    for key, (accepted, advice) in {**(further or {}), **_SUPPORTED}.items():
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


def integer(config: Mapping[str, Any], key: str, default: int, where: str, low: int, high: int) -> int:
    """The integer at `key`, `default` where it is absent or null. Errors: InputError."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not low <= value <= high:
        raise InputError(
            f"{where}: {key} is {shown(value)}, it must be an integer from {low} to {high}; correct that key"
        )
    return value


def number(config: Mapping[str, Any], key: str, default: float, where: str, low: float, high: float) -> float:
    """The finite number at `key`, `default` where it is absent or null. Errors: InputError."""
    value = config.get(key)
    value = default if value is None else value
    good = type(value) in (int, float) and low <= value <= high and math.isfinite(value)
    if not good:
        raise InputError(
            f"{where}: {key} is {shown(value)}, it must be a finite number from {low:g} to {high:g}; correct that key"
        )
    return float(value)


def boolean(config: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """The truth value at `key`, `default` where it is absent or null. Errors: InputError."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not bool:
        raise InputError(f"{where}: {key} is {shown(value)}, it must be true or false; correct that key")
    return value


def choice(config: Mapping[str, Any], key: str, default: str, where: str, choices: tuple[str, ...]) -> str:
    """The word at `key`, `default` where it is absent or null. Errors: InputError."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{where}: {key} is {shown(value)}, it must be one of {', '.join(choices)}; correct that key")
    return value


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object at `key`, an empty one where it is absent or null. Errors: InputError."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where}: {key} is {shown(value)}, it must be an object; correct that key")
    return value or {}


def below(threshold: float) -> float:
    """The float32 number next under the threshold: a float32 gate of at least the threshold is above that, and no other."""
    return _beside(threshold, 0.0)


def above(threshold: float) -> float:
    """The inverse of `below` for float32 numbers."""
    return _beside(threshold, math.inf)


def _beside(value: float, towards: float) -> float:
    return float(torch.nextafter(torch.tensor(value, dtype=torch.float32), torch.tensor(towards, dtype=torch.float32)))
