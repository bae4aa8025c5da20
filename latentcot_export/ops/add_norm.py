"""AddNorm: a residual added, and the RMS norm of the sum.

Contract
    In: x and residual float32 `[r, D]`, weight float32 `[D]`, D >= 1. Attribute: epsilon, finite and >= 0. Out: normed and
    total float32 `[r, D]`: total = x + residual, normed = total / sqrt(mean(total^2) + epsilon) * weight (arXiv 1910.07467,
    equation 4, with epsilon). On a GPU x and normed, which stand between two products, may both be float16 or bfloat16.
    Sums are formed in an order that depends on D alone, so the bits of a row do not depend on the rows beside it.
"""

from __future__ import annotations

import torch


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the contract; normed and total, in the dtype of the sum, which may be float64."""
    total = x + residual
    return total * torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon) * weight, total
