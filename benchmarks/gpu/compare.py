"""Whether what a kernel gave is what its reference gave, and by how much it is not."""

from __future__ import annotations

import torch

from latentcot_export.errors import CheckFailed, LatentCoTError

# Most of |found - wanted| / |wanted| over a whole tensor. The reference computes in float64 from the same inputs, so
# what is allowed is the rounding of the result (2^-9 for bfloat16, 2^-12 for float16, half a unit each), of weights where
# tensor cores take them rounded, and for float32 the order of a sum of some thousand products.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
POISON = 0xFB  # as bytes: a NaN in every float, a negative integer


def said(error: Exception) -> str:
    """One line of what an error says, with its kind where it is none of ours."""
    words = (str(error).strip().splitlines() or [""])[0][:300]
    return words if words and isinstance(error, LatentCoTError) else f"{type(error).__name__}: {words}".rstrip(": ")


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, holding bytes that are no result."""
    if tensor.dtype == torch.bool:
        return tensor
    tensor.view(torch.uint8).fill_(POISON) if tensor.dim() else tensor.fill_(-POISON)
    return tensor


def same(found: torch.Tensor, wanted: torch.Tensor, words: str) -> None:
    """Errors: CheckFailed at the first element that is another, which NaN is too."""
    found = found.cpu()
    if torch.equal(found, wanted):
        return
    at = torch.nonzero(found != wanted)
    where = at[0].tolist() if len(at) else []
    first = (found[tuple(where)], wanted[tuple(where)])
    raise CheckFailed(f"{words}: {first[0]} at {where}, the reference has {first[1]} ({len(at)} differ)")


def close(found: torch.Tensor, wanted: torch.Tensor, words: str, tolerance: float | None = None) -> float:
    """The relative distance, of the whole. Errors: CheckFailed where it is too much or there is a NaN."""
    limit = TOLERANCES[found.dtype] if tolerance is None else tolerance
    found, wanted = found.cpu().double(), wanted.double()
    distance = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30)) if wanted.numel() else 0.0
    if not distance <= limit:
        raise CheckFailed(f"{words}: {distance:.2e} away from the reference, {limit:.0e} is allowed")
    return distance
