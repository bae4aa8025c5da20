"""The five gates, in their order: depths, best logits, greedy tokens, distributions, perplexity.

All but the third are teacher-forced. Units of `worst` and `limit`: depth |next / tau - 1| of a differing decision, where
next is what the stop rule compares with tau and where there is no router any difference is infinite;
argmax and tokens the relative distance of the oracle's best logit from the engine's choice; logits the relative
difference of a logit, its gate also holding KL divergence and cosine to their limits; perplexity |ratio - 1|.

Of a quantised bundle, whose oracle has the weights of the float32 checkpoint or else what the codes stand for, no single
token is judged: depth, argmax and tokens count differences and excuse a share of them, logits is the mean KL divergence.
There `worst` and `limit` are that share, and nats.
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
from .tolerances import Tolerances, within


class TeacherForced:
    """Gates 1, 2, 4 and 5 over batches of sequences, each compared and then forgotten: logits are large."""

    def __init__(self, limits: Tolerances, recurrence: RecurrenceSpec, real_text: bool) -> None:
        self.limits, self.recurrence, self.real_text = limits, recurrence, real_text
        self.depth = Tally("depth", limits.depth_near_tie, limits.depth_share)
        self.argmax = Tally("argmax", limits.argmax_near_tie, limits.excused_share)
        self.logits = Tally("logits", limits.logits)
        self.kl = self.kl_sum = self.cosine = 0.0
        self.perplexity = _Perplexity(limits.perplexity)
        self.histogram = np.zeros(recurrence.max_steps, np.int64)

    def add(self, sequence: int, run: Run, truth: Truth) -> None:
        """Compares one sequence; the truth has followed the run's depths."""
        limits = self.limits
        decisions = halting_decisions(run.depths, truth.next_reach, self.recurrence)
        near = within(decisions.margin, limits.depth_near_tie) & (not limits.by_share)
        self.depth.add(sequence, decisions.wrong, decisions.steps, decisions.margin, near)
        choice = run.logits.argmax(axis=1)
        margin = choice_margin(choice, truth.logits)
        wrong = choice != truth.logits.argmax(axis=1)
        near = within(margin, limits.argmax_near_tie) & (not limits.by_share)
        self.argmax.add(sequence, wrong, run.depths, np.where(wrong, margin, 0.0), near)
        far = distances(run.logits, truth.logits)
        wrong = ~(within(far.logits, limits.logits) & within(far.kl, limits.kl) & within(far.cosine, limits.cosine))
        self.logits.add(sequence, wrong, run.depths, far.logits)
        self.kl_sum += float(far.kl.sum())
        self.kl, self.cosine = max(self.kl, far.kl.max(initial=0.0)), max(self.cosine, far.cosine.max(initial=0.0))
        if self.real_text:
            self.perplexity.add(sequence, run, truth)
        inside = run.depths[(run.depths >= 1) & (run.depths <= self.recurrence.max_steps)]
        self.histogram += np.bincount(inside, minlength=self.recurrence.max_steps + 1)[1:]

    def gates(self) -> tuple[Gate, Gate, Gate, Gate]:
        """depth, argmax, logits, perplexity."""
        limits = self.limits
        depth, argmax = self.depth.gate(), self.argmax.gate()
        if limits.by_share:
            depth = by_share(depth, limits.depth_share, "depths")
            argmax = by_share(argmax, limits.excused_share, "best logits")
        if self.real_text:
            perplexity = self.perplexity.gate()
        else:
            perplexity = skipped("perplexity", limits.perplexity, "random ids, no text")
        return depth, argmax, self._logits_gate(), perplexity

    def _logits_gate(self) -> Gate:
        limits, gate = self.limits, self.logits.gate()
        mean = self.kl_sum / max(1, gate.compared)
        # not "mean > limit": a mean that is no number passes nothing
        passed = gate.passed and mean <= limits.mean_kl
        detail = f"mean KL {mean:.2g} of {limits.mean_kl:g} nats, "
        if limits.by_share:
            detail += (
                f"largest {self.kl:.2g}; largest difference of a logit {gate.worst:.2g}, 1 - cosine {self.cosine:.2g}"
            )
            return dataclasses.replace(gate, passed=passed, worst=mean, limit=limits.mean_kl, detail=detail)
        detail += f"largest {self.kl:.2g} of {limits.kl:g}, 1 - cosine {self.cosine:.2g} of {limits.cosine:g}"
        return dataclasses.replace(gate, passed=passed, detail=detail)


def by_share(gate: Gate, share: float, what: str) -> Gate:
    """The verdict on a quantised bundle of a gate that has counted every difference: excused, up to a share of them all.

    An infinite measure, of what can be no depth and no token, is never excused.
    """
    differing, compared = gate.mismatched, max(1, gate.compared)
    passed = gate.compared > 0 and differing <= math.floor(share * compared) and math.isfinite(gate.worst)
    detail = f"{100 * (1 - differing / compared):.4g} % of {what} agree, {100 * (1 - share):g} % must"
    worst = differing / compared if math.isfinite(gate.worst) else gate.worst
    counts = (0, differing, None) if passed else (differing, 0, gate.first_divergence)
    mismatched, excused, first = counts
    return dataclasses.replace(
        gate,
        passed=passed,
        mismatched=mismatched,
        excused=excused,
        first_divergence=first,
        worst=worst,
        limit=share,
        detail=detail,
    )


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
        change = 100 * math.expm1(min(ours - theirs, 700))
        detail = f"perplexity {_exp(ours):.6g}, oracle {_exp(theirs):.6g}, {change:+.2g} %"
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
    tally = Tally("tokens", limits.argmax_near_tie, limits.excused_share, limits.excused_tokens)
    for sequence, (prompt, run, truth) in enumerate(zip(prompts, runs, truths, strict=True)):
        start = len(prompt) - 1
        choice, logits = run.tokens[len(prompt) :], truth.logits[start:]
        decisions = halting_decisions(run.depths, truth.next_reach, recurrence)
        depth_wrong, depth_margin = decisions.wrong[start:], decisions.margin[start:]
        margin = choice_margin(choice, logits)
        token_wrong = choice != logits.argmax(axis=1)
        near = within(margin, limits.argmax_near_tie) & (~depth_wrong | within(depth_margin, limits.depth_near_tie))
        near &= not limits.by_share
        # the margin of a depth that is none is infinite
        measure = np.where(np.isfinite(depth_margin), np.where(token_wrong, margin, 0.0), depth_margin)
        tally.add(sequence, token_wrong | depth_wrong, decisions.steps[start:], measure, near, start=len(prompt))
    gate = tally.gate()
    return by_share(gate, limits.excused_share, "tokens and their depths") if limits.by_share else gate
