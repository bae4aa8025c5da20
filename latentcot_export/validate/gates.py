"""The five gates, in their order: depths, best logits, greedy tokens, distributions, perplexity.

All but the third are teacher-forced. Units of `worst` and `limit`: depth |next / tau - 1| of a differing decision;
argmax and tokens the relative distance of the oracle's best logit from the engine's choice; logits the relative
difference of a logit, its gate also holding KL divergence and cosine to their limits; perplexity |ratio - 1|.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from latentcot_export.spec import RecurrenceSpec

from .compare import choice_margin, distances, halting_decisions, losses
from .report import Divergence, Gate
from .runs import Ids, Run, Truth
from .tally import Tally, skipped
from .tolerances import Tolerances


class TeacherForced:
    """Gates 1, 2, 4 and 5 over batches of sequences, each compared and then forgotten: logits are large."""

    def __init__(self, limits: Tolerances, recurrence: RecurrenceSpec, real_text: bool) -> None:
        self.limits, self.recurrence, self.real_text = limits, recurrence, real_text
        self.depth = Tally("depth", limits.depth_near_tie, limits.excused_share)
        self.argmax = Tally("argmax", limits.argmax_near_tie, limits.excused_share)
        self.logits = Tally("logits", limits.logits)
        self.kl = self.cosine = 0.0
        self.perplexity = _Perplexity(limits.perplexity)
        self.histogram = np.zeros(recurrence.max_steps, np.int64)

    def add(self, sequence: int, run: Run, truth: Truth) -> None:
        """Compares one sequence; the truth has followed the run's depths."""
        limits = self.limits
        decisions = halting_decisions(run.depths, truth.next_reach, self.recurrence)
        near = decisions.margin <= limits.depth_near_tie
        self.depth.add(sequence, decisions.wrong, decisions.steps, decisions.margin, near)
        choice = run.logits.argmax(axis=1)
        margin = choice_margin(choice, truth.logits)
        wrong = choice != truth.logits.argmax(axis=1)
        self.argmax.add(sequence, wrong, run.depths, np.where(wrong, margin, 0.0), margin <= limits.argmax_near_tie)
        far = distances(run.logits, truth.logits)
        wrong = ~((far.logits <= limits.logits) & (far.kl <= limits.kl) & (far.cosine <= limits.cosine))
        self.logits.add(sequence, wrong, run.depths, far.logits)
        self.kl, self.cosine = max(self.kl, far.kl.max(initial=0.0)), max(self.cosine, far.cosine.max(initial=0.0))
        if self.real_text:
            self.perplexity.add(sequence, run, truth)
        inside = run.depths[(run.depths >= 1) & (run.depths <= self.recurrence.max_steps)]
        self.histogram += np.bincount(inside, minlength=self.recurrence.max_steps + 1)[1:]

    def gates(self) -> tuple[Gate, Gate, Gate, Gate]:
        """depth, argmax, logits, perplexity."""
        limits = self.limits
        logits = dataclasses.replace(
            self.logits.gate(),
            detail=f"KL {self.kl:.2g} of {limits.kl:g} nats, 1 - cosine {self.cosine:.2g} of {limits.cosine:g}",
        )
        if self.real_text:
            perplexity = self.perplexity.gate()
        else:
            perplexity = skipped("perplexity", limits.perplexity, "random ids, no text")
        return self.depth.gate(), self.argmax.gate(), logits, perplexity


class _Perplexity:
    """exp of the mean loss of the engine and of the oracle over the same tokens."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.engine = self.oracle = 0.0
        self.count = self.apart = 0
        self.first: Divergence | None = None

    def add(self, sequence: int, run: Run, truth: Truth) -> None:
        ours, theirs = losses(run.tokens, run.logits), losses(run.tokens, truth.logits)
        self.engine += float(ours.sum())
        self.oracle += float(theirs.sum())
        self.count += len(ours)
        apart = ~(np.abs(ours - theirs) <= self.limit)
        self.apart += int(apart.sum())
        if apart.any():
            place = int(apart.argmax())
            found = Divergence(sequence, place, int(run.depths[place]))
            self.first = found if self.first is None else min(self.first, found)

    def gate(self) -> Gate:
        """One number decides, so tokens whose loss differs by more than the limit count only when it fails."""
        if not self.count:
            return skipped("perplexity", self.limit, "no token has another after it")
        ours, theirs = self.engine / self.count, self.oracle / self.count
        difference = abs(ours - theirs)
        # NaN and what exp cannot hold are infinitely far
        worst = math.expm1(difference) if difference < 700 else math.inf
        passed = worst <= self.limit
        detail = f"perplexity {_exp(ours):.6g}, oracle {_exp(theirs):.6g}"
        apart, first = (0, None) if passed else (self.apart, self.first)
        return Gate("perplexity", passed, self.count, apart, worst, self.limit, first, detail=detail)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def tokens_gate(
    prompts: Sequence[Ids],
    runs: Sequence[Run],
    truths: Sequence[Truth],
    limits: Tolerances,
    recurrence: RecurrenceSpec,
) -> Gate:
    """Gate 3: greedy tokens chosen free-running, and the depth of the token that chose each.

    The oracle reads what the engine wrote. By induction its own greedy text is the same exactly when each of its best
    logits is the token that follows; after a near-tie it goes on with the engine's choice.
    """
    tally = Tally("tokens", limits.argmax_near_tie, limits.excused_share)
    for sequence, (prompt, run, truth) in enumerate(zip(prompts, runs, truths, strict=True)):
        start = len(prompt) - 1
        choice, logits = run.tokens[len(prompt) :], truth.logits[start:]
        decisions = halting_decisions(run.depths, truth.next_reach, recurrence)
        depth_wrong, depth_margin = decisions.wrong[start:], decisions.margin[start:]
        margin = choice_margin(choice, logits)
        token_wrong = choice != logits.argmax(axis=1)
        near = (margin <= limits.argmax_near_tie) & (~depth_wrong | (depth_margin <= limits.depth_near_tie))
        measure = np.where(token_wrong, margin, 0.0)
        tally.add(sequence, token_wrong | depth_wrong, decisions.steps[start:], measure, near, start=len(prompt))
    return tally.gate()
