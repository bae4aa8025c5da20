"""The truth: what every exported graph must compute, in two orders that must agree.

`token_major` is the definition, one token and one step at a time; `step_major` runs step 1 of all tokens, then step 2 of
those still going, and so on. Both are exact where a row (t, k) reads only rows (t_j <= t, k_j <= k): under every rule of
visibility but `all`. Equations: recur.py.
"""

from __future__ import annotations

import dataclasses

import torch

from .latent_cot import LatentCoT
from .memory import Memory
from .recur import decide, next_input
from .router import tail, wide


@dataclasses.dataclass
class Step:
    """One step of a step-major run over its M packed rows: where they sit, what they thought, whether they go on.

    index `[B, M]` is the token position, T for padding; next_reach `[B, M]` is what was compared with tau.
    """

    index: torch.Tensor
    valid: torch.Tensor
    z: torch.Tensor
    next_reach: torch.Tensor
    go_on: torch.Tensor


@dataclasses.dataclass
class Thoughts:
    """What a run found out: what the head reads `[B, T, D]`, depths int64 `[B, T]` (0 = no token), next_reach per step.

    A depth is the step that a token halted after, though it may have run on (`skip_halted` False). next_reach
    `[B, T, max_steps]`, what was compared with tau, is NaN where a step was not reached or has no gate (the last one).
    """

    mix: torch.Tensor
    depths: torch.Tensor
    next_reach: torch.Tensor
    steps: list[Step] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Begun:
    """Tokens that have run: their keys and values, what the head reads `[B, P, D]`, depths int64 `[B, P]` (0 = not run)."""

    memory: Memory
    mix: torch.Tensor
    depths: torch.Tensor


def _pack(going: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token positions `[B, M]` of the going tokens, in order, padded with T; and which are real."""
    counts = going.sum(1)
    order = torch.argsort(~going, dim=1, stable=True)[:, : int(counts.max())]
    valid = torch.arange(order.shape[1], device=going.device) < counts.unsqueeze(1)
    return torch.where(valid, order, going.shape[1]), valid


class _Tokens:
    """What is known of every token while it thinks, `[B, T + 1, ...]`: padding reads and writes column T."""

    def __init__(self, model: LatentCoT, tokens: torch.Tensor, forced: torch.Tensor | None) -> None:
        self.model, self.spec = model, model.recurrence
        x = model.embed(tokens.clamp(min=0))
        batch, length, width = x.shape
        self.x = torch.cat((x, x.new_zeros(batch, 1, width)), dim=1)
        self.reach = wide(x.new_ones(batch, length + 1))
        self.mix = wide(torch.zeros_like(self.x))
        self.depths = torch.zeros(batch, length + 1, dtype=torch.int64, device=x.device)
        self.record = wide(x.new_full((batch, length + 1, self.spec.max_steps), float("nan")))
        self.weights = torch.ones_like(self.record)  # of a token's steps, where step 1 tells them all
        self.forced = None if forced is None else torch.cat((forced, forced.new_zeros(batch, 1)), dim=1)
        self.memory = Memory.empty(model.spec, batch, x)

    def take(self, begun: Begun) -> None:
        """Goes on behind tokens that have run elsewhere, all of which begin their sequence."""
        there, length = begun.depths > 0, begun.depths.shape[1]
        self.memory, self.depths[:, :length] = begun.memory, begun.depths
        self.mix[:, :length] = wide(begun.mix).masked_fill(~there.unsqueeze(-1), 0)

    def run(self, index: torch.Tensor, valid: torch.Tensor, step: int) -> Step:
        """Step `step` of tokens at index `[B, M]` where valid."""
        spec = self.spec
        spread = index.unsqueeze(-1).expand(-1, -1, self.x.shape[-1])
        steps = valid.long() * step
        x = self.x.gather(1, spread)
        thinking = valid & (self.depths.gather(1, index) == 0)  # else it has halted and runs on
        frozen = ~thinking if spec.readout == "final" else None
        z, states = self._think(x, index, steps, step, frozen)
        before = self.mix.gather(1, spread)
        readout = before + wide(z) if spec.readout == "sum" else z
        gate = None
        tailed = spec.tailed
        if tailed and step == 1:
            w = tail(self.model.router, spec, z)
            self.weights = self.weights.scatter(1, index.unsqueeze(-1).expand(-1, -1, w.shape[-1]), w)
        elif spec.gated and not tailed and step < spec.max_steps:
            gate = self.model.gate(z, steps, states, readout)
        reach = self.reach.gather(1, index)
        forced = None if self.forced is None else self.forced.gather(1, index)
        planned = self.weights[:, :, step % spec.max_steps].gather(1, index) if tailed else None
        decision = decide(spec, gate, reach, torch.full_like(steps, step), forced, planned)
        ends = thinking & ~decision.goes_on
        if spec.gated and step < spec.max_steps:
            old = self.record[:, :, step - 1].gather(1, index)
            seen = torch.where(thinking, decision.next_reach.detach(), old)
            self.record[:, :, step - 1].scatter_(1, index, seen)
        weight = decision.weight * thinking
        if spec.readout == "final":
            weight = torch.full_like(weight, step == spec.max_steps) * valid
        self.mix = self.mix.scatter_add(1, spread, weight.unsqueeze(-1) * wide(z))
        if spec.stop in ("reach", "tail"):
            self.reach = self.reach.scatter(1, index, decision.next_reach)
        following = next_input(self.model, x, z, readout, decision.gate).to(self.x.dtype)
        if spec.readout == "final":
            following = torch.where((thinking & ~ends).unsqueeze(-1), following, x)
        self.x = self.x.scatter(1, spread, following)
        self.depths = self.depths.scatter_add(1, index, ends.long() * step)
        runs_on = valid if spec.runs_on else valid & decision.goes_on
        return Step(index, valid, z, decision.next_reach, runs_on & (step < spec.max_steps))

    def _think(
        self, x: torch.Tensor, index: torch.Tensor, steps: torch.Tensor, step: int, frozen: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Thoughts of rows, the states that a decider reads; their keys and values are remembered."""
        weight = self.weights[:, :, step - 1].gather(1, index).log() if self.spec.stop == "tail" else None
        layers = () if self.spec.decider is None else self.spec.decider.layers
        z, self.memory, states = self.model.think_aloud(x, index, steps, self.memory, layers, frozen, weight)
        return z, states

    def thoughts(self, tokens: torch.Tensor, steps: list[Step]) -> Thoughts:
        length, absent = tokens.shape[1], tokens < 0
        depths = self.depths[:, :length].masked_fill(absent, 0)
        return Thoughts(self.mix[:, :length], depths, self.record[:, :length], steps)


def step_major(
    model: LatentCoT, tokens: torch.Tensor, forced_depth: torch.Tensor | None = None, keep_steps: bool = False
) -> Thoughts:
    """Runs tokens int64 `[B, T]` (-1 = no token, at the end of shorter sequences), all tokens of a step together.

    forced_depth int64 `[B, T]`: 0 learns, d > 0 runs exactly min(d, max_steps) steps. Differentiable; `keep_steps` keeps
    what a training loss needs. Wrong for a `token_major` recurrence, whose first steps read later steps of other tokens.
    """
    assert not model.recurrence.token_major
    going = tokens >= 0
    state = _Tokens(model, tokens, forced_depth)
    steps: list[Step] = []
    for k in range(1, model.recurrence.max_steps + 1):
        if not bool(going.any()):
            break
        step = state.run(*_pack(going), k)
        going = torch.zeros_like(state.depths, dtype=torch.bool).scatter(1, step.index, step.go_on)[
            :, : tokens.shape[1]
        ]
        if keep_steps:
            steps.append(step)
    return state.thoughts(tokens, steps)


@torch.no_grad()
def token_major(
    model: LatentCoT, tokens: torch.Tensor, forced_depth: torch.Tensor | None = None, begun: Begun | None = None
) -> Thoughts:
    """The definition: one token and one step at a time, of every sequence beside the others. As `step_major`.

    Those that have `begun` are not run again. This does not ask how they ran: see jacobi.py.
    """
    state = _Tokens(model, tokens, forced_depth)
    if begun is not None:
        state.take(begun)
    for t in range(tokens.shape[1]):
        going = (tokens[:, t : t + 1] >= 0) & (state.depths[:, t : t + 1] == 0)
        for k in range(1, model.recurrence.max_steps + 1):
            if not bool(going.any()):
                break
            going = state.run(torch.where(going, t, tokens.shape[1]), going, k).go_on
    return state.thoughts(tokens, [])


def run(model: LatentCoT, tokens: torch.Tensor, forced_depth: torch.Tensor | None = None) -> Thoughts:
    """The truth in the fastest order that gives it. As `step_major`."""
    order = token_major if model.recurrence.token_major else step_major
    return order(model, tokens, forced_depth)
