"""Which tensors a bundle keeps in its dtype, where that is float16 or bfloat16."""

from __future__ import annotations

import torch

from latentcot_export.bundle import Manifest
from latentcot_export.bundle.manifest import POOLED

_PRODUCTS = ("model.", "lm_head.")


def is_narrow(name: str, rank: int) -> bool:
    """Whether a tensor of that name, a checkpoint's or an initializer's of `native_layers.py`, is narrowed.

    The embedding table, the head, and matrices of the layers with their biases are; where they are quantised, their scales.
    Norms, adapters, routers and deciders stay float32: they are small, and decide.
    """
    if not name.startswith(_PRODUCTS) or ".adapter_" in name or ".no_adapter" in name:
        return False
    return rank == 2 or (name.endswith(".bias") and "norm" not in name)


def kept_dtype(manifest: Manifest, name: str, rank: int) -> torch.dtype:
    """What a bundle like the manifest's stores a checkpoint's tensor in; of a quantised matrix, its scales."""
    packed = manifest.target in POOLED
    narrow = is_narrow(name, rank) if packed else not name.startswith("router.")
    kept: torch.dtype = getattr(torch, manifest.dtype)
    return kept if narrow else torch.float32
