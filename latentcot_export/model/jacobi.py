"""A prompt in parallel where a token reads all thoughts of earlier ones: the schedule in which such models were trained.

PonderLM-2 (arXiv 2509.23184): all thoughts are guessed at once and refined in rounds, each from the hidden states of the
round before. That converges to the definition `token_major` from left to right and is an approximation until then. It is
what a bundle with the prefill `jacobi:R` must compute, and the reference that its error is measured with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from .latent_cot import LatentCoT
from .memory import Memory
from .oracle import Begun, Thoughts, token_major
from .recur import next_input


def jacobi(model: LatentCoT, tokens: torch.Tensor, rounds: int) -> torch.Tensor:
    """What the head reads `[B, T, D]` of tokens int64 `[B, T]` (-1 = no token, at the end) after R refining `rounds`.

    K = max_latents initial passes of 1 .. K steps, `rounds` passes of K + 1 steps, and a last one that is read: K + R + 1,
    each over the whole prompt and without a memory. After a pass every x_(k+1) is made anew of that pass's z_k (recur.py),
    so an initial pass adds one step. Of token t (from 0) the result is that of `token_major`, up to rounding, from R = K t
    on. The recurrence must have stop `count` and visibility `all`, unless K is 0.
    """
    return next(itertools.islice(refinements(model, tokens), rounds, None))


def refined(
    model: LatentCoT,
    tokens: torch.Tensor,
    rounds: int,
    prompt: torch.Tensor,
    forced_depth: torch.Tensor | None = None,
) -> Thoughts:
    """Tokens int64 `[B, T]` whose first `prompt` int64 `[B]` are refined for R `rounds` and the others run exactly.

    These read the keys and values of the last pass. forced_depth as `token_major`: a token of depth d has steps 1 .. d.
    """
    length = int(prompt.max())
    begun = tokens[:, :length].masked_fill(torch.arange(length) >= prompt.unsqueeze(1), -1)
    forced = None if forced_depth is None else forced_depth[:, :length]
    return token_major(model, tokens, forced_depth, next(itertools.islice(_passes(model, begun, forced), rounds, None)))


def refinements(model: LatentCoT, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """`jacobi` of 0, 1, 2, ... rounds, each for one more pass: the last pass of one is a round of the next."""
    return (begun.mix for begun in _passes(model, tokens, None))


def _passes(model: LatentCoT, tokens: torch.Tensor, forced_depth: torch.Tensor | None) -> Iterator[Begun]:
    """The passes from the one on in which every step of every token runs."""
    spec = model.recurrence
    assert spec.stop == "count" or spec.max_latents == 0, "a token that may halt has no number of steps to refine"
    assert spec.visibility == "all" or spec.max_latents == 0, "step-major order is exact here"
    depths = torch.full_like(tokens, spec.max_steps)
    if forced_depth is not None:
        depths = torch.where(forced_depth > 0, forced_depth.clamp(max=spec.max_steps), depths)
    depths = depths.masked_fill(tokens < 0, 0)
    with torch.no_grad():
        inputs = [model.embed(tokens.clamp(min=0))]
    while True:
        with torch.no_grad():  # not around the yield, which would leave it on for the caller
            thoughts, memory = _pass(model, depths, inputs)
            readouts = _readouts(model, thoughts)
            complete = len(inputs) == spec.max_steps
            inputs = _follow(model, inputs, thoughts, readouts)
        if complete:
            last = (depths - 1).clamp(min=0).unsqueeze(-1).unsqueeze(0).expand(1, -1, -1, readouts[0].shape[-1])
            yield Begun(memory, torch.stack(readouts).gather(0, last)[0], depths)


def _pass(model: LatentCoT, depths: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], Memory]:
    """Thoughts z_k `[B, T, D]` of the inputs x_k `[B, T, D]` of all steps k = 1 .., which see each other, and their keys.

    depths int64 `[B, T]`, 0 = no token: later steps of a token are padding.
    """
    steps = [torch.where(depths >= k, k, 0) for k in range(1, len(inputs) + 1)]
    position = torch.arange(depths.shape[1], device=depths.device).expand_as(depths)
    x = torch.cat(inputs, dim=1)
    nothing = Memory.empty(model.spec, depths.shape[0], x)
    z, memory = model.think(x, torch.cat([position] * len(inputs), dim=1), torch.cat(steps, dim=1), nothing)
    return list(z.split(depths.shape[1], dim=1)), memory


def _follow(
    model: LatentCoT, inputs: list[torch.Tensor], thoughts: list[torch.Tensor], readouts: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The next pass's inputs: step 1's as it is, the others all made at once of the step before, one step more if any."""
    made = [inputs[0]]
    for x, z, readout in zip(inputs, thoughts, readouts, strict=True):
        made.append(next_input(model, x, z, readout, torch.ones_like(x[..., 0])))
    return made[: model.recurrence.max_steps]


def _readouts(model: LatentCoT, thoughts: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the head would read after each step `[B, T, D]`: the thought, or the sum of those so far."""
    return list(torch.stack(thoughts).cumsum(0)) if model.recurrence.readout == "sum" else thoughts
