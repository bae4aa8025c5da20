"""How far the graph is from the oracle, token by token: depths, best logits, whole distributions, losses."""

from __future__ import annotations

import dataclasses

import numpy as np

from latentcot_export.spec import RecurrenceSpec

from .runs import Ids

# Two reaches this small are both nothing to float32: with tau 0 a gate may underflow there and not in the oracle.
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass
class Decisions:
    """Halting decisions of n tokens: where the engine's differ from the oracle's, and how near a tie those were.

    wrong bool `[n]`; margin float64 `[n]` is the largest |next / tau - 1| of a token's differing decisions, 0 where
    none differs; steps int64 `[n]` is the first step whose decision differs, else the depth.
    """

    wrong: np.ndarray
    margin: np.ndarray
    steps: Ids


def halting_decisions(depths: Ids, next_reach: np.ndarray, recurrence: RecurrenceSpec) -> Decisions:
    """Holds engine depths int64 `[n]` against next_reach float64 `[n, max_steps]` of an oracle that replayed them.

    The engine went on after every step before its depth and halted after that one; the oracle goes on while
    next_reach > tau (strictly) and k < max_steps, and always while k < max_steps where there is no gate. A depth outside
    1..max_steps, or less than max_steps without a gate, differs by an infinite margin.
    """
    count, most, tau = len(depths), recurrence.max_steps, recurrence.halt_threshold
    steps = np.arange(1, most + 1)
    ran = steps <= depths[:, None]
    engine_goes_on = steps < depths[:, None]
    with np.errstate(invalid="ignore"):
        oracle_goes_on = ((next_reach > tau) | (not recurrence.gated)) & (steps < most)
    distance = _distance_from_tau(next_reach, tau)
    # step max_steps has no decision, and a step that the oracle could not replay has no reach
    differs = ran & (engine_goes_on != oracle_goes_on) & (steps < most)
    margin = np.where(differs, distance, 0.0).max(axis=1, initial=0.0)
    impossible = (depths < 1) | (depths > most)
    margin[impossible] = np.inf
    first = np.where(differs.any(axis=1), differs.argmax(axis=1) + 1, np.clip(depths, 1, most))
    return Decisions(differs.any(axis=1) | impossible, margin, first.reshape(count))


def decision_margin(steps: Ids, next_reach: np.ndarray, recurrence: RecurrenceSpec) -> np.ndarray:
    """|next / tau - 1| float64 `[n]` of the decision after step int64 `[n]`; infinite where there is none."""
    inside = (steps >= 1) & (steps <= recurrence.max_latents)
    reach = np.take_along_axis(next_reach, np.where(inside, steps - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(inside, _distance_from_tau(reach, recurrence.halt_threshold), np.inf)


def _distance_from_tau(next_reach: np.ndarray, tau: float) -> np.ndarray:
    return _infinite_where_nan(np.abs(next_reach - tau) / max(tau, _SMALLEST_NORMAL))


def _infinite_where_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.inf, values)


def scale_of(logits: np.ndarray) -> np.ndarray:
    """Largest absolute logit `[n]` of each token of `[n, V]`, at least 1: the unit of relative differences."""
    return np.maximum(1.0, np.abs(logits).max(axis=1, initial=0.0))


def choice_margin(choice: Ids, logits: np.ndarray) -> np.ndarray:
    """How far below the oracle's best logit `[n, V]` the choice int64 `[n]` is, relative; 0 where they agree."""
    best = logits.max(axis=1)
    outside = (choice < 0) | (choice >= logits.shape[1])
    chosen = np.take_along_axis(logits, np.where(outside, 0, choice)[:, None], axis=1)[:, 0]
    margin = (best - chosen) / scale_of(logits)
    return np.where(outside, np.inf, margin)


@dataclasses.dataclass
class Distances:
    """Per token float64 `[n]`: relative largest difference of a logit, KL divergence in nats, 1 - cosine."""

    logits: np.ndarray
    kl: np.ndarray
    cosine: np.ndarray


def distances(engine: np.ndarray, oracle: np.ndarray) -> Distances:
    """Holds logits float32 `[n, V]` against logits float64 `[n, V]`; a logit that is not finite is infinitely far."""
    with np.errstate(all="ignore"):
        found = engine.astype(np.float64)
        difference = np.abs(found - oracle).max(axis=1, initial=0.0) / scale_of(oracle)
        ours, theirs = log_probabilities(found), log_probabilities(oracle)
        kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(oracle, axis=1)
        cosine = np.where(norms > 0, 1.0 - (found * oracle).sum(axis=1) / norms, np.abs(found).max(axis=1, initial=0.0))
    return Distances(*(_infinite_where_nan(each) for each in (difference, kl, cosine)))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax float64 of logits `[n, V]`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def losses(tokens: Ids, logits: np.ndarray) -> np.ndarray:
    """Negative log-likelihood in nats `[n - 1]` of tokens[1:] under logits `[n, V]` of tokens `[n]`."""
    following = tokens[1 : len(logits)]
    with np.errstate(all="ignore"):
        all_of_them = log_probabilities(logits[: len(following)].astype(np.float64))
    return -np.take_along_axis(all_of_them, following[:, None], axis=1)[:, 0]
