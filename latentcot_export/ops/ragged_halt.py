"""RaggedHalt: the stop rule and the readout, one step of them for every row.

Contract (arXiv 2602.08220 and the rules of spec/recurrence.py)
    gate, reach, planned float32 `[B, R]`; z, mix float32 `[B, R, D]`; step, forced_depth int64 `[B, R]` (step 0 = idle row;
    forced 0 = learned, d > 0 = end at min(d, max_steps)). A row of reach below 0 has ended and runs on.
        next    = reach * gate (reach), gate (gate), reach (count), planned (tail)
        goes on = next > tau and step < max_steps          (strict >; count: always; forced: step < forced)
        share   = what READOUTS says of this step; mix += share * z
    Float32 in every precision of the weights, because the compare flips in half precision.
"""

from __future__ import annotations

import dataclasses

import torch

from ..spec import RecurrenceSpec


@dataclasses.dataclass
class Fate:
    """What becomes of rows, all `[B, R]`, false for idle ones.

    goes_on: by the rule; ends: the token's depth is this step; stays: there is a next step, after its end too. reach is
    the next step's, -1 once ended; mix `[B, R, D]`.
    """

    goes_on: torch.Tensor
    ends: torch.Tensor
    stays: torch.Tensor
    reach: torch.Tensor
    mix: torch.Tensor


def ragged_halt(
    spec: RecurrenceSpec,
    gate: torch.Tensor | None,
    reach: torch.Tensor,
    z: torch.Tensor,
    mix: torch.Tensor,
    step: torch.Tensor,
    forced_depth: torch.Tensor,
    planned: torch.Tensor | None = None,
) -> Fate:
    """See the contract. gate and planned are None where the rule has no use for them."""
    last, live = step >= spec.max_steps, step > 0
    following = reach
    if planned is not None:
        following = planned
    elif gate is not None:
        following = reach * gate if spec.stop == "reach" else gate
    following = torch.where(last, 0.0, following)
    learned = forced_depth <= 0
    if planned is not None or gate is not None:
        learned = learned & (following > spec.halt_threshold)
    thinking = live & (reach >= 0) if spec.runs_on else live
    goes_on = (learned | (forced_depth > step)) & ~last & thinking
    share = _share(spec, goes_on, last, reach, following)
    if spec.runs_on and spec.readout != "final":
        share = torch.where(thinking, share, 0.0)
    stays = live & ~last if spec.runs_on else goes_on
    carried = following if spec.stop in ("reach", "tail") else torch.ones_like(reach)
    return Fate(
        goes_on,
        thinking & ~goes_on,
        stays,
        torch.where(goes_on, carried, -1.0),
        mix + share.unsqueeze(-1) * z,
    )


def _share(
    spec: RecurrenceSpec, goes_on: torch.Tensor, last: torch.Tensor, reach: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    if spec.readout == "final":
        return last.to(reach.dtype)
    if spec.readout == "sum":
        return torch.ones_like(reach)
    if spec.readout == "last" or spec.stop == "count":
        return 1.0 - goes_on.to(reach.dtype)
    return reach - following if spec.readout == "shares" else torch.where(goes_on, reach - following, reach)
