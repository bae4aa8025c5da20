"""Does a bundle hold what a checkpoint holds? Its specs to the letter, its weights to the bit once rounded."""

from __future__ import annotations

import torch

from latentcot_export.bundle import Manifest
from latentcot_export.checkpoint import Checkpoint
from latentcot_export.spec import to_json

from .report import Gate


def rounded(checkpoint: Checkpoint, dtype: str) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors as an export in `dtype` stores them: routers stay float32 in every precision."""
    kept: torch.dtype = getattr(torch, dtype)
    return {
        name: tensor.to(torch.float32 if name.startswith("router.") else kept)
        for name, tensor in checkpoint.tensors.items()
    }


def config_gate(manifest: Manifest, checkpoint: Checkpoint) -> Gate:
    """Every field of model and recurrence equals the checkpoint's; counts fields."""
    differing, fields = [], 0
    for kind in ("model", "recurrence"):
        ours, theirs = to_json(getattr(manifest, kind)), to_json(getattr(checkpoint, kind))
        for name in sorted({*ours, *theirs}):
            fields += 1
            if ours.get(name) != theirs.get(name):
                differing.append(f"{kind}.{name} is {ours.get(name)} and the checkpoint's {theirs.get(name)}")
    detail = differing[0] if differing else None
    return Gate("config", not differing, fields, len(differing), float(len(differing)), 0.0, detail=detail)


def weights_gate(own: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> Gate:
    """Every tensor of the bundle is bit for bit the checkpoint's, rounded; counts tensors, worst is a difference."""
    differing, worst = [], 0.0
    for name, tensor in wanted.items():
        mine = own[name]
        if mine.dtype == tensor.dtype and torch.equal(mine, tensor):
            continue
        difference = (mine.double() - tensor.double()).abs()
        worst = max(worst, float(difference.nan_to_num(nan=float("inf")).max()))
        differing.append(f"{name} differs in {int((difference != 0).sum())} of {tensor.numel()} elements")
    detail = differing[0] if differing else None
    return Gate("weights", not differing, len(wanted), len(differing), worst, 0.0, detail=detail)
