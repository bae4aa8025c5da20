"""RaggedAdvance: idle rows take fresh tokens; halted rows write their depth and become idle.

Contract
    tokens, depths int64 `[B, T]` (token -1 = still to be chosen), next_position, end int64 `[B]`, stopped bool `[B]`,
    row position and step int64 `[B, R]` (position -1 and step 0 = idle), lockstep bool `[]`.
    Rows take tokens in order and only while every earlier token has been started, which makes any wavefront exact: a row
    (t, k) then runs no earlier than step k of all tokens before t. Where `alone` says so, only when they have all halted.
"""

from __future__ import annotations

import torch


def start_rows(
    tokens: torch.Tensor,
    next_position: torch.Tensor,
    end: torch.Tensor,
    stopped: torch.Tensor,
    position: torch.Tensor,
    step: torch.Tensor,
    lockstep: torch.Tensor,
    alone: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fills idle rows with the next known tokens below `end`.

    Returns fresh bool `[B, R]`, token int64 `[B, R]` (0 where not fresh), position, step `[B, R]`, next_position `[B]`.
    Under lockstep nothing starts while any row of the batch is live; alone: a sequence starts one token when it has no row.
    """
    idle = step == 0
    rank = idle.to(torch.int64).cumsum(1) - 1
    may = idle & (rank == 0) & ((~idle).to(torch.int64).sum(1, keepdim=True) == 0) if alone else idle
    candidate = next_position.unsqueeze(1) + rank
    token = tokens.gather(1, candidate.clamp(min=0).minimum(torch.full_like(candidate, tokens.shape[1] - 1)))
    known = (token >= 0) & (candidate < end.unsqueeze(1)) & ~stopped.unsqueeze(1)
    # an unknown token blocks every later one
    blocked = (idle & ~known).to(torch.int64).cumsum(1) > 0
    busy = (~idle).to(torch.int64).sum() > 0
    fresh = may & ~blocked & ~(lockstep & busy)
    return (
        fresh,
        torch.where(fresh, token, 0),
        torch.where(fresh, candidate, position),
        torch.where(fresh, 1, step),
        next_position + fresh.to(torch.int64).sum(1),
    )


def write_depths(
    depths: torch.Tensor, position: torch.Tensor, step: torch.Tensor, halted: torch.Tensor
) -> torch.Tensor:
    """depths `[B, T]` with the step of every halted row at its position."""
    spare = torch.zeros_like(depths[:, :1])  # column T swallows the writes of rows that did not halt
    index = torch.where(halted, position, depths.shape[1])
    return torch.cat((depths, spare), dim=1).scatter(1, index, step)[:, :-1]


def work_left(
    tokens: torch.Tensor,
    next_position: torch.Tensor,
    end: torch.Tensor,
    stopped: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    """bool `[]`: a row is still thinking, or a known token waits to be started."""
    place = next_position.clamp(min=0).minimum(torch.full_like(next_position, tokens.shape[1] - 1))
    known = tokens.gather(1, place.unsqueeze(1)).squeeze(1) >= 0
    waiting = known & (next_position < end) & ~stopped
    return ((step > 0).to(torch.int64).sum() + waiting.to(torch.int64).sum()) > 0
