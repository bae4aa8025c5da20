"""A decoder that runs packed rows over a growing memory, written to be the specification.

A row is one (sequence, token position t, step k). It reads the memory entries of its sequence that visibility.py says; at
`max_latents` 0 this is a stock causal decoder. Parameter names are those that `layer_shapes` and `router_shapes` give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import ModelSpec, RecurrenceSpec
from .adapter import Switch, adapt
from .memory import Memory
from .rope import rope_angles, rope_frequencies
from .router import build_router, gate, wide
from .stack import Stack
from .visibility import visible_entries


class LatentCoT(nn.Module):
    """A layer stack of any ModelSpec, its head, and the router that decides how long each token thinks."""

    frequencies: torch.Tensor

    def __init__(self, spec: ModelSpec, recurrence: RecurrenceSpec) -> None:
        super().__init__()
        self.spec, self.recurrence = spec, recurrence
        self.model = Stack(spec)
        if not spec.tie_word_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.switch = Switch()
        if recurrence.adapter is not None and recurrence.max_latents:
            adapt(self.model.layers, recurrence.adapter, self.switch)
        if recurrence.gated:
            self.router = build_router(spec.hidden_size, recurrence)
        frequencies, self.rope_scale = rope_frequencies(spec.rope, spec.turned, spec.max_position_embeddings)
        self.register_buffer("frequencies", frequencies, persistent=False)

    @classmethod
    def from_tensors(
        cls, spec: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor], dtype: torch.dtype
    ) -> LatentCoT:
        """A model in evaluation mode with the given checkpoint tensors cast to `dtype`; every name must match."""
        with torch.device("meta"):
            model = cls(spec, recurrence)
        frequencies, _ = rope_frequencies(spec.rope, spec.turned, spec.max_position_embeddings)
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
        self,
        x: torch.Tensor,
        position: torch.Tensor,
        step: torch.Tensor,
        memory: Memory,
        reads: torch.Tensor | None = None,
        log_weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        """One pass: latent thoughts z `[B, R, D]` of rows x `[B, R, D]`, and the memory with their entries appended.

        position and step are int64 `[B, R]`; a row of step 0 is padding: its output means nothing and nobody reads it.
        reads bool `[B, R]`: rows that leave no entry, none by default; log_weight `[B, R]` of the entries, 0 by default.
        """
        z, memory, _ = self.think_aloud(x, position, step, memory, (), reads, log_weight)
        return z, memory

    def think_aloud(
        self,
        x: torch.Tensor,
        position: torch.Tensor,
        step: torch.Tensor,
        memory: Memory,
        keep_layers: Sequence[int],
        reads: torch.Tensor | None = None,
        log_weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Memory, list[torch.Tensor]]:
        """As `think`, and the hidden states `[B, R, D]` after the numbers of layers that `keep_layers` names.

        0 is x itself, `num_layers` the state after the final norm.
        """
        entered = step if reads is None else step.masked_fill(reads, 0)
        own_weight = torch.zeros_like(x[..., 0]) if log_weight is None else log_weight.to(x.dtype)
        entries = Memory(
            memory.keys,
            memory.values,
            torch.cat((memory.position, position), dim=1),
            torch.cat((memory.step, entered), dim=1),
            torch.cat((memory.log_weight, own_weight), dim=1),
        )
        bias = self._bias(entries, position, step)
        angles = rope_angles(position, self.frequencies).unsqueeze(1)
        angles = angles.to(torch.promote_types(x.dtype, torch.float32))
        cos = (torch.cos(angles) * self.rope_scale).to(x.dtype)
        sin = (torch.sin(angles) * self.rope_scale).to(x.dtype)
        self.switch.rows = (step > 1).unsqueeze(-1)
        keys, values, states = [], [], [x]
        for layer, old_keys, old_values in zip(self.model.layers, memory.keys, memory.values, strict=True):
            x, new_keys, new_values = layer(x, cos, sin, old_keys, old_values, bias)
            keys.append(new_keys)
            values.append(new_values)
            states.append(x)
        states[-1] = self.model.norm(x)
        return states[-1], dataclasses.replace(entries, keys=keys, values=values), [states[i] for i in keep_layers]

    def _bias(self, entries: Memory, position: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """`[B, 1, R, E]`: log weight of the entries that rows see, -inf elsewhere."""
        visible = visible_entries(self.recurrence.visibility, entries.position, entries.step, position, step)
        last = torch.arange(step.shape[1], device=step.device) + (entries.step.shape[1] - step.shape[1])
        own = torch.arange(entries.step.shape[1], device=step.device) == last.unsqueeze(-1)
        # padding reads itself, because an empty softmax is NaN
        visible = visible | (own & (step == 0).unsqueeze(-1))
        weight = entries.log_weight.unsqueeze(1)
        return torch.where(visible, weight, -torch.inf).unsqueeze(1)

    def gate(
        self,
        z: torch.Tensor,
        step: torch.Tensor,
        states: Sequence[torch.Tensor] = (),
        readout: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Probability of going on `[B, R]`, float32 or better, after step k of each row (k < max_steps).

        A decider needs the states of its layers, each `[B, R, D]`, and what the head reads now `[B, R, D]`.
        """
        if self.recurrence.decider is None:
            return gate(self.router, self.recurrence, z, step)
        assert readout is not None
        logits = self.head(readout)
        return torch.sigmoid(self.router(wide(torch.cat(tuple(states), dim=-1)), wide(logits)).squeeze(-1))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[..., V]` of mixed states `[..., D]`."""
        table = self.model.embed_tokens if self.spec.tie_word_embeddings else self.lm_head
        return F.linear(hidden.to(table.weight.dtype), table.weight)
