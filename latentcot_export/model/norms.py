"""The norms of a layer stack: over the hidden dimension, or over one head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import ModelSpec


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x `[..., size]`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, variance biased (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x `[..., size]`."""
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def hidden_norm(spec: ModelSpec) -> nn.Module:
    """The norm that a spec's layers have before or after their parts: `[..., D]` to the same."""
    kind = RMSNorm if spec.norm == "rms" else LayerNorm
    return kind(spec.hidden_size, spec.rms_norm_eps)


def head_norm(spec: ModelSpec) -> nn.Module:
    """What a query or key head `[..., head_dim]` passes before RoPE: an RMS norm with `qk_norm`, else nothing."""
    return RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.qk_norm else nn.Identity()
