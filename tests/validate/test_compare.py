"""Near-ties, first divergences and distances on numbers made up by hand."""

from __future__ import annotations

import numpy as np
import pytest

from latentcot_export.spec import RecurrenceSpec
from latentcot_export.validate.compare import (
    choice_margin,
    decision_margin,
    distances,
    halting_decisions,
    log_probabilities,
    losses,
)

TAU = 0.2
RULE = RecurrenceSpec(max_latents=2, halt_threshold=TAU)  # at most 3 steps, decisions after steps 1 and 2
NONE = np.nan


def depths(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("depth", "next_reach"),
    [(1, (0.1, NONE, NONE)), (1, (TAU, NONE, NONE)), (2, (0.5, 0.1, NONE)), (3, (0.9, 0.5, NONE))],
)
def test_a_depth_that_the_oracle_would_choose_is_right(depth: int, next_reach: tuple[float, ...]) -> None:
    found = halting_decisions(depths(depth), np.array([next_reach]), RULE)
    assert not found.wrong[0] and found.margin[0] == 0 and found.steps[0] == depth


@pytest.mark.parametrize(
    ("depth", "next_reach", "margin", "step"),
    [
        (2, (0.1, 0.05, NONE), 0.5, 1),  # went on where the oracle halts
        (1, (0.3, NONE, NONE), 0.5, 1),  # halted where the oracle goes on
        (2, (0.5, 0.21, NONE), 0.05, 2),
        (3, (0.5, TAU, NONE), 0.0, 2),  # strictly greater: exactly tau halts
        (3, (0.19, 0.1, NONE), 0.5, 1),  # two differing decisions: the first names the step, the worst the margin
        (0, (NONE, NONE, NONE), np.inf, 1),
        (4, (0.9, 0.8, NONE), np.inf, 3),
        (-1, (0.9, 0.8, NONE), np.inf, 1),
    ],
)
def test_a_depth_that_the_oracle_would_not_choose_is_named(
    depth: int, next_reach: tuple[float, ...], margin: float, step: int
) -> None:
    found = halting_decisions(depths(depth), np.array([next_reach]), RULE)
    assert found.wrong[0]
    assert found.margin[0] == pytest.approx(margin)
    assert found.steps[0] == step


def test_the_last_step_has_no_decision() -> None:
    found = halting_decisions(depths(3), np.array([[0.9, 0.5, 0.9]]), RULE)
    assert not found.wrong[0]


def test_without_latents_every_depth_is_one() -> None:
    found = halting_decisions(depths(1, 2), np.full((2, 1), NONE), RecurrenceSpec())
    assert found.wrong.tolist() == [False, True]


def test_without_a_router_every_token_takes_all_steps_and_nothing_is_near() -> None:
    rule = RecurrenceSpec(max_latents=2, stop="count")
    found = halting_decisions(depths(3, 2, 1), np.full((3, 3), NONE), rule)
    assert found.wrong.tolist() == [False, True, True]
    assert found.margin[0] == 0 and np.isinf(found.margin[1:]).all() and found.steps.tolist() == [3, 2, 1]


def test_with_tau_zero_only_an_underflow_is_near() -> None:
    rule = RecurrenceSpec(max_latents=1, halt_threshold=0.0)
    # the second is small and still a number in float32
    found = halting_decisions(depths(1, 1, 1), np.array([[1e-50, NONE], [1e-30, NONE], [1e-4, NONE]]), rule)
    assert found.wrong.all()
    assert found.margin[0] < 1e-5 and (found.margin[1:] > 1).all()


def test_the_margin_of_one_decision() -> None:
    next_reach = np.array([[0.21, NONE, NONE], [0.9, 0.1, NONE], [0.9, 0.9, NONE], [0.9, 0.9, NONE]])
    margins = decision_margin(depths(1, 2, 3, 0), next_reach, RULE)
    assert margins[:2] == pytest.approx([0.05, 0.5])
    assert np.isinf(margins[2:]).all()


def test_the_margin_of_a_choice_is_relative_to_the_largest_logit() -> None:
    logits = np.array([[1.0, 10.0, 9.0], [0.1, 0.3, 0.2], [0.0, 1.0, 2.0]])
    assert choice_margin(depths(2, 2, 2), logits) == pytest.approx([0.1, 0.1, 0.0])
    assert np.isinf(choice_margin(depths(-1, 3, 0), logits)[:2]).all()


def test_distances_of_equal_and_scaled_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 7))
    same = distances(logits.astype(np.float32), logits)
    assert same.logits.max() < 1e-6 and np.abs(same.kl).max() < 1e-10 and np.abs(same.cosine).max() < 1e-10
    far = distances(-logits, logits)
    assert (far.cosine > 1.9).all() and (far.kl > 0).all()
    ours, theirs = log_probabilities(-logits), log_probabilities(logits)
    assert far.kl == pytest.approx((np.exp(theirs) * (theirs - ours)).sum(1))
    assert np.exp(theirs).sum(1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_infinitely_far(broken: float) -> None:
    logits = np.ones((2, 3))
    engine = logits.copy()
    engine[1, 2] = broken
    found = distances(engine, logits)
    assert np.isinf(found.logits[1]) and found.logits[0] == 0
    assert np.isinf(found.cosine[1])


def test_losses_are_those_of_the_next_token() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]))
    assert losses(depths(0, 1, 2), logits) == pytest.approx([-np.log(0.25), -np.log(0.7)])
    assert losses(depths(0), logits[:1]).size == 0
