"""safetensors files of a checkpoint: their headers first, so that nothing large is read before it is accounted for.

The format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from latentcot_export.checkpoint.files import no_weights, regular_file
from latentcot_export.errors import InputError
from latentcot_export.strict_json import parse_object, read_object, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# 1024 layers of 12 tensors at 150 bytes each are under 2 MiB.
MAX_HEADER_BYTES = 16 << 20
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Elements looked at together when searching for NaN: bounds the temporary masks to a few MiB.
_FINITE_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor as a header describes it: `dtype` in safetensors' spelling, data bytes `begin` to `end`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def list_tensors(folder: Path, further: Sequence[str] = ()) -> dict[str, Entry]:
    """Every tensor of the checkpoint's weight file or shards, by name, from the headers alone.

    `model.safetensors` wins over an index, as in `transformers`. Of `further` safetensors files, where they are there,
    tensors are named `file:name`. Errors: InputError for pickles, Git LFS pointers, truncated or misshapen files, and an
    index that disagrees with its shards or names a file outside the folder.
    """
    found = _main_tensors(folder)
    for name in further:
        path = regular_file(folder, name)
        if path is not None:
            found |= {f"{name}:{tensor}": entry for tensor, entry in read_header(path).items()}
    return found


def _main_tensors(folder: Path) -> dict[str, Entry]:
    single = regular_file(folder, WEIGHTS)
    if single is not None:
        return read_header(single)
    index = regular_file(folder, INDEX)
    if index is None:
        raise no_weights(folder)
    weight_map = _weight_map(index)
    found: dict[str, Entry] = {}
    for name in sorted(set(weight_map.values())):
        shard = regular_file(folder, name)
        if shard is None:
            raise InputError(f"{index} names the shard {name}, which is not there; complete the download")
        for tensor, entry in read_header(shard).items():
            if weight_map.get(tensor) != name:
                raise InputError(
                    f"{shard} holds {shown(tensor)}, which {INDEX} does not place there; save the checkpoint again"
                )
            found[tensor] = entry
    absent = sorted(set(weight_map) - set(found))
    if absent:
        raise InputError(
            f"{index} places {shown(absent[0])} in {weight_map[absent[0]]}, which does not hold it; "
            "save the checkpoint again"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map object with file names; save the checkpoint again")
    for tensor, name in weight_map.items():
        # A bare name cannot leave the folder; separators, drive letters, dots alone and control characters could.
        plain = isinstance(name, str) and name.isprintable() and not set(name) & set('/\\:"')
        if not plain or not name.endswith(".safetensors") or name.startswith(".") or len(name.encode()) > 255:
            raise InputError(
                f"{index} places {shown(tensor)} in {shown(name)}, which is not the plain name of a .safetensors "
                "file in that folder; save the checkpoint again"
            )
    return weight_map


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, without reading their data. Errors: InputError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            header = file.read(length) if length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from None
    if prefix == b"version ":
        raise InputError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`")
    if len(prefix) < 8 or (length <= MAX_HEADER_BYTES and len(header) < length):
        raise _broken(path, f"it ends after {size} bytes, inside its header")
    if length > MAX_HEADER_BYTES:
        raise _broken(path, f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    raw = parse_object(header, f"the header of {path}")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is not a map of strings")
    entries = {name: _entry(path, name, value) for name, value in raw.items()}
    _check_layout(path, entries, size - 8 - length)
    return entries


def _entry(path: Path, name: str, value: Any) -> Entry:
    def counts(items: Any) -> bool:
        return isinstance(items, list) and all(type(item) is int and item >= 0 for item in items)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"the header entry of {shown(name)} lacks or exceeds dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not counts(shape) or not counts(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise _broken(path, f"the header entry of {shown(name)} is misshapen")
    begin, end = offsets
    if begin > end:
        raise _broken(path, f"the data of {shown(name)} ends before it begins")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise _broken(path, f"{shown(name)} is {dtype} {shown(shape)} but has {end - begin} bytes of data")
    return Entry(path, name, dtype, tuple(shape), begin, end)


def _check_layout(path: Path, entries: Mapping[str, Entry], data_bytes: int) -> None:
    """The data must be covered without holes or overlaps, or one tensor could alias another or hide bytes."""
    ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    if ordered and ordered[0][1].begin != 0:
        raise _broken(path, f"the data of {shown(ordered[0][0])} does not start at 0")
    for (name, entry), (after, following) in itertools.pairwise(ordered):
        if entry.end != following.begin:
            raise _broken(path, f"the data of {shown(name)} and {shown(after)} overlap or leave a hole")
    end = ordered[-1][1].end if ordered else 0
    if end > data_bytes:
        raise _broken(path, f"it is truncated: the header describes {end} bytes of data, {data_bytes} are there")
    if end < data_bytes:
        raise _broken(path, f"{data_bytes - end} bytes follow the last tensor")


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a whole safetensors file: {reason}; download or save it again")


def load_tensors(entries: Mapping[str, Entry]) -> dict[str, torch.Tensor]:
    """Map the tensors' data from disk, in the entries' order, private to this process and lazily read.

    Errors: InputError when a dtype is not F32, F16 or BF16, when the library refuses a file, or when a value is NaN
    or infinite (the tensor is named).
    """
    for name, entry in entries.items():
        if entry.dtype not in DTYPES:
            raise InputError(
                f"{entry.file}: {shown(name)} is {shown(entry.dtype)}, only F32, F16 and BF16 are read; "
                "save the checkpoint in one of these"
            )
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted({entry.file for entry in entries.values()}):
        try:
            with safe_open(path, framework="pt") as file:
                for name in (name for name, entry in entries.items() if entry.file == path):
                    tensors[name] = file.get_tensor(entries[name].name)
        except (SafetensorError, OSError) as error:
            raise _broken(path, shown(str(error), 200)) from None
    for name, entry in entries.items():
        check_finite(name, tensors[name], str(entry.file))
    return {name: tensors[name] for name in entries}


def check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    """Refuse NaN and infinity: they would spread to every logit. Errors: InputError naming the tensor and index."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _FINITE_CHUNK):
        finite = torch.isfinite(flat[start : start + _FINITE_CHUNK])
        if not bool(finite.all()):
            first = start + int((~finite).nonzero()[0, 0])
            raise InputError(
                f"{where}: {shown(name)} holds {float(flat[first])} at flat index {first}; "
                "this checkpoint is damaged or diverged, use an earlier or a fresh copy"
            )
