"""What a bundle or a checkpoint is and holds, as a report: recurrence, sizes, cache, graph, files.

A bundle is inspected with the core dependencies alone; its operators need onnx, and a checkpoint needs the `export`
extra. Nothing of the folder is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError
from latentcot_export.inspection.bundle import bundle_report, summary
from latentcot_export.inspection.report import text_of
from latentcot_export.strict_json import shown

MANIFEST = "latentcot.json"


def inspect(
    folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None, family: str | None = None
) -> dict[str, Any]:
    """The report of a folder: a bundle when it has `latentcot.json`, else a checkpoint. Plain JSON values.

    Everything is verified as if it were to be used: hashes of a bundle, every tensor of a checkpoint. `progress` gets
    (bytes hashed, bytes in all); `family` overrides what a checkpoint is recognised as. Errors: InputError;
    ModuleNotFoundError for a checkpoint without the `export` extra.
    """
    path = Path(folder)
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist; give the folder of a bundle or of a checkpoint")
        is_bundle = os.path.lexists(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(str(path), 300)} cannot be opened ({error}); correct its name") from None
    if is_bundle and family is not None:
        raise InputError(f"{path} is a bundle, whose family is settled; leave --family out")
    if is_bundle:
        return bundle_report(open_bundle(path, progress))
    if path.is_dir() and not os.path.lexists(path / "config.json"):
        raise InputError(
            f"{path} is neither a bundle nor a checkpoint, it has no {MANIFEST} and no config.json; "
            "give the folder of one of them"
        )
    from latentcot_export.inspection.checkpoint import checkpoint_report  # imports torch

    return checkpoint_report(path, progress, family)


__all__ = ["inspect", "summary", "text_of"]
