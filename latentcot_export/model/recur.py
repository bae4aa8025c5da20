"""One step of the recurrence for any RecurrenceSpec: whether a row goes on, what its thought weighs, what it reads next.

Used by every order in which the oracle runs rows, so that there is one definition. Sources: arXiv 2602.08220 (reach,
mixture); the other rules are those of the families in docs/families.md.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from ..spec import FeedbackSpec, RecurrenceSpec
from .latent_cot import LatentCoT


@dataclasses.dataclass
class Decision:
    """What a step decided, all `[B, R]`.

    gate: probability of going on, 1 where there is none; next_reach: what was compared with tau; goes_on bool: by rule,
    by force and by max_steps; weight: of z in what the head reads.
    """

    gate: torch.Tensor
    next_reach: torch.Tensor
    goes_on: torch.Tensor
    weight: torch.Tensor


def decide(
    spec: RecurrenceSpec,
    gate: torch.Tensor | None,
    reach: torch.Tensor,
    step: torch.Tensor,
    forced: torch.Tensor | None,
    planned: torch.Tensor | None = None,
) -> Decision:
    """The stop rule after step int64 `[B, R]` of rows of reach `[B, R]`.

    gate `[B, R]`, None without a router (after the last step it says nothing); forced int64 `[B, R]` or None: 0 learns,
    d > 0 ends at min(d, max_steps). planned `[B, R]`: for the stop rule tail, the weight of the next step.
    """
    last = step >= spec.max_steps
    learned = torch.ones_like(last)
    next_reach = reach
    if planned is not None:
        next_reach = planned
    elif gate is not None:
        next_reach = reach * gate if spec.stop == "reach" else gate
    if planned is not None or gate is not None:
        learned = next_reach > spec.halt_threshold
    if gate is None:
        gate = torch.ones_like(reach)
    next_reach = torch.where(last, 0, next_reach)
    if forced is not None:
        learned = torch.where(forced > 0, forced > step, learned)
    goes_on = learned & ~last
    if spec.readout == "sum":
        weight = torch.ones_like(reach)
    elif spec.readout in ("last", "final") or spec.stop == "count":
        weight = (~goes_on).to(reach.dtype)
    else:
        weight = torch.where(goes_on, reach - next_reach, reach)
    if spec.readout == "shares" and spec.stop != "count":
        weight = reach - next_reach
    return Decision(gate, next_reach, goes_on, weight)


def expected_embedding(feedback: FeedbackSpec, logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """scale * P @ E `[..., D]` of logits `[..., V]` and table E `[V, D]`; P over the top_k largest logits if given."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if feedback.top_k is None or feedback.top_k >= logits.shape[-1]:
        return feedback.scale * (torch.softmax(logits, dim=-1).to(table.dtype) @ table)
    largest, ids = logits.topk(feedback.top_k, dim=-1)
    weights = torch.softmax(largest, dim=-1).to(table.dtype)
    return feedback.scale * (weights.unsqueeze(-2) @ F.embedding(ids, table)).squeeze(-2)


def next_input(
    model: LatentCoT, x: torch.Tensor, z: torch.Tensor, readout: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """What the next step of rows reads `[B, R, D]`: the thought z, or with feedback the embedding it expects.

    x, z `[B, R, D]`: input and thought of this step; readout `[B, R, D]`: what the head reads now; gate `[B, R]`.
    """
    feedback = model.recurrence.feedback
    if feedback is None:
        return z
    mixture = expected_embedding(feedback, model.head(readout), model.model.embed_tokens.weight)
    if feedback.gated:
        mixture = gate.to(mixture.dtype).unsqueeze(-1) * mixture
    return x + mixture if feedback.residual else mixture
