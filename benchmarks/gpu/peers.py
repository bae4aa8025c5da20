"""What others do with the same weights: the masked full-depth step, compiled or eager, and the oracle's model, eager.

MaskedSteps runs every step of every token of the batch, lockstep, over a static cache `[B, heads, K T, head_dim]`, plane
by plane, of which step k reads the first k planes; a token that has halted is masked. That is what a model written for
torch.compile does: no shape depends on a value. One layer is compiled (every step has shapes of its own, and each layer
the same), and one token, all its steps, head and choice, is one CUDA graph: what mode="reduce-overhead" makes of it,
without copies of its inputs and in a time that fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from gpu.sizes import Weights
from gpu.timing import Body, captured
from latentcot_export.model import LatentCoT, Memory
from latentcot_export.model.rope import rope_angles, rope_frequencies
from latentcot_export.spec import ModelSpec, RecurrenceSpec

Tensor = torch.Tensor
MOST_PLANES = 6  # of every static cache, so that both depths of a size compile once


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads `[B, H, hd]` turned by cos, sin `[1, 1, hd / 2]`."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def layer_step(
    x: Tensor,  # [B, D]
    matrices: tuple[Tensor, ...],
    turn: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],  # [B, H, S, hd] each
    at: Tensor,  # int64 [1]: where the entry goes
    mask: Tensor,  # bool [B, 1, 1, S]
    seen: int,
    epsilon: float,
) -> Tensor:
    """x after one layer; keys and values are entered at `at`, and the first `seen` are read where the mask says."""
    before, qkv, o, after, gate_up, down = matrices
    keys, values = cache
    shape = (len(x), 3, keys.shape[1], keys.shape[3])
    query, key, value = F.linear(F.rms_norm(x, before.shape, before, epsilon), qkv).view(shape).unbind(1)
    keys[:, :, at] = rotated(key, *turn).unsqueeze(2)
    values[:, :, at] = value.unsqueeze(2)
    mixed = F.scaled_dot_product_attention(
        rotated(query, *turn).unsqueeze(2), keys[:, :, :seen], values[:, :, :seen], attn_mask=mask[..., :seen]
    )
    x = x + F.linear(mixed.reshape(len(x), -1), o)
    gate, up = F.linear(F.rms_norm(x, after.shape, after, epsilon), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


class MaskedSteps:
    """`batch` sequences of `context` tokens with random keys and values; `run` adds tokens. Depths `[B, T]` are forced.

    `layer` is layer_step, compiled or not; `graph`: a token is one CUDA graph.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        weights: Weights,
        context: int,
        depths: np.ndarray,
        layer: Callable[..., Tensor] = layer_step,
        graph: bool = True,
        tokens: np.ndarray | None = None,
    ) -> None:
        assert model.num_heads == model.num_kv_heads and not model.qk_norm
        self.model, self.recurrence, self.weights, self.layer = model, recurrence, weights, layer
        device = weights.table.device
        batch, self.steps = len(depths), recurrence.max_steps
        length = -(-depths.shape[1] // 64) * 64  # a mask is read 16 bytes at a time
        shape = (batch, model.num_heads, MOST_PLANES * length, model.head_dim)
        self.length = length
        # a norm of another dtype than its input is many kernels instead of one
        kind = weights.table.dtype
        self.norm = weights.norm.to(kind)
        self.matrices = [
            (each.before.to(kind), each.qkv, each.o, each.after.to(kind), each.gate_up, each.down)
            for each in weights.layers
        ]
        self.caches = [
            tuple(torch.randn(shape, dtype=weights.table.dtype, device=device) for _ in range(2))
            for _ in weights.layers
        ]
        self.forced = torch.from_numpy(np.pad(depths, ((0, 0), (0, length - depths.shape[1])), constant_values=1))
        self.forced = self.forced.to(device)
        run = torch.arange(length, device=device) < context - 1
        step = torch.arange(1, MOST_PLANES + 1, device=device)[:, None]
        self.began = ((self.forced[:, None] >= step) & run).view(batch, 1, 1, -1)
        self.mask = self.began.clone()
        self.first = torch.zeros(batch, dtype=torch.int64) if tokens is None else torch.from_numpy(tokens)
        self.context = context
        self.first = self.first.to(device)
        self.token, self.at = self.first.clone(), torch.full((1,), context - 1, device=device)
        frequencies, scale = rope_frequencies(model.rope, model.turned, model.max_position_embeddings)
        angles = rope_angles(torch.arange(length), frequencies)
        self.angles = [(turned * scale).to(device) for turned in (angles.cos(), angles.sin())]
        self._token: Body = captured(self.take, device) if graph else self.take
        self.rewind()

    def rewind(self) -> None:
        """Back to the first token."""
        self.mask.copy_(self.began)
        self.token.copy_(self.first)
        self.at.fill_(self.context - 1)

    def run(self, count: int) -> None:
        """So many tokens of every sequence; nobody waits."""
        for _ in range(count):
            self._token()

    def take(self) -> None:
        """One token of every sequence, in all its steps."""
        weights, epsilon = self.weights, self.model.rms_norm_eps
        x = (weights.table[self.token].float() * self.recurrence.embedding_scale).to(weights.table.dtype)
        turn = tuple(table[self.at].unsqueeze(1) for table in self.angles)
        depth = self.forced.index_select(1, self.at)[:, 0]
        going = torch.ones_like(depth, dtype=torch.bool)
        reach = torch.ones(len(x), device=x.device)
        mix = torch.zeros(x.shape, device=x.device)
        for step in range(1, self.steps + 1):
            at = self.at + (step - 1) * self.length
            self.mask[..., at] = going.view(-1, 1, 1, 1)
            h = x
            for matrices, cache in zip(self.matrices, self.caches, strict=True):
                h = self.layer(h, matrices, turn, cache, at, self.mask, step * self.length, epsilon)
            z = F.rms_norm(h, self.norm.shape, self.norm, epsilon)
            logits = F.linear(z.float(), weights.router, weights.bias)
            after = reach * torch.sigmoid(logits[:, min(step, logits.shape[1]) - 1])
            goes_on = going & (depth > step) if step < self.steps else torch.zeros_like(going)
            share = torch.where(going, torch.where(goes_on, reach - after, reach), 0.0)
            mix = mix + share.unsqueeze(1) * z.float()
            reach, going = torch.where(goes_on, after, reach), goes_on
            x = torch.where(goes_on.unsqueeze(1), z, x)
        self.token.copy_(F.linear(mix.to(weights.head.dtype), weights.head).argmax(-1))
        self.at += 1


class EagerOracle:
    """The model that defines the result, eager, step by step: what PyTorch does with it as it stands.

    Its memory is a tensor that grows by an entry a sequence in every pass. A step runs while any token of the batch does.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, Tensor],
        context: int,
        depths: np.ndarray,
        dtype: torch.dtype,
        tokens: np.ndarray | None = None,
    ) -> None:
        some = next(iter(tensors.values()))
        self.model = LatentCoT.from_tensors(model, recurrence, tensors, dtype).to(some.device)
        self.context, self.recurrence, self.depths = context, recurrence, torch.from_numpy(depths).to(some.device)
        batch = len(depths)
        self.first = torch.zeros(batch, dtype=torch.int64) if tokens is None else torch.from_numpy(tokens)
        self.first = self.first.to(some.device)
        steps = torch.arange(1, recurrence.max_steps + 1, device=some.device)
        run = self.depths[:, : context - 1, None] >= steps
        position = torch.arange(context - 1, device=some.device)[:, None].expand(run.shape)
        made = [each.flatten(1) for each in (position, torch.where(run, steps, 0))]
        # those who ran stand first, so that no more entries are kept than the longest sequence has
        order = torch.argsort(made[1] == 0, dim=1, stable=True)[:, : int(run.flatten(1).sum(1).max())]
        made = [each.gather(1, order) for each in made]
        shape = (batch, model.num_kv_heads, made[0].shape[1], model.head_dim)
        keys, values = (
            [torch.randn(shape, dtype=dtype, device=some.device) for _ in range(model.num_layers)] for _ in range(2)
        )
        self.began = Memory(keys, values, *made, torch.zeros(made[0].shape, dtype=dtype, device=some.device))
        self.rewind()

    def rewind(self) -> None:
        """Back to the first token."""
        self.memory = dataclasses.replace(self.began)
        self.token, self.at = self.first.clone(), self.context - 1

    def run(self, count: int) -> None:
        """So many tokens of every sequence."""
        for _ in range(count):
            self.take()

    @torch.inference_mode()
    def take(self) -> None:
        """One token of every sequence."""
        model, depth = self.model, self.depths[:, self.at]
        x = model.embed(self.token)[:, None]
        position = torch.full((len(x), 1), self.at, device=x.device)
        going = torch.ones_like(position, dtype=torch.bool)
        reach, mix = torch.ones(len(x), 1, device=x.device), torch.zeros(x.shape, device=x.device)
        for step in range(1, self.recurrence.max_steps + 1):
            if not going.any():  # the device is waited for, as eager code does
                break
            steps = torch.where(going, step, 0)
            z, self.memory = model.think(x, position, steps, self.memory)
            goes_on = going & (depth[:, None] > step) & (step < self.recurrence.max_steps)
            # a halted row's step is 0, and what it gives is not read
            after = reach * model.gate(z, steps) if step < self.recurrence.max_steps else reach
            share = torch.where(going, torch.where(goes_on, reach - after, reach), 0.0)
            mix = mix + share.unsqueeze(-1) * z.float()
            reach, going = torch.where(goes_on, after, reach), goes_on
            x = torch.where(goes_on.unsqueeze(-1), z, x)
        self.token = model.head(mix)[:, 0].argmax(-1)
        self.at += 1
