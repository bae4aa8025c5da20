"""A Llama layer stack that runs packed rows over a growing memory, written to be the specification.

A row is one (sequence, token position t, step k). It reads exactly the memory entries (t_j, k_j) of its sequence with
t_j <= t and k_j <= k (the `duo` rule of arXiv 2602.08220); at `max_latents` 0 this is a stock causal Llama.
Parameter names are those of a Hugging Face checkpoint, so a state dict loads without renaming.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import ModelSpec, RecurrenceSpec
from .rope import rope_angles, rope_frequencies, rotate
from .router import build_router, gate


@dataclasses.dataclass
class Memory:
    """Keys and values `[B, kv heads, E, head_dim]` per layer of E entries, and who wrote each: position, step `[B, E]`.

    An entry of step 0 is padding that nobody reads.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    position: torch.Tensor
    step: torch.Tensor

    @classmethod
    def empty(cls, spec: ModelSpec, batch: int, like: torch.Tensor) -> Memory:
        """A memory without entries, in the dtype and on the device of `like`."""
        nothing = like.new_zeros(batch, spec.num_kv_heads, 0, spec.head_dim)
        nobody = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        layers = range(spec.num_layers)
        return cls([nothing for _ in layers], [nothing for _ in layers], nobody, nobody)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x `[..., size]`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention of rows over memory entries that the caller says are visible."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        wide, narrow = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, wide, bias=spec.attention_bias)
        self.k_proj = nn.Linear(spec.hidden_size, narrow, bias=spec.attention_bias)
        self.v_proj = nn.Linear(spec.hidden_size, narrow, bias=spec.attention_bias)
        self.o_proj = nn.Linear(wide, spec.hidden_size, bias=spec.attention_bias)

    def forward(
        self,
        x: torch.Tensor,  # [B, R, D]
        cos: torch.Tensor,  # [B, 1, R, head_dim / 2]
        sin: torch.Tensor,
        keys: torch.Tensor,  # [B, kv heads, E, head_dim], entries before these rows
        values: torch.Tensor,
        visible: torch.Tensor,  # bool [B, 1, R, E + R]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output `[B, R, D]`, and keys and values with this call's R entries appended."""
        batch, rows, _ = x.shape
        heads = lambda y, count: y.view(batch, rows, count, self.spec.head_dim).transpose(1, 2)  # noqa: E731
        query = rotate(heads(self.q_proj(x), self.spec.num_heads), cos, sin)
        key = rotate(heads(self.k_proj(x), self.spec.num_kv_heads), cos, sin)
        value = heads(self.v_proj(x), self.spec.num_kv_heads)
        keys = torch.cat((keys, key.to(keys.dtype)), dim=2)
        values = torch.cat((values, value.to(values.dtype)), dim=2)
        mixed = F.scaled_dot_product_attention(
            query.to(keys.dtype),
            keys,
            values,
            attn_mask=visible,
            enable_gqa=self.spec.num_heads != self.spec.num_kv_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1)), keys, values


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x `[..., D]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)


class Stack(nn.Module):
    """Embedding table, layers and final norm: what a checkpoint calls `model.*`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class LatentCoT(nn.Module):
    """An adaptive latent CoT model: a Llama stack, its head, and the router that decides how long each token thinks."""

    frequencies: torch.Tensor

    def __init__(self, spec: ModelSpec, recurrence: RecurrenceSpec) -> None:
        super().__init__()
        self.spec, self.recurrence = spec, recurrence
        self.model = Stack(spec)
        if not spec.tie_word_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if recurrence.max_latents:
            self.router = build_router(spec.hidden_size, recurrence)
        frequencies, self.rope_scale = rope_frequencies(spec.rope, spec.head_dim, spec.max_position_embeddings)
        self.register_buffer("frequencies", frequencies, persistent=False)

    @classmethod
    def from_tensors(
        cls, spec: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor], dtype: torch.dtype
    ) -> LatentCoT:
        """A model in evaluation mode with the given checkpoint tensors cast to `dtype`; every name must match."""
        with torch.device("meta"):
            model = cls(spec, recurrence)
        frequencies, _ = rope_frequencies(spec.rope, spec.head_dim, spec.max_position_embeddings)
        model.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, strict=True, assign=True)
        model.frequencies = frequencies
        return model.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding table."""
        return self.model.embed_tokens.weight.dtype

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Step 1's input `[..., D]`: embedding_scale * E[token] for tokens int64 `[...]`."""
        return self.model.embed_tokens(tokens) * self.recurrence.embedding_scale

    def think(
        self, x: torch.Tensor, position: torch.Tensor, step: torch.Tensor, memory: Memory
    ) -> tuple[torch.Tensor, Memory]:
        """One pass: latent thoughts z `[B, R, D]` of rows x `[B, R, D]`, and the memory with their entries appended.

        position and step are int64 `[B, R]`; a row of step 0 is padding: its output means nothing and nobody reads it.
        """
        entry_position = torch.cat((memory.position, position), dim=1)
        entry_step = torch.cat((memory.step, step), dim=1)
        own = torch.arange(entry_step.shape[1], device=x.device) == (
            memory.step.shape[1] + torch.arange(x.shape[1], device=x.device)
        ).unsqueeze(-1)  # [R, E + R]; padding reads itself, because an empty softmax is NaN
        visible = (
            (entry_step.unsqueeze(1) > 0)
            & (entry_step.unsqueeze(1) <= step.unsqueeze(-1))
            & (entry_position.unsqueeze(1) <= position.unsqueeze(-1))
        ) | own
        angles = rope_angles(position, self.frequencies).unsqueeze(1)
        angles = angles.to(torch.promote_types(x.dtype, torch.float32))
        cos = (torch.cos(angles) * self.rope_scale).to(x.dtype)
        sin = (torch.sin(angles) * self.rope_scale).to(x.dtype)
        keys, values = [], []
        for layer, old_keys, old_values in zip(self.model.layers, memory.keys, memory.values, strict=True):
            assert isinstance(layer, Layer)
            mixed, new_keys, new_values = layer.self_attn(
                layer.input_layernorm(x), cos, sin, old_keys, old_values, visible.unsqueeze(1)
            )
            x = x + mixed
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            keys.append(new_keys)
            values.append(new_values)
        return self.model.norm(x), Memory(keys, values, entry_position, entry_step)

    def gate(self, z: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Probability of going on `[B, R]`, float32 or better, after step k of each row (k < max_steps)."""
        return gate(self.router, self.recurrence, z, step)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[..., V]` of mixed states `[..., D]`."""
        table = self.model.embed_tokens if self.spec.tie_word_embeddings else self.lm_head
        return F.linear(hidden.to(table.weight.dtype), table.weight)
