"""Families of checkpoints: one file per `model_type`, named after it, that registers itself with `@family`.

To add one, put `families/<model_type>.py` beside the others with a class that has the three methods of `Family`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

Shapes = dict[str, tuple[int, ...]]


class Family(Protocol):
    """How one `model_type` writes its facts down. Instances have no state."""

    def specs(self, config: Mapping[str, Any], where: str) -> tuple[ModelSpec, RecurrenceSpec]:
        """Read a parsed config.json. Errors: InputError or SpecError for what is wrong or not supported."""

    def config(self, model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Any]:
        """The inverse of `specs`: the keys of config.json, `model_type` included. Errors: InputError."""

    def optional_shapes(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Shapes:
        """Tensors that may be there beside the required ones; they are checked and then dropped."""


_FAMILIES: dict[str, Family] = {}
_Class = TypeVar("_Class", bound=Callable[[], Family])


def family(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: register an instance of the class for `model_type` `name`."""

    def register(cls: _Class) -> _Class:
        if name in _FAMILIES:
            raise ValueError(f"family {name} is registered twice")
        _FAMILIES[name] = cls()
        return cls

    return register


@functools.cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def family_names() -> tuple[str, ...]:
    """Every known `model_type`, sorted."""
    _load()
    return tuple(sorted(_FAMILIES))


def find_family(name: object, where: str) -> Family:
    """The family called `name`. Errors: InputError that lists the known ones."""
    known = family_names()
    if not isinstance(name, str) or name not in _FAMILIES:
        what = "model_type is missing" if name is None else f"the family {shown(name)} is unknown"
        raise InputError(f"{where}: {what}; known families are {', '.join(known)}")
    return _FAMILIES[name]
