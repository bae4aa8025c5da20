"""Checkpoints of any specs, whether or not a family has a way to write them down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentcot_export.checkpoint import Checkpoint, random_tensors
from latentcot_export.spec import ModelSpec, RecurrenceSpec


@contextlib.contextmanager
def in_memory(folder: Path, model: ModelSpec, recurrence: RecurrenceSpec, seed: int) -> Iterator[Path]:
    """What `export` and `validate` read meanwhile, from wherever they read: random float32 tensors that no file holds.

    Gives a folder to name to them. Published layouts are for tests/checkpoint to read and write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    made = Checkpoint(
        folder, "made_by_a_test", model, recurrence, random_tensors(model, recurrence, seed), {}, "float32"
    )
    with pytest.MonkeyPatch.context() as patch:
        for reader in ("latentcot_export.export", "latentcot_export.validate.run"):
            patch.setattr(f"{reader}.read_checkpoint", lambda *_: made)
        yield folder
