"""Low-rank additions to linears (LoRA, arXiv 2106.09685), on from step 2 as in Think-at-Hard (arXiv 2511.08577)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import AdapterSpec


class Switch:
    """Which rows of the pass that runs have their adapters on: `rows` bool `[B, R, 1]`, set before the layers run."""

    rows: torch.Tensor


class AdaptedLinear(nn.Linear):
    """y = W x + b, and + B (A x) for the rows that the switch names; scaling is part of B."""

    def __init__(self, base: nn.Linear, rank: int, switch: Switch) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.adapter_in = nn.Linear(base.in_features, rank, bias=False)
        self.adapter_out = nn.Linear(rank, base.out_features, bias=False)
        self.switch = switch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, R, out]` of x `[B, R, in]`."""
        narrow = torch.where(self.switch.rows, F.linear(x, self.adapter_in.weight), 0)
        return super().forward(x) + F.linear(narrow, self.adapter_out.weight)


def adapt(layers: nn.ModuleList, spec: AdapterSpec, switch: Switch) -> None:
    """Puts adapters on the linears that the spec names, in every layer; a name that a layer lacks is passed over."""
    for layer in layers:
        linears = dict(layer.named_modules())
        for name in spec.modules:
            parent, _, child = name.rpartition(".")
            base = linears.get(name)
            if isinstance(base, nn.Linear):
                setattr(linears[parent], child, AdaptedLinear(base, spec.rank, switch))
