"""What a row may read: the four rules of RecurrenceSpec.visibility, once, for the oracle and whatever is traced of it."""

from __future__ import annotations

import torch


def visible_entries(
    rule: str,
    entry_position: torch.Tensor,
    entry_step: torch.Tensor,
    position: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    """bool `[B, R, E]`: which of E entries rows (position, step) int64 `[B, R]` read.

    Entries int64 `[B, E]` are those of earlier passes and of this one, the rows' own among them; one of step 0 is padding
    and read by nobody. A rule never looks at later positions.
    """
    before, own = entry_step.unsqueeze(1), step.unsqueeze(-1)
    there = (before > 0) & (entry_position.unsqueeze(1) <= position.unsqueeze(-1))
    if rule == "duo":
        return there & (before <= own)
    if rule == "same":
        return there & (before == own)
    if rule == "all":
        return there & ((entry_position.unsqueeze(1) < position.unsqueeze(-1)) | (before <= own))
    assert rule == "newest", rule
    # an entry below the row's step counts only if its token ended there, that is, never wrote the next step
    follows = (entry_position.unsqueeze(2) == entry_position.unsqueeze(1)) & (
        entry_step.unsqueeze(2) + 1 == entry_step.unsqueeze(1)
    )
    ended = ~follows.any(dim=2).unsqueeze(1)
    return there & ((before == own) | ((before < own) & ended))
