"""Writing a checkpoint folder so that it is there complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from latentcot_export.checkpoint.families import recognise, side_files
from latentcot_export.checkpoint.layout import tied_head
from latentcot_export.checkpoint.read import CONFIG, required_tensors, specs_of
from latentcot_export.checkpoint.shapes import account_for, tensor_shapes
from latentcot_export.checkpoint.weights import DTYPES, INDEX, WEIGHTS, check_finite
from latentcot_export.errors import InputError
from latentcot_export.strict_json import parse_object, shown


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    extra_files: Mapping[str, bytes] | None = None,
    force: bool = False,
) -> Path:
    """Write config.json, one model.safetensors and `extra_files` {plain name: bytes}; returns the folder.

    `tensors` are canonical and laid out as the config's family publishes them; keys of `config` that are side files of a
    family become files. What `read_checkpoint` would refuse is refused here, before anything is written. The folder is
    made beside its place and renamed into it; on any error, a full disk included, what was there before is untouched.
    Errors: InputError; an existing folder needs `force`, and only a checkpoint or an empty folder is ever replaced.
    """
    out = Path(folder)
    texts = _checked_config(out, config)
    stored = _checked_tensors(out, config, tensors)
    extras = dict(extra_files or {})
    for name in extras:
        taken = name in (CONFIG, WEIGHTS, INDEX, *texts, *stored)
        if taken or Path(name).name != name or name in ("", ".", "..") or "\0" in name:
            raise InputError(f"{out}: {shown(name)} cannot be the name of an extra file; give another plain name")
    with _complete_folder(out, force) as temporary:
        for name, data in {**texts, **extras}.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(data)
        for name, part in stored.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            save_file(part, temporary / name, metadata={"format": "pt"})
            (temporary / name).chmod((temporary / CONFIG).stat().st_mode & 0o777)  # save_file ignores the umask
    return out


def _checked_config(out: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """{file: its JSON} of config.json and the side files that are keys of `config`."""
    parts = {name: config[name] for name in side_files() if name in config}
    parts = {CONFIG: {name: value for name, value in config.items() if name not in parts}, **parts}
    texts: dict[str, bytes] = {}
    for name, part in parts.items():
        try:
            texts[name] = json.dumps(part, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{out / name} cannot be written as JSON: {error}; give plain finite values") from None
        parse_object(texts[name], str(out / name))
    return texts


def _checked_tensors(
    out: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """{file: {published name: tensor}} that save_file takes."""
    where = str(out / CONFIG)
    family = recognise(config, where)
    model, recurrence = specs_of(family, config, where)
    layout = family.published(model, recurrence, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    optional = layout.optional() | {stored.makes[0]: stored.shape for stored in tied_head(model)}
    account_for(shapes, tensor_shapes(model, recurrence), optional, str(out))
    canonical = required_tensors(tensors, model, recurrence, str(out))
    for name, tensor in canonical.items():
        if tensor.dtype not in DTYPES.values():
            raise InputError(f"{out}: {name} is {tensor.dtype}; convert it to float32, float16 or bfloat16")
        check_finite(name, tensor.detach(), str(out))
    stored: dict[str, dict[str, torch.Tensor]] = {WEIGHTS: {}, **{name: {} for name in family.weight_files}}
    seen: set[int] = set()
    for name, tensor in layout.published(canonical).items():
        plain = tensor.detach().cpu().contiguous()
        # save_file refuses tensors that share memory, views into a larger buffer included
        if plain.data_ptr() in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.data_ptr())
        file, _, inside = name.rpartition(":")
        stored[file or WEIGHTS][inside] = plain
    return {name: part for name, part in stored.items() if part}


@contextmanager
def _complete_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its place when the block ends well, and vanishes otherwise."""
    _check_replaceable(out, force)
    place = Path(os.path.abspath(out))  # gives "." and "a/.." a name that can be renamed to
    temporary = place.with_name(f".{place.name[:100]}.{secrets.token_hex(6)}.part")
    made: list[Path] = []
    try:
        for ancestor in reversed(place.parents):
            if not ancestor.exists():
                ancestor.mkdir()
                made.append(ancestor)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        _move_into_place(temporary, place, force)
        _sync(place.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in reversed(made):
            with suppress(OSError):  # something else has been put there meanwhile
                path.rmdir()
        if isinstance(error, OSError | SafetensorError):
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"{out} cannot be written ({reason}); check the free space and the permissions") from None
        raise


def _check_replaceable(out: Path, force: bool) -> None:
    try:
        if "\0" in str(out):
            raise ValueError("a NUL ends every path early")
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise InputError(f"{out} exists and is not a folder; give the name of a folder")
        if not out.exists():
            return
        empty = next(out.iterdir(), None) is None
        checkpoint = (out / CONFIG).is_file() and ((out / WEIGHTS).is_file() or (out / INDEX).is_file())
    except (OSError, ValueError):
        raise InputError(f"{out} cannot be opened; check the path and its permissions") from None
    if not force:
        raise InputError(f"{out} exists already; give another folder or replace it with --force")
    if not empty and not checkpoint:
        raise InputError(f"{out} holds something else than a checkpoint and is not replaced; give another folder")


def _move_into_place(temporary: Path, place: Path, force: bool) -> None:
    """Rename into `place`; with `force` what is there is kept until the new folder has taken its name."""
    if not (force and place.exists()):
        temporary.rename(place)  # fails when a non-empty folder has appeared meanwhile
        return
    old = temporary.with_suffix(".old")
    place.rename(old)
    try:
        temporary.rename(place)
    except BaseException:
        old.rename(place)
        raise
    with suppress(OSError):
        old.chmod(0o700)  # a read-only folder may be renamed but not emptied
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
