"""RaggedHalt: the halting recurrence, one step of it for every row.

Contract (arXiv 2602.08220; recurrence.md of the design)
    gate, reach float32 `[B, R]`; z, mix float32 `[B, R, D]`; step, forced_depth int64 `[B, R]` (step 0 = idle row;
    forced 0 = learned, d > 0 = run min(d, max_steps) steps); tau float, max_steps int.
        next   = reach * gate
        go_on  = next > tau and step < max_steps           (strict >; forced: step < forced)
        p_exit = reach - next if go_on else reach           (the residual goes to the last executed step)
        mix   += p_exit * z
    Float32 in every precision of the weights, because the compare flips in half precision.
"""

from __future__ import annotations

import torch


def ragged_halt(
    gate: torch.Tensor,
    reach: torch.Tensor,
    z: torch.Tensor,
    mix: torch.Tensor,
    step: torch.Tensor,
    forced_depth: torch.Tensor,
    tau: float,
    max_steps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """go_on bool `[B, R]` (false for idle rows), the reach of the next step `[B, R]` and the new mix `[B, R, D]`."""
    next_reach = reach * gate
    learned = (next_reach > tau) & (forced_depth <= 0)
    go_on = (learned | (forced_depth > step)) & (step < max_steps) & (step > 0)
    p_exit = torch.where(go_on, reach - next_reach, reach)
    return go_on, next_reach, mix + p_exit.unsqueeze(-1) * z
