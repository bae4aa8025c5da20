"""`latentcot convert`: a decider that was published as a pickle becomes safetensors, once and on demand."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from latentcot_export.checkpoint.decider import CLASS, DECIDER, LATER_CLASSES, PUBLISHED
from latentcot_export.checkpoint.files import open_folder, regular_file
from latentcot_export.checkpoint.read import CONFIG, read_config, specs_of
from latentcot_export.checkpoint.shapes import account_for
from latentcot_export.checkpoint.unpickle import unpickle
from latentcot_export.checkpoint.weights import DTYPES, check_finite
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

# Beyond eight bytes for every element: names, arguments, and 64-byte alignment of up to a few hundred records.
_SLACK = 16 << 20


def convert_decider(
    folder: str | os.PathLike[str], out_folder: str | os.PathLike[str] | None = None, force: bool = False
) -> Path:
    """Write iter_decider.safetensors of the iter_decider.bin in `folder`, to `out_folder` or beside it; returns its path.

    The pickle is read without running anything (unpickle.py). Its class must be the supported one, and its tensors those
    that the checkpoint's own configs describe, finite, in float32, float16 or bfloat16, which they keep; a stored
    `threshold` is left out, as the config's counts. The file appears complete or not at all.
    Errors: InputError; a file that is there already needs `force`.
    """
    path = open_folder(folder)
    config, handler = read_config(path, None)
    if DECIDER not in handler.weight_files:
        raise InputError(
            f"{path} holds a checkpoint of {handler.name}, which has no decider; there is nothing to convert"
        )
    model, recurrence = specs_of(handler, config, str(path / CONFIG))
    layout = handler.published(model, recurrence, config)
    prefix = f"{DECIDER}:"
    wanted = {each.name.removeprefix(prefix): each.shape for each in layout.stored if each.name.startswith(prefix)}
    if not wanted:
        raise InputError(f"{path} takes one step a token and asks no decider; export it as it is")
    out = path if out_folder is None else Path(out_folder)
    _check_free(out / DECIDER, force)
    source = regular_file(path, PUBLISHED)
    if source is None:
        raise InputError(f"{path} has no {PUBLISHED}; check that this is the checkpoint folder, downloaded completely")
    content = unpickle(source, 8 * sum(math.prod(shape) for shape in wanted.values()) + _SLACK)
    tensors = _state_dict(source, content, lambda name: layout.drops(f"{prefix}{name}"))
    account_for(
        {name: tuple(value.shape) for name, value in tensors.items()}, wanted, {}, str(source), handler.side_files[0]
    )
    plain = {}
    for name, value in tensors.items():  # only now is one made contiguous: its shape is that of the config
        check_finite(name, value, str(source))
        plain[name] = value.detach().contiguous().clone()
    _write(out / DECIDER, save(plain, metadata={"format": "pt"}))
    return out / DECIDER


def _state_dict(source: Path, content: Any, drops: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The tensors of what was unpickled but for those that nobody reads. Errors: InputError."""
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{source} holds no dict with class and state_dict; it is not a decider as it is published")
    kind = content.get("class")
    if kind in LATER_CLASSES:
        raise InputError(
            f"{source} holds a {kind} of TaH2, a later machine that is not computed here; use a checkpoint with {CLASS}"
        )
    if kind != CLASS:
        raise InputError(f"{source} holds a decider of class {shown(kind)}; only {CLASS} is supported")
    tensors = {}
    for name, value in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{source}: {shown(name)} of its state_dict is no tensor; it is not a decider as published"
            )
        if drops(name):
            continue
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES.values():
            raise InputError(
                f"{source}: {shown(name)} is {str(value.dtype).removeprefix('torch.')}; convert it to float32, float16 or "
                "bfloat16 where it was trained"
            )
        tensors[name] = value
    return tensors


def _check_free(place: Path, force: bool) -> None:
    """Before anything is opened: whether the file may be written. Errors: InputError."""
    try:
        there, folder = os.path.lexists(place), place.parent
        if there and not force:
            raise InputError(f"{place} exists already; replace it with --force or give another folder with -o")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} exists and is not a folder; give the name of a folder")
    except (OSError, ValueError):  # too long, a NUL
        raise InputError(f"{place.parent} cannot be opened; check the path and its permissions") from None


def _write(place: Path, data: bytes) -> None:
    """Under another name first, on the disk, then under its own. Errors: InputError."""
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(6)}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"{place} cannot be written ({error.strerror}); check the free space and the permissions"
            ) from None
        raise
