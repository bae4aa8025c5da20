"""Layers of every `ModelSpec.block`, and the stack of them that a checkpoint calls `model.*`."""

from __future__ import annotations

import torch
from torch import nn

from ..spec import ModelSpec
from .attention import Attention
from .mlp import GatedMLP, PlainMLP
from .norms import hidden_norm


class Layer(nn.Module):
    """Attention and MLP with their norms n1, n2 and residuals; `sandwich` norms what they give, too.

    pre: x += attn(n1(x)); x += mlp(n2(x)). parallel: x + (mlp(n2(x)) + attn(n1(x))).
    sandwich: x += n1b(attn(n1(x))); x += n2b(mlp(n2(x))).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.block = spec.block
        self.input_layernorm = hidden_norm(spec)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = hidden_norm(spec)
        self.mlp = (GatedMLP if spec.mlp == "gated" else PlainMLP)(spec)
        if spec.block == "sandwich":
            self.input_layernorm_2 = hidden_norm(spec)
            self.post_attention_layernorm_2 = hidden_norm(spec)

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x `[B, R, D]` after this layer, and its keys and values; context is what `Attention` needs."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x), *context)
        if self.block == "parallel":
            return x + (self.mlp(self.post_attention_layernorm(x)) + mixed), keys, values
        if self.block == "sandwich":
            x = x + self.input_layernorm_2(mixed)
            return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x))), keys, values
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Stack(nn.Module):
    """Embedding table, layers and final norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = hidden_norm(spec)
