"""Which tensors a bundle of packed rows keeps in its dtype, where that is float16 or bfloat16."""

from __future__ import annotations

NARROW = ("float16", "bfloat16")
_PRODUCTS = ("model.", "lm_head.")


def is_narrow(name: str, rank: int) -> bool:
    """Whether a tensor of that name, a checkpoint's or an initializer's of `native_layers.py`, is narrowed.

    The embedding table, the head, and matrices of the layers with their biases are; where they are quantised, their scales.
    Norms, adapters, routers and deciders stay float32: they are small, and decide.
    """
    if not name.startswith(_PRODUCTS) or ".adapter_" in name or ".no_adapter" in name:
        return False
    return rank == 2 or (name.endswith(".bias") and "norm" not in name)
