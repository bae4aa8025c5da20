"""Small checkpoints for tests, and ways to spoil them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from latentcot_export.checkpoint import Checkpoint, write_random_checkpoint
from latentcot_export.spec import ModelSpec, RecurrenceSpec

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
MODEL = ModelSpec(**SIZES)
TIED = ModelSpec(**SIZES, tie_word_embeddings=True)
RECURRENCE = RecurrenceSpec(max_latents=3)
STOCK = RecurrenceSpec(max_latents=0)


def adaptive(folder: Path, model: ModelSpec = MODEL, recurrence: RecurrenceSpec = RECURRENCE) -> Checkpoint:
    return write_random_checkpoint(folder, model, recurrence)


def stock(folder: Path, model: ModelSpec = MODEL, **options: Any) -> Checkpoint:
    return write_random_checkpoint(folder, model, STOCK, family="llama", **options)


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor] | None = None, drop: tuple[str, ...] = ()) -> None:
    """Replace or add the tensors of `changes`, leave out those of `drop`."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **(changes or {})}
    save_file({name: value for name, value in tensors.items() if name not in drop}, path)


def shard(folder: Path, **index: Any) -> dict[str, str]:
    """Split model.safetensors in two with an index, whose keys `index` replaces; returns the weight map."""
    whole = folder / "model.safetensors"
    names = sorted(load_file(whole))
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: load_file(whole)[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    whole.unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map, **index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )
