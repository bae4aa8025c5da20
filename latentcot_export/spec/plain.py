"""Specs as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from .fields import SpecError
from .recurrence import AdapterSpec, DeciderSpec, FeedbackSpec
from .rope import RopeSpec

# Fields that are specs themselves.
_NESTED: dict[str, type] = {"rope": RopeSpec, "feedback": FeedbackSpec, "decider": DeciderSpec, "adapter": AdapterSpec}


def to_json(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON values; absent (None) fields and those of `added` at their default are left out."""
    values = {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if not (field.metadata.get("added") and getattr(spec, field.name) == field.default)
    }
    return {
        name: to_json(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


def from_json(kind: type, data: Any, where: str) -> Any:
    """The inverse of `to_json`. Errors: SpecError on unknown or missing fields and on values out of range."""
    if not isinstance(data, dict):
        raise SpecError(f"{where}: expected an object with the fields of {kind.__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(f"{where}: unknown field {unknown[0]!r}")
    values = {
        name: from_json(_NESTED[name], value, f"{where}.{name}") if name in _NESTED else value
        for name, value in data.items()
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise SpecError(f"{where}: {error}") from None
