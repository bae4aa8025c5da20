"""Counting: what one gate compared, what differed, what is excused as a near-tie, and where it first differed."""

from __future__ import annotations

import math

import numpy as np

from .report import Divergence, Gate


class Tally:
    """The running count of one gate.

    `excused_share` is the most of what was compared that near-ties may excuse, `least` how many they may at any rate.
    """

    def __init__(self, name: str, limit: float, excused_share: float = 0.0, least: int = 0) -> None:
        self.name, self.limit, self.excused_share, self.least = name, limit, excused_share, least
        self.compared = self.mismatched = self.excused = 0
        self.worst = 0.0
        self.first: Divergence | None = None
        self.detail: str | None = None

    def add(
        self,
        sequence: int,
        wrong: np.ndarray,
        steps: np.ndarray,
        measure: np.ndarray | None = None,
        near_tie: np.ndarray | None = None,
        start: int = 0,
    ) -> None:
        """Counts n consecutive tokens of a sequence, the first at position `start`.

        wrong, near_tie bool `[n]`: differs, and whether that is excused. steps int64 `[n]` is what a divergence names.
        measure float `[n]` goes into `worst`; NaN counts as infinite.
        """
        excused = np.zeros_like(wrong) if near_tie is None else wrong & near_tie
        self.compared += len(wrong)
        self.excused += int(excused.sum())
        bad = wrong & ~excused
        self.mismatched += int(bad.sum())
        if measure is not None and len(measure):
            self.worst = max(self.worst, float(np.where(np.isnan(measure), np.inf, measure).max()))
        if bad.any():
            place = int(bad.argmax())
            found = Divergence(sequence, start + place, int(steps[place]))
            self.first = found if self.first is None else min(self.first, found)

    def gate(self) -> Gate:
        """The verdict. More near-ties than the share allows fail the gate; so does nothing compared, unless skipped."""
        allowed = max(self.least, math.floor(self.excused_share * self.compared))
        too_many = self.excused > allowed
        detail = self.detail
        if too_many and detail is None:
            detail = f"{self.excused} near-ties among {self.compared} where {allowed} are allowed"
        passed = self.compared > 0 and self.mismatched == 0 and not too_many
        return Gate(
            self.name,
            passed,
            self.compared,
            self.mismatched,
            self.worst,
            self.limit,
            self.first,
            self.excused,
            False,
            detail,
        )


def skipped(name: str, limit: float, reason: str) -> Gate:
    """A gate that has nothing to compare, with the reason as its detail."""
    return Gate(name, True, 0, 0, 0.0, limit, skipped=True, detail=reason)
