"""Families of checkpoints: one file per family, named after it, that registers itself with `@family`.

To add one, put `families/<name>.py` beside the others: docs/extending.md.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from latentcot_export.checkpoint.family import Family
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

_FAMILIES: dict[str, Family] = {}
_Class = TypeVar("_Class", bound=type[Family])


def family(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: register an instance of the class under `name`."""

    def register(cls: _Class) -> _Class:
        if name in _FAMILIES:
            raise ValueError(f"family {name} is registered twice")
        cls.name = name
        _FAMILIES[name] = cls()
        return cls

    return register


@functools.cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def family_names() -> tuple[str, ...]:
    """Every known family, sorted."""
    _load()
    return tuple(sorted(_FAMILIES))


def side_files() -> tuple[str, ...]:
    """Every JSON file that some family reads beside config.json."""
    return tuple(sorted({name for known in family_names() for name in _FAMILIES[known].side_files}))


def find_family(name: object, where: str) -> Family:
    """The family called `name`. Errors: InputError that lists the known ones."""
    known = family_names()
    if not isinstance(name, str) or name not in _FAMILIES:
        what = "model_type is missing" if name is None else f"the family {shown(name)} is unknown"
        raise InputError(f"{where}: {what}; known families are {', '.join(known)}")
    return _FAMILIES[name]


def recognise(config: Mapping[str, Any], where: str) -> Family:
    """The family of a parsed config.json: one that thinks before a stock one, which would read it too.

    Errors: InputError for an unknown model_type, and where two families claim it.
    """
    found = [_FAMILIES[name] for name in family_names() if _FAMILIES[name].recognises(config)]
    special = [each for each in found if not each.stock]
    if len(special) > 1:
        names = " and ".join(each.name for each in special)
        raise InputError(f"{where}: its keys are those of {names}; remove the keys of the wrong one")
    if special or found:
        return (special or found)[0]
    return find_family(config.get("model_type"), where)


def refuse_foreign(handler: Family, config: Mapping[str, Any], where: str) -> None:
    """Refuse keys that make the config one of another family: `handler` would run it and be wrong. Errors: InputError."""
    for other in map(_FAMILIES.__getitem__, family_names()):
        for key in other.marks:
            if key not in handler.marks and config.get(key):
                way = "set model_type to" if other.named else "read it with --family"
                raise InputError(
                    f"{where}: {key} is {shown(config[key])}, which makes this a recurrent checkpoint of {other.name}, "
                    f"not one of {handler.name}; {way} {other.name}, or remove that key"
                )


def family_of(model: ModelSpec, recurrence: RecurrenceSpec) -> Family:
    """The first family, those that think first, that can write these specs down exactly. Errors: InputError."""
    for handler in sorted(map(_FAMILIES.__getitem__, family_names()), key=lambda each: each.stock):
        try:
            handler.config(model, recurrence)
        except InputError:
            continue
        return handler
    raise InputError("no known family of checkpoints can say this layer stack with this recurrence; change one of them")


def stock_config(model: ModelSpec) -> dict[str, Any]:
    """config.json of this layer stack without any recurrence, as transformers reads it. Errors: InputError."""
    for handler in map(_FAMILIES.__getitem__, family_names()):
        if handler.stock:
            try:
                return handler.config(model, RecurrenceSpec(max_latents=0))
            except InputError:
                continue
    raise InputError("no stock family of checkpoints has this layer stack; compare it with the oracle instead")


__all__ = [
    "Family",
    "family",
    "family_names",
    "family_of",
    "find_family",
    "recognise",
    "refuse_foreign",
    "side_files",
    "stock_config",
]
