"""Grouped-query attention of rows over a memory of entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import ModelSpec
from .norms import head_norm
from .rope import rotate


class Attention(nn.Module):
    """Grouped-query attention of rows over memory entries that the caller says are visible.

    Queries and keys of every head are normed where the spec says so, then turned by RoPE; scale head_dim^-1/2.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        wide, narrow = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, wide, bias=spec.attention_bias)
        self.k_proj = nn.Linear(spec.hidden_size, narrow, bias=spec.attention_bias)
        self.v_proj = nn.Linear(spec.hidden_size, narrow, bias=spec.attention_bias)
        self.o_proj = nn.Linear(wide, spec.hidden_size, bias=spec.attention_bias)
        self.q_norm, self.k_norm = head_norm(spec), head_norm(spec)

    def forward(
        self,
        x: torch.Tensor,  # [B, R, D]
        cos: torch.Tensor,  # [B, 1, R, rotary_dim / 2]
        sin: torch.Tensor,
        keys: torch.Tensor,  # [B, kv heads, E, head_dim], entries before these rows
        values: torch.Tensor,
        bias: torch.Tensor,  # [B, 1, R, E + R]: added to the scores, -inf where a row may not look
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output `[B, R, D]`, and keys and values with this call's R entries appended."""
        batch, rows, _ = x.shape
        heads = lambda y, count: y.view(batch, rows, count, self.spec.head_dim).transpose(1, 2)  # noqa: E731
        query = rotate(self.q_norm(heads(self.q_proj(x), self.spec.num_heads)), cos, sin)
        key = rotate(self.k_norm(heads(self.k_proj(x), self.spec.num_kv_heads)), cos, sin)
        value = heads(self.v_proj(x), self.spec.num_kv_heads)
        keys = torch.cat((keys, key.to(keys.dtype)), dim=2)
        values = torch.cat((values, value.to(values.dtype)), dim=2)
        mixed = F.scaled_dot_product_attention(
            query.to(keys.dtype),
            keys,
            values,
            attn_mask=bias.to(keys.dtype),
            enable_gqa=self.spec.num_heads != self.spec.num_kv_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1)), keys, values
