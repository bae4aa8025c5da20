"""A checkpoint folder -> specs and tensors, every tensor accounted for."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcot_export.checkpoint.families import Family, find_family, recognise, refuse_foreign, side_files
from latentcot_export.checkpoint.files import open_folder, refuse_pickled, regular_file
from latentcot_export.checkpoint.shapes import EMBEDDING, HEAD, account_for, tensor_shapes
from latentcot_export.checkpoint.weights import list_tensors, load_tensors
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec, SpecError
from latentcot_export.strict_json import read_object

CONFIG = "config.json"
# ModelSpec's shorter names, as config.json spells them.
_CONFIG_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
_LONGEST_REASON = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory.

    `tensors` are the canonical ones, whatever the family publishes: exactly those of `tensor_shapes(model, recurrence)` and
    in its order (a tied `lm_head.weight` is absent), as stored: float32, float16 or bfloat16, on the CPU, mapped from disk
    where the file holds them as they are.
    `config` is config.json as parsed, with the side files of its family as keys of their names. `dtype` is the one that
    most elements have.
    """

    folder: Path
    family: str
    model: ModelSpec
    recurrence: RecurrenceSpec
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    dtype: str


def read_checkpoint(folder: str | os.PathLike[str], family: str | None = None) -> Checkpoint:
    """Read a checkpoint folder; `family` overrides what its config is recognised as.

    Errors: InputError, one sentence, for an unusable folder, config or weight file and for tensors that are missing,
    unexpected, misshapen, not finite or of another dtype. Nothing is unpickled and no code of the folder is run.
    """
    path = open_folder(folder)
    config, handler = read_config(path, family)
    model, recurrence = specs_of(handler, config, str(path / CONFIG))
    layout = handler.published(model, recurrence, config)
    stored = list_tensors(path, handler.weight_files)
    names = layout.names_of(stored, str(path))
    for file in handler.weight_files:  # else the sentence would be one of missing tensors
        if any(name.startswith(f"{file}:") for name in layout.required()) and regular_file(path, file) is None:
            refuse_pickled(path, file)
    shapes = {own: stored[name].shape for name, own in names.items()}
    account_for(shapes, layout.required(), layout.optional(), f"{path}")
    loaded = load_tensors({name: stored[name] for name in names})
    canonical = layout.canonical({own: loaded[name] for name, own in names.items()})
    tensors = required_tensors(canonical, model, recurrence, f"{path}")
    return Checkpoint(path, handler.name, model, recurrence, tensors, config, main_dtype(tensors))


def read_config(folder: Path, family: str | None) -> tuple[dict[str, Any], Family]:
    """config.json of `folder` with its side files, and the family that reads it. Errors: InputError."""
    path = regular_file(folder, CONFIG)
    if path is None:
        raise InputError(f"{folder} has no {CONFIG}; check that this is the checkpoint folder")
    config = read_object(path)
    for name in side_files():
        if name in config:
            raise InputError(f"{path}: {name} is a key, it belongs in a file of its own; move it there")
        side = regular_file(folder, name)
        if side is not None:
            config[name] = read_object(side)
    handler = recognise(config, str(path)) if family is None else find_family(family, str(path))
    return config, handler


def specs_of(handler: Family, config: Mapping[str, Any], where: str) -> tuple[ModelSpec, RecurrenceSpec]:
    """The specs of a parsed config. Errors: InputError that names `where` and config.json's own key."""
    refuse_foreign(handler, config, where)
    try:
        return handler.specs(config, where)
    except SpecError as error:
        reason = str(error).encode("ascii", "backslashreplace").decode()
        reason = re.sub(r"^(model|recurrence|feedback|decider|adapter): ", "", reason)
        reason = re.sub(r"^\w+", lambda match: _CONFIG_NAMES.get(match[0], match[0]), reason)
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:60]}...{reason[60 - _LONGEST_REASON :]}"
        raise InputError(f"{where}: {reason}; fix config.json") from None


def required_tensors(
    tensors: Mapping[str, torch.Tensor], model: ModelSpec, recurrence: RecurrenceSpec, where: str
) -> dict[str, torch.Tensor]:
    """The tensors of `tensor_shapes`, in its order, out of a superset that `account_for` let through.

    Errors: InputError when the model is tied and the stored head is not its embedding.
    """
    if model.tie_word_embeddings and HEAD in tensors:
        head, embedding = tensors[HEAD], tensors[EMBEDDING]
        if head.dtype != embedding.dtype or not torch.equal(head, embedding):
            raise InputError(
                f"{where}: tie_word_embeddings is true but {HEAD} differs from {EMBEDDING}; set it to false to keep "
                f"this head, or remove {HEAD}"
            )
    return {name: tensors[name] for name in tensor_shapes(model, recurrence)}


def main_dtype(tensors: Mapping[str, torch.Tensor]) -> str:
    """The dtype that most elements have: 'float32', 'float16' or 'bfloat16'."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return elements.most_common(1)[0][0]
