"""The router that reads the hidden states of several layers and the largest logits (Think-at-Hard, arXiv 2511.08577).

Its equation is that of DeciderSpec; everything is float32 or better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import DeciderSpec


class Block(nn.Module):
    """change(x) + out(gelu(in(norm(x)))), change being the identity between equal widths."""

    def __init__(self, width: int, following: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.add_module("in", nn.Linear(width, expansion * width))
        self.out = nn.Linear(expansion * width, following)
        self.change = nn.Linear(width, following) if width != following else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., following]` of x `[..., width]`."""
        return self.change(x) + self.out(F.gelu(self.get_submodule("in")(self.norm(x))))


class Decider(nn.Module):
    """Logits of going on for rows."""

    def __init__(self, hidden_size: int, spec: DeciderSpec) -> None:
        super().__init__()
        self.spec = spec
        wide = len(spec.layers) * hidden_size
        if spec.normalize:
            self.states_norm = nn.LayerNorm(wide)
        self.logits_in = nn.Linear(spec.top_k, hidden_size)
        self.combined = nn.Linear(wide + hidden_size, spec.widths[0])
        self.input = nn.Linear(spec.widths[0], spec.widths[0])
        following = (*spec.widths[1:], spec.widths[-1])
        self.blocks = nn.ModuleList(
            Block(width, after, spec.expansion) for width, after in zip(spec.widths, following, strict=True)
        )
        self.norm = nn.LayerNorm(spec.widths[-1])
        self.out = nn.Linear(spec.widths[-1], 1)

    def forward(self, states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`[..., 1]` of the layers' states side by side `[..., layers * D]` and all logits `[..., V]`."""
        largest = logits.topk(self.spec.top_k, dim=-1).values
        if self.spec.normalize:
            states, largest = self.states_norm(states), torch.softmax(largest, dim=-1)
        x = self.input(self.combined(torch.cat((states, self.logits_in(largest)), dim=-1)))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))
