"""Does a bundle hold what a checkpoint holds? Its specs to the letter, its weights to the bit once rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from latentcot_export.bundle import Manifest
from latentcot_export.checkpoint import Checkpoint
from latentcot_export.spec import to_json

from .narrow import kept_dtype
from .quantized import Quantized, in_blocks, nearest, plain_steps, rounded_up
from .report import Gate

# In steps: how far from half a step a quotient in float32 may round to the other neighbour, 255 * 2^-24 and a bit.
_ROUNDING = 1e-4
# Relative: sums of a block's squared errors in another order.
_SUMMING = 1e-4


def rounded(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors as an export like the manifest's stores them: routers stay float32 in every precision.

    Of a quantised bundle, what its matrices were before they were quantised.
    """

    def kept(name: str, rank: int) -> torch.dtype:
        quantised = manifest.quantize != "none" and rank == 2
        return torch.float32 if quantised else kept_dtype(manifest, name, rank)

    return {name: tensor.to(kept(name, tensor.dim())) for name, tensor in checkpoint.tensors.items()}


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


def weights_gate(own: Mapping[str, torch.Tensor | Quantized], wanted: dict[str, torch.Tensor]) -> Gate:
    """Every tensor of the bundle is bit for bit the checkpoint's, rounded; a quantised one as `unlike` demands it.

    Counts tensors; worst is the largest difference of an element in a tensor that fails.
    """
    differing, worst = [], 0.0
    for name, tensor in wanted.items():
        mine = own[name]
        if isinstance(mine, Quantized):
            count, difference = unlike(mine, tensor)
            if count:
                differing.append(f"{name} is not the nearest or not the least clipped in {count} of its blocks")
                worst = max(worst, difference)
            continue
        if mine.dtype == tensor.dtype and torch.equal(mine, tensor):
            continue
        apart = (mine.double() - tensor.double()).abs()
        worst = max(worst, float(apart.nan_to_num(nan=float("inf")).max()))
        differing.append(f"{name} differs in {int((apart != 0).sum())} of {tensor.numel()} elements")
    detail = differing[0] if differing else None
    return Gate("weights", not differing, len(wanted), len(differing), worst, 0.0, detail=detail)


def unlike(mine: Quantized, wanted: torch.Tensor) -> tuple[int, float]:
    """In how many blocks quantised weights are not the matrix `wanted` `[rows, columns]`, and the largest difference there.

    A block is right when every weight lies within half a step of the checkpoint's, or is clipped, which is to say the
    checkpoint's lies beyond the block's last code, and when clipping paid: the block's squared error is no larger than
    that of the plain steps, which reach from its least weight to its largest.
    """
    faults, worst = 0, 0.0
    top = 2**mine.bits - 1
    for start, stop in mine.chunks():
        part = mine[start:stop]
        cut = in_blocks(wanted[start:stop], mine.block)
        codes, zero = part.codes_and_zeros()
        scale = part.scale.float().unsqueeze(-1)
        difference = (codes - zero) * scale - cut
        clipped = ((codes == 0) & (difference > 0)) | ((codes == top) & (difference < 0))
        near = clipped | (difference.abs() <= (0.5 + _ROUNDING) * scale)
        plain_scale, plain_zero = plain_steps(cut, mine.bits)
        plain_scale = rounded_up(plain_scale, mine.scale.dtype)
        plain = (nearest(cut, plain_scale, plain_zero, mine.bits) - plain_zero) * plain_scale - cut
        limit = plain.square().sum(-1) * (1 + _SUMMING)
        wrong = ~near.all(-1) | (difference.square().sum(-1) > limit)
        if bool(wrong.any()):
            faults += int(wrong.sum())
            worst = max(worst, float(difference[wrong].abs().nan_to_num(nan=float("inf")).max()))
    return faults, worst
