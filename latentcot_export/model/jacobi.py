"""A prompt in parallel where a token reads all thoughts of earlier ones: the schedule in which such models were trained.

PonderLM-2 (arXiv 2509.23184): all thoughts are guessed at once and refined in rounds, each from the hidden states of the
round before. That converges to the definition `token_major` from left to right and is an approximation until then. Engines
do not run it; it is the reference that its error is measured with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from .latent_cot import LatentCoT
from .memory import Memory
from .recur import next_input


def jacobi(model: LatentCoT, tokens: torch.Tensor, rounds: int) -> torch.Tensor:
    """What the head reads `[B, T, D]` of tokens int64 `[B, T]` (-1 = no token, at the end) after R refining `rounds`.

    K = max_latents initial passes of 1 .. K steps, `rounds` passes of K + 1 steps, and a last one that is read: K + R + 1,
    each over the whole prompt and without a memory. After a pass every x_(k+1) is made anew of that pass's z_k (recur.py),
    so an initial pass adds one step. Of token t (from 0) the result is that of `token_major`, up to rounding, from R = K t
    on. The recurrence must have stop `count` and visibility `all`, unless K is 0.
    """
    return next(itertools.islice(refinements(model, tokens), rounds, None))


def refinements(model: LatentCoT, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """`jacobi` of 0, 1, 2, ... rounds, each for one more pass: the last pass of one is a round of the next."""
    spec = model.recurrence
    assert spec.stop == "count" or spec.max_latents == 0, "a token that may halt has no number of steps to refine"
    assert spec.visibility == "all" or spec.max_latents == 0, "step-major order is exact here"
    with torch.no_grad():
        inputs = [model.embed(tokens.clamp(min=0))]
    while True:
        with torch.no_grad():  # not around the yield, which would leave it on for the caller
            thoughts = _pass(model, tokens, inputs)
            readouts = _readouts(model, thoughts)
            complete = len(inputs) == spec.max_steps
            inputs = _follow(model, inputs, thoughts, readouts)
        if complete:
            yield readouts[-1]


def _pass(model: LatentCoT, tokens: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Thoughts z_k `[B, T, D]` of the inputs x_k `[B, T, D]` of all steps k = 1 .., which see each other."""
    steps = [torch.where(tokens >= 0, k, 0) for k in range(1, len(inputs) + 1)]
    position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    x = torch.cat(inputs, dim=1)
    nothing = Memory.empty(model.spec, tokens.shape[0], x)
    z, _ = model.think(x, torch.cat([position] * len(inputs), dim=1), torch.cat(steps, dim=1), nothing)
    return list(z.split(tokens.shape[1], dim=1))


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
