"""A checkpoint of real weights whose tokens halt at different depths: a random router, set so that shares come out."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from latentcot_export.checkpoint.files import companion_files
from latentcot_export.checkpoint.read import Checkpoint, read_checkpoint
from latentcot_export.checkpoint.shapes import router_shapes
from latentcot_export.checkpoint.write import write_checkpoint
from latentcot_export.model import LatentCoT, step_major

TAU = 0.05
# The gate's logit varies this much over tokens, so that few decisions are close; as in checkpoint/random.py.
SPREAD = 8.0
# Share of the tokens that arrive at a step and halt there: 2.1 steps in the mean.
HALTING = (0.45, 0.45, 0.4, 0.35, 0.3)
# The first positions of a text have states far from all others.
FIRST = 4


def make_ragged(adaptive: Path, out: Path, text_ids: list[int], sequences: int = 6, length: int = 128) -> list[int]:
    """Writes `out`, a checkpoint like `adaptive` with one linear router per step; tokens per depth on the text.

    Each router is a random direction, scaled to SPREAD and shifted so that HALTING of the tokens that get there halt.
    `adaptive` was made by `latentcot init --max-latents 5 --router-per-step`, or as that would.
    """
    base = read_checkpoint(adaptive)
    starts = [i * (len(text_ids) - length) // sequences for i in range(sequences)]
    tokens = torch.tensor([text_ids[start : start + length] for start in starts])
    generator = torch.Generator().manual_seed(7)
    tensors = {name: x.float() for name, x in base.tensors.items()}
    names = list(router_shapes(base.model, base.recurrence))
    for weight in (name for name in names if name.endswith(".weight")):
        tensors[weight] = torch.randn(tensors[weight].shape, generator=generator)
    with torch.inference_mode():
        for step, share in enumerate(HALTING):
            # steps before have their routers by now; this one's input is what they let through
            forced = torch.zeros_like(tokens) if step else torch.full_like(tokens, 1)
            found = step_major(_model(base, tensors), tokens, forced, keep_steps=True).steps[step]
            kept = found.valid & (found.index >= FIRST)
            weight, bias = f"router.{step}.weight", f"router.{step}.bias"
            logits = found.z[kept].float() @ tensors[weight][0]
            tensors[weight] *= SPREAD / logits.std()
            logits *= SPREAD / logits.std()
            tensors[bias] = math.log(TAU / (1 - TAU)) - torch.quantile(logits, share)[None]
        depths = step_major(_model(base, tensors), tokens).depths
    stored = base.tensors | {name: tensors[name].contiguous() for name in names}
    extras = {name: path.read_bytes() for name, path in companion_files(base.folder).items()}
    write_checkpoint(out, base.config, stored, extras, True)
    return torch.bincount(depths.flatten(), minlength=len(HALTING) + 2)[1:].tolist()


def _model(base: Checkpoint, tensors: dict[str, torch.Tensor]) -> LatentCoT:
    return LatentCoT.from_tensors(base.model, base.recurrence, tensors, torch.float32)
