"""The truth: what every exported graph must compute, in two orders that must agree.

`token_major` is the definition, one token and one step at a time; `step_major` runs step 1 of all tokens, then step 2 of
those still going, and so on. Both are exact because a row (t, k) reads only rows (t_j <= t, k_j <= k). Equations: arXiv
2602.08220; exit weights p_k = reach_k - reach_(k+1), the residual going to the last executed step.
"""

from __future__ import annotations

import dataclasses

import torch

from .llama import LatentCoT, Memory
from .router import wide


@dataclasses.dataclass
class Step:
    """One step of a step-major run over its M packed rows: where they sit, what they thought, whether they go on.

    index `[B, M]` is the token position, T for padding; next_reach `[B, M]` is reach * gate.
    """

    index: torch.Tensor
    valid: torch.Tensor
    z: torch.Tensor
    next_reach: torch.Tensor
    go_on: torch.Tensor


@dataclasses.dataclass
class Thoughts:
    """What a run found out: mixed states `[B, T, D]`, depths int64 `[B, T]` (0 = no token) and next_reach per step.

    next_reach `[B, T, max_steps]` is NaN where a step was not executed or has no gate (the last one).
    """

    mix: torch.Tensor
    depths: torch.Tensor
    next_reach: torch.Tensor
    steps: list[Step] = dataclasses.field(default_factory=list)


def _goes_on(model: LatentCoT, next_reach: torch.Tensor, step: int, forced: torch.Tensor | None) -> torch.Tensor:
    """Strict `next > tau` unless the depth is forced (> 0), and never past max_steps."""
    learned = next_reach > model.recurrence.halt_threshold
    if forced is not None:
        learned = torch.where(forced > 0, forced > step, learned)
    return learned & (step < model.recurrence.max_steps)


def _pack(going: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token positions `[B, M]` of the going tokens, in order, padded with T; and which are real."""
    counts = going.sum(1)
    order = torch.argsort(~going, dim=1, stable=True)[:, : int(counts.max())]
    valid = torch.arange(order.shape[1], device=going.device) < counts.unsqueeze(1)
    return torch.where(valid, order, going.shape[1]), valid


def step_major(
    model: LatentCoT, tokens: torch.Tensor, forced_depth: torch.Tensor | None = None, keep_steps: bool = False
) -> Thoughts:
    """Runs tokens int64 `[B, T]` (-1 = no token, at the end of shorter sequences), all tokens of a step together.

    forced_depth int64 `[B, T]`: 0 learns, d > 0 runs exactly min(d, max_steps) steps. Differentiable; `keep_steps` keeps
    what a training loss needs.
    """
    batch, length = tokens.shape
    going = tokens >= 0
    x = model.embed(tokens.clamp(min=0))
    # column T is where padding is read from and written to
    x = torch.cat((x, x.new_zeros(batch, 1, x.shape[-1])), dim=1)
    reach = wide(x.new_ones(batch, length + 1))
    mix = wide(torch.zeros_like(x))
    depths = torch.zeros(batch, length + 1, dtype=torch.int64, device=x.device)
    record = wide(x.new_full((batch, length + 1, model.recurrence.max_steps), float("nan")))
    memory = Memory.empty(model.spec, batch, x)
    steps: list[Step] = []
    for k in range(1, model.recurrence.max_steps + 1):
        if not bool(going.any()):
            break
        index, valid = _pack(going)
        spread = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        step = valid.long() * k
        z, memory = model.think(x.gather(1, spread), index, step, memory)
        own = reach.gather(1, index)
        if k < model.recurrence.max_steps:
            next_reach = own * model.gate(z, step)
            record[:, :, k - 1].scatter_(1, index, next_reach.detach())
        else:
            next_reach = torch.zeros_like(own)
        forced = None
        if forced_depth is not None:
            forced = torch.cat((forced_depth, forced_depth.new_zeros(batch, 1)), dim=1).gather(1, index)
        go_on = _goes_on(model, next_reach, k, forced) & valid
        weight = torch.where(go_on, own - next_reach, own) * valid
        mix = mix.scatter_add(1, spread, weight.unsqueeze(-1) * wide(z))
        reach = reach.scatter(1, index, next_reach)
        x = x.scatter(1, spread, z.to(x.dtype))
        depths = depths.scatter_add(1, index, valid.long())
        going = torch.zeros_like(depths, dtype=torch.bool).scatter(1, index, go_on)[:, :length]
        if keep_steps:
            steps.append(Step(index, valid, z, next_reach, go_on))
    absent = tokens < 0
    return Thoughts(mix[:, :length], depths[:, :length].masked_fill(absent, 0), record[:, :length], steps)


@torch.no_grad()
def token_major(model: LatentCoT, tokens: list[int], forced_depth: list[int] | None = None) -> Thoughts:
    """The definition: one sequence, one row at a time. Shapes as `step_major` with B = 1."""
    spec = model.recurrence
    start = model.model.embed_tokens.weight
    memory = Memory.empty(model.spec, 1, start)
    mixes, depths = [], []
    record = wide(start.new_full((1, len(tokens), spec.max_steps), float("nan")))
    for t, token in enumerate(tokens):
        x = model.embed(torch.tensor([[token]], device=start.device))
        reach = wide(x.new_ones(1, 1))
        mix = wide(torch.zeros_like(x))
        for k in range(1, spec.max_steps + 1):
            step = torch.tensor([[k]], device=start.device)
            z, memory = model.think(x, torch.tensor([[t]], device=start.device), step, memory)
            next_reach = torch.zeros_like(reach)
            if k < spec.max_steps:
                next_reach = reach * model.gate(z, step)
                record[0, t, k - 1] = next_reach
            forced = None if forced_depth is None else torch.tensor([[forced_depth[t]]], device=start.device)
            go_on = bool(_goes_on(model, next_reach, k, forced))
            mix = mix + (reach - next_reach if go_on else reach).unsqueeze(-1) * wide(z)
            reach, x = next_reach, z
            if not go_on:
                break
        mixes.append(mix)
        depths.append(k)
    return Thoughts(torch.cat(mixes, dim=1), torch.tensor([depths]), record)
