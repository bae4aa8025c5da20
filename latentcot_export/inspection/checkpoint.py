"""The report of a checkpoint: which family it was taken for, which config keys counted, every tensor, every file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from latentcot_export.checkpoint import read_checkpoint, special_tokens, tokenizer_files
from latentcot_export.checkpoint.families import find_family
from latentcot_export.checkpoint.read import CONFIG, specs_of
from latentcot_export.checkpoint.weights import DTYPES, INDEX, WEIGHTS, list_tensors
from latentcot_export.errors import InputError
from latentcot_export.spec import to_json
from latentcot_export.spec.words import backbone_words, parameters, recurrence_words

SCHEMA_VERSION = 1
_CHUNK = 1 << 20
_NAMES = {code: str(dtype).removeprefix("torch.") for code, dtype in DTYPES.items()}


class _Recording(Mapping[str, Any]):
    """A config that remembers which of its keys somebody asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._config[key]
        self.read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def checkpoint_report(
    folder: Path, progress: Callable[[int, int], None] | None = None, family: str | None = None
) -> dict[str, Any]:
    """Facts of a checkpoint that `read_checkpoint` accepts.

    `config_keys` says which keys of config.json were read and which mean nothing here. `files` has the sha256 of those
    that an export reads, None for others. `progress` gets (bytes hashed, bytes in all). Errors: InputError.
    """
    checkpoint = read_checkpoint(folder, family)
    config = _Recording(checkpoint.config)
    handler = find_family(checkpoint.family, str(folder))
    model, recurrence = specs_of(handler, config, str(folder / CONFIG))
    layout = handler.published(model, recurrence, config)
    used_names = {stored.name for stored in layout.stored if set(stored.makes) & set(checkpoint.tensors)}
    tokens = special_tokens(dataclasses.replace(checkpoint, config=config))  # type: ignore[arg-type]
    config.read.add("model_type")
    entries = list_tensors(folder, handler.weight_files)
    names = layout.names_of(entries, str(folder))
    elements: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        elements[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    used = {
        CONFIG,
        *(entry.file.relative_to(folder).as_posix() for entry in entries.values()),
        *tokenizer_files(folder),
    }
    used |= {name for name in handler.side_files if name in checkpoint.config}
    if WEIGHTS not in used:
        used.add(INDEX)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "checkpoint",
        "name": str(folder),
        "family": checkpoint.family,
        "dtype": checkpoint.dtype,
        "recurrence_words": recurrence_words(checkpoint.recurrence),
        "backbone_words": backbone_words(checkpoint.model),
        "recurrence": to_json(checkpoint.recurrence) | {"max_steps": checkpoint.recurrence.max_steps},
        "model": to_json(checkpoint.model),
        "parameters": parameters(checkpoint.model, checkpoint.recurrence),
        "elements_by_dtype": dict(elements.most_common()),
        "tokens": {"eos_token_ids": list(tokens.eos_token_ids), "bos_token_id": tokens.bos_token_id},
        "config_keys": {
            "read": sorted(set(checkpoint.config) & config.read),
            "not_read": sorted(set(checkpoint.config) - config.read),
        },
        "tensors": [
            {
                "name": name,
                "dtype": _NAMES.get(entry.dtype, entry.dtype),
                "axes": list(entry.shape),
                "bytes": entry.end - entry.begin,
                "used": names.get(name) in used_names,
            }
            for name, entry in entries.items()
        ],
        "files": _files(folder, used, progress),
    }


def _files(folder: Path, used: set[str], progress: Callable[[int, int], None] | None) -> dict[str, dict[str, Any]]:
    """{name: size and sha256} of the regular files directly in the folder, and of those used in folders of it."""
    try:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
        found |= {name: (folder / name).stat().st_size for name in used if "/" in name}
        done, total = 0, sum(size for name, size in found.items() if name in used)
        files: dict[str, dict[str, Any]] = {}
        for name, size in sorted(found.items()):
            files[name] = {"size": size, "sha256": None}
            if name not in used:
                continue
            digest = hashlib.sha256()
            with open(folder / name, "rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total)
            files[name]["sha256"] = digest.hexdigest()
    except BrokenPipeError:  # from a progress bar, not from a file
        raise
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its files and permissions") from None
    return files
