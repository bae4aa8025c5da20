"""RoPE in `config.json`: `rope_parameters`, which transformers 5 writes, or the older `rope_theta` + `rope_scaling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentcot_export.errors import InputError
from latentcot_export.spec import ROPE_KINDS, RopeSpec
from latentcot_export.strict_json import shown

DEFAULT_THETA = 10000.0
_ORIGINAL = "original_max_position_embeddings"
_YARN_OPTIONS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
# The fields each kind reads in transformers' rope functions; others are dropped, as they are there.
_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL, *_YARN_OPTIONS),
}
# `finetuned` is a note that early YaRN checkpoints carry; no reader uses it.
_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"} | {
    name for names in _FIELDS.values() for name in names
}
_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", *_YARN_OPTIONS[:-1])


def rope_from_config(
    config: Mapping[str, Any], max_position_embeddings: int, where: str, partial: bool = False
) -> RopeSpec:
    """The RoPE of a config in either spelling, defaults filled in as transformers does.

    `partial`: `partial_rotary_factor` is allowed and left to the caller, who reads it with `rotary_factor`.

    `original_max_position_embeddings` falls back to `max_position_embeddings` (positions) for the kinds that use it,
    and YaRN's `factor` to their ratio. Errors: InputError, also for two spellings that contradict each other;
    SpecError for values out of range.
    """
    raw = _parameters(config, where)
    kind = _kind(raw, where)
    theta = _one("rope_theta", (raw.get("rope_theta"), config.get("rope_theta")), where)
    for source in (raw, config):
        if not partial and source.get("partial_rotary_factor") not in (None, 1):
            raise InputError(
                f"{where}: partial_rotary_factor is {shown(source['partial_rotary_factor'])}, only rotation of whole "
                "heads (1.0) is supported; this checkpoint cannot be exported"
            )
    values = {name: raw.get(name) for name in _FIELDS[kind]}
    if _ORIGINAL in values:
        original = _one(_ORIGINAL, (raw.get(_ORIGINAL), config.get(_ORIGINAL)), where)
        values[_ORIGINAL] = max_position_embeddings if original is None else original
        if kind == "yarn" and values["factor"] is None and type(original) is int and original > 0:
            values["factor"] = max_position_embeddings / original
    for name in _NUMBERS:
        if name in values:
            values[name] = _as_float(values[name])
    for name in ("beta_fast", "beta_slow"):
        if values.get(name) == 0.0:  # transformers takes 0 for absent
            values[name] = None
    spec = RopeSpec(kind=kind, theta=_as_float(DEFAULT_THETA if theta is None else theta), **values)
    _check(spec, max_position_embeddings, where)
    return spec


def rotary_factor(config: Mapping[str, Any], where: str) -> Any:
    """`partial_rotary_factor`, in the rope parameters or beside them, None where it is absent. Errors: InputError."""
    inside = _parameters(config, where).get("partial_rotary_factor")
    return _one("partial_rotary_factor", (inside, config.get("partial_rotary_factor")), where)


def rope_to_config(rope: RopeSpec) -> dict[str, Any]:
    """The `rope_parameters` object of a RopeSpec; absent fields are left out."""
    fields = {name: getattr(rope, name) for name in _FIELDS[rope.kind]}
    present = {name: value for name, value in fields.items() if value is not None}
    return {"rope_type": rope.kind, "rope_theta": rope.theta, **present}


def _parameters(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The one object that describes the scaling, without its null entries."""
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is None or value == {}:
            continue
        if not isinstance(value, dict):
            raise InputError(f"{where}: {key} is {shown(value)}, it must be an object or null; fix config.json")
        found.append({name: item for name, item in value.items() if item is not None})
    if len(found) == 2 and found[0] != found[1]:
        raise InputError(f"{where}: rope_parameters and rope_scaling contradict each other; keep the one that is right")
    raw = found[0] if found else {}
    if any(isinstance(item, dict) for item in raw.values()):
        raise InputError(f"{where}: rope parameters differ by layer type, one set for all layers is supported")
    kind = raw.get("rope_type", raw.get("type", "default"))
    unknown = sorted(set(raw) - _KNOWN)
    if unknown and kind in ROPE_KINDS:  # an unknown kind is the better complaint
        raise InputError(f"{where}: the rope parameter {shown(unknown[0])} is unknown; remove it if it means nothing")
    return raw


def _kind(raw: Mapping[str, Any], where: str) -> str:
    kind = _one("rope_type", (raw.get("rope_type"), raw.get("type")), where)
    if kind is None:
        return "default"
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise InputError(
            f"{where}: rope_type is {shown(kind)}, supported are {', '.join(ROPE_KINDS)}; "
            "this checkpoint cannot be exported"
        )
    return kind


def _one(name: str, values: tuple[Any, Any], where: str) -> Any:
    """The value given in one place or equally in both."""
    first, second = values
    if first is not None and second is not None and first != second:
        raise InputError(
            f"{where}: {name} is given twice, as {shown(first)} and as {shown(second)}; keep the one that is right"
        )
    return second if first is None else first


def _as_float(value: Any) -> Any:
    """An integer as the float it stands for; everything else is left to RopeSpec to judge."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check(rope: RopeSpec, max_position_embeddings: int, where: str) -> None:
    """What would divide by zero or differ between readers later."""
    original = rope.original_max_position_embeddings
    if rope.kind == "dynamic" and original != max_position_embeddings:
        raise InputError(
            f"{where}: dynamic RoPE gives original_max_position_embeddings {original} beside max_position_embeddings "
            f"{max_position_embeddings}, which readers treat differently; make them equal or remove the first"
        )
    if rope.kind == "llama3":
        low, high = rope.low_freq_factor or 0.0, rope.high_freq_factor or 0.0
        if not 0.0 < low < high:
            raise InputError(
                f"{where}: llama3 RoPE needs 0 < low_freq_factor < high_freq_factor, they are {low:g} and {high:g}; "
                "fix config.json"
            )
    if rope.kind == "yarn":
        fast, slow = rope.beta_fast or 32.0, rope.beta_slow or 1.0
        if fast < slow or rope.theta <= 1.0:
            raise InputError(
                f"{where}: yarn RoPE needs beta_fast >= beta_slow and rope_theta > 1, they are {fast:g}, {slow:g} and "
                f"{rope.theta:g}; fix config.json"
            )
