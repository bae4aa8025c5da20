"""How a prompt is run: token by token, or refined in parallel (docs/families.md, `ponderlm2`)."""

from __future__ import annotations

import re

from .fields import SpecError
from .recurrence import RecurrenceSpec

EXACT = "exact"
# The prompt of a hostile bundle takes that many passes at most; exact needs max_latents * (tokens - 1).
MAX_ROUNDS = 1 << 16
_JACOBI = re.compile(r"jacobi:(0|[1-9][0-9]{0,5})")


def refinable(recurrence: RecurrenceSpec) -> bool:
    """Whether prompts can be refined: tokens read all thoughts of earlier ones, and their number of steps is known."""
    return recurrence.token_major and recurrence.stop == "count" and recurrence.readout != "sum"


def prefill_rounds(prefill: str) -> int | None:
    """R of the prefill `jacobi:R`, None for `exact`. Errors: SpecError."""
    if prefill == EXACT:
        return None
    found = _JACOBI.fullmatch(prefill) if isinstance(prefill, str) else None
    if found is None or int(found.group(1)) > MAX_ROUNDS:
        raise SpecError(
            f"prefill is {str(prefill)[:40]!r}, it must be {EXACT} or jacobi:R with R from 0 to {MAX_ROUNDS}"
        )
    return int(found.group(1))
