"""What the rows of earlier passes left behind for later ones to read."""

from __future__ import annotations

import dataclasses

import torch

from ..spec import ModelSpec


@dataclasses.dataclass
class Memory:
    """Keys and values `[B, kv heads, E, head_dim]` per layer of E entries, and who wrote each: position, step `[B, E]`.

    An entry of step 0 is padding that nobody reads. log_weight `[B, E]` is added to every score of an entry.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    position: torch.Tensor
    step: torch.Tensor
    log_weight: torch.Tensor

    @classmethod
    def empty(cls, spec: ModelSpec, batch: int, like: torch.Tensor) -> Memory:
        """A memory without entries, in the dtype and on the device of `like`."""
        nothing = like.new_zeros(batch, spec.num_kv_heads, 0, spec.head_dim)
        nobody = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        layers = range(spec.num_layers)
        return cls([nothing for _ in layers], [nothing for _ in layers], nobody, nobody, like.new_zeros(batch, 0))
