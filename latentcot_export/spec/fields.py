"""Checks of single values, and the limits that bound what a hostile file can make us allocate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

# Limits that no published model comes near.
MAX_LATENTS = 64
MAX_DIMENSION = 1 << 24
MAX_LAYERS = 1024
MAX_SLOTS = (1 << 31) - 1  # slots are numbered in int32


class SpecError(ValueError):
    """A spec that no model can have: the message says which value, its limit and where it came from."""


def check_integer(where: str, name: str, value: Any, low: int, high: int) -> None:
    """An integer, not a boolean, from low to high. Errors: SpecError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(f"{where}: {name} is {value!r}, it must be an integer from {low} to {high}")


def check_number(where: str, name: str, value: Any, low: float, high: float) -> None:
    """A finite number from low to high. Errors: SpecError."""
    # compared before isfinite, which an integer beyond any float would break
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not low <= value <= high or not math.isfinite(value):
        raise SpecError(f"{where}: {name} is {value!r}, it must be a finite number from {low:g} to {high:g}")


def check_boolean(where: str, name: str, value: Any) -> None:
    """True or False. Errors: SpecError."""
    if not isinstance(value, bool):
        raise SpecError(f"{where}: {name} is {value!r}, it must be true or false")


def check_choice(where: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of the choices. Errors: SpecError."""
    if value not in choices:
        raise SpecError(f"{where}: {name} is {value!r}, it must be one of {', '.join(choices)}")


def added(default: Any) -> Any:
    """A field that a later version added: left out of JSON at its default, so that older manifests keep their hash."""
    return dataclasses.field(default=default, metadata={"added": True})
