"""Each gate passes on the truth, fails on one wrong number, names where, and excuses near-ties up to its share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from latentcot_export.checkpoint import random_tensors
from latentcot_export.spec import RecurrenceSpec
from latentcot_export.validate.gates import TeacherForced, tokens_gate
from latentcot_export.validate.report import Divergence, Gate
from latentcot_export.validate.runs import Oracle, Run, Truth
from latentcot_export.validate.tally import Tally, skipped
from latentcot_export.validate.tolerances import TOLERANCES
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE

LIMITS = TOLERANCES["float32"]
# the samples here are so small that the real share would excuse nothing
ROOMY = dataclasses.replace(LIMITS, excused_share=0.05, depth_share=0.05)
TAU = RANDOM_RECURRENCE.halt_threshold
IDS = [np.random.default_rng(1).integers(0, RANDOM_MODEL.vocab_size, n) for n in (40, 23)]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(RANDOM_MODEL, RANDOM_RECURRENCE, random_tensors(RANDOM_MODEL, RANDOM_RECURRENCE, 3))


def as_engine(ids: list[np.ndarray], truths: list[Truth]) -> list[Run]:
    """What an engine in float32 that agrees with these truths would return."""
    return [
        Run(each, truth.depths.copy(), truth.logits.astype(np.float32)) for each, truth in zip(ids, truths, strict=True)
    ]


def judged(oracle: Oracle, runs: list[Run], limits=LIMITS, real_text: bool = True) -> dict[str, Gate]:
    """Gates 1, 2, 4 and 5 over these runs."""
    gates = TeacherForced(limits, oracle.recurrence, real_text)
    truths = oracle.follow([run.tokens for run in runs], [run.depths for run in runs])
    for sequence, (run, truth) in enumerate(zip(runs, truths, strict=True)):
        gates.add(sequence, run, truth)
    return {gate.name: gate for gate in gates.gates()}


def retuned(oracle: Oracle, tau: float) -> Oracle:
    """The same model with another threshold."""
    rule = dataclasses.replace(RANDOM_RECURRENCE, halt_threshold=tau)
    return Oracle(RANDOM_MODEL, rule, random_tensors(RANDOM_MODEL, RANDOM_RECURRENCE, 3))


def a_decision(truths: list[Truth]) -> tuple[Divergence, float]:
    """Some decision to go on with nothing else near it, and its next_reach."""
    values = np.concatenate([truth.next_reach.reshape(-1) for truth in truths])
    for sequence, truth in enumerate(truths):
        for token, step in np.argwhere(truth.next_reach > TAU):
            value = truth.next_reach[token, step]
            if token > 3 and np.nansum(np.abs(values / value - 1) < 0.01) == 1:
                return Divergence(sequence, int(token), int(step) + 1), float(value)
    raise AssertionError("the random checkpoint has no such decision")


def test_the_truth_passes_and_depths_are_counted(oracle: Oracle) -> None:
    truths = oracle.read(IDS)
    runs = as_engine(IDS, truths)
    gates = judged(oracle, runs)
    assert list(gates) == ["depth", "argmax", "logits", "perplexity"]
    assert all(gate.passed and gate.mismatched == gate.excused == 0 for gate in gates.values())
    assert [gate.compared for gate in gates.values()] == [63, 63, 63, 61]
    assert all(gate.first_divergence is None for gate in gates.values())
    forced = TeacherForced(LIMITS, RANDOM_RECURRENCE, False)
    for sequence, (run, truth) in enumerate(zip(runs, truths, strict=True)):
        forced.add(sequence, run, truth)
    assert forced.histogram.sum() == 63 and (forced.histogram > 0).all()
    assert forced.gates()[3].skipped


def test_a_wrong_depth_is_named_and_the_oracle_replays_it(oracle: Oracle) -> None:
    _, value = a_decision(oracle.read(IDS))
    # an engine whose threshold lies just above this one decision, and that is otherwise faultless
    engine = retuned(oracle, value * (1 + 1e-3))
    runs = as_engine(IDS, engine.read(IDS))
    truths = oracle.read(IDS)
    assert any(not np.array_equal(run.depths, truth.depths) for run, truth in zip(runs, truths, strict=True))
    first = min(
        Divergence(b, int(t), int(run.depths[t]))
        for b, (run, truth) in enumerate(zip(runs, truths, strict=True))
        for t in np.flatnonzero(run.depths != truth.depths)[:1]
    )
    gates = judged(oracle, runs)
    assert not gates["depth"].passed and gates["depth"].first_divergence == first
    assert gates["depth"].worst > LIMITS.depth_near_tie and gates["depth"].excused == 0
    # everything after the flip is compared with a replay: nothing else differs
    assert gates["argmax"].passed and gates["logits"].passed and gates["perplexity"].passed


@pytest.mark.parametrize("side", [1, -1])
def test_a_near_tie_is_excused_either_way(oracle: Oracle, side: int) -> None:
    where, value = a_decision(oracle.read(IDS))
    judge = retuned(oracle, value * (1 + side * 4e-6))
    runs = as_engine(IDS, retuned(oracle, value * (1 - side * 4e-6)).read(IDS))
    gates = judged(judge, runs, ROOMY)
    depth = gates["depth"]
    assert depth.passed and (depth.excused, depth.mismatched) == (1, 0)
    assert depth.worst == pytest.approx(4e-6, rel=1e-2)
    assert gates["logits"].passed and gates["argmax"].passed
    strict = dataclasses.replace(ROOMY, depth_near_tie=3e-6)
    depth = judged(judge, runs, strict)["depth"]
    assert not depth.passed and depth.first_divergence == where
    assert not judged(judge, runs, LIMITS)["depth"].passed  # 0.1 % of 63 decisions is none


def test_one_wrong_logit_is_named(oracle: Oracle) -> None:
    runs = as_engine(IDS, oracle.read(IDS))
    runs[1].logits[7, 3] += 0.01
    gates = judged(oracle, runs)
    assert gates["depth"].passed and gates["argmax"].passed
    assert not gates["logits"].passed and gates["logits"].mismatched == 1
    assert gates["logits"].first_divergence == Divergence(1, 7, int(runs[1].depths[7]))


@pytest.mark.parametrize("limit", ["logits", "kl", "mean_kl", "cosine"])
def test_every_distance_can_fail_the_logits_gate(oracle: Oracle, limit: str) -> None:
    runs = as_engine(IDS, oracle.read(IDS))
    runs[0].logits += np.random.default_rng(0).normal(size=runs[0].logits.shape).astype(np.float32) * 1e-3
    loose = dataclasses.replace(LIMITS, logits=1.0, kl=1.0, mean_kl=1.0, cosine=1.0)
    assert judged(oracle, runs, loose)["logits"].passed
    assert not judged(oracle, runs, dataclasses.replace(loose, **{limit: getattr(LIMITS, limit)}))["logits"].passed


def test_another_best_logit_is_named_unless_it_is_a_near_tie(oracle: Oracle) -> None:
    runs = as_engine(IDS, oracle.read(IDS))
    order = np.argsort(runs[0].logits[5])
    best, second = order[-1], order[-2]
    gap = float(runs[0].logits[5, best] - runs[0].logits[5, second])
    relative = gap / max(1.0, float(np.abs(runs[0].logits[5]).max()))
    runs[0].logits[5, second] += 2 * gap
    gates = judged(oracle, runs)
    assert not gates["argmax"].passed and gates["argmax"].mismatched == 1
    assert gates["argmax"].first_divergence == Divergence(0, 5, int(runs[0].depths[5]))
    assert gates["argmax"].worst == pytest.approx(relative, rel=1e-4)
    excusing = judged(oracle, runs, dataclasses.replace(ROOMY, argmax_near_tie=1.1 * relative))["argmax"]
    assert excusing.passed and (excusing.excused, excusing.mismatched) == (1, 0)


def test_nan_logits_fail_every_gate_that_reads_logits(oracle: Oracle) -> None:
    runs = as_engine(IDS, oracle.read(IDS))
    runs[0].logits[4] = np.nan
    gates = judged(oracle, runs)
    assert not gates["logits"].passed and gates["logits"].to_json()["worst"] is None
    assert not gates["perplexity"].passed and gates["perplexity"].to_json()["worst"] is None
    assert gates["perplexity"].first_divergence == Divergence(0, 4, int(runs[0].depths[4]))


def test_a_small_drift_of_all_logits_is_seen_in_the_perplexity(oracle: Oracle) -> None:
    runs = as_engine(IDS, oracle.read(IDS))
    for run in runs:
        run.logits *= np.float32(1.001)
    gate = judged(oracle, runs)["perplexity"]
    assert not gate.passed and LIMITS.perplexity < gate.worst < 0.1
    assert gate.mismatched > 0 and gate.first_divergence is not None


def greedy(oracle: Oracle, prompts: list[np.ndarray], new: int) -> tuple[list[Run], list[Truth]]:
    """Written by the oracle itself, one token at a time and all over again for each."""
    texts = list(prompts)
    for _ in range(new):
        truths = oracle.read(texts)
        texts = [np.append(text, truth.logits[-1].argmax()) for text, truth in zip(texts, truths, strict=True)]
    truths = oracle.read([text[:-1] for text in texts])
    return as_engine(texts, truths), truths


PROMPTS = [IDS[0][:6], IDS[1][:1]]


def test_free_running_tokens(oracle: Oracle) -> None:
    runs, truths = greedy(oracle, PROMPTS, 8)
    gate = tokens_gate(PROMPTS, runs, truths, LIMITS, oracle.recurrence)
    assert gate.passed and (gate.compared, gate.mismatched) == (16, 0)


def test_a_wrong_token_is_named_where_it_stands(oracle: Oracle) -> None:
    runs, _ = greedy(oracle, PROMPTS, 8)
    tokens = runs[1].tokens.copy()
    tokens[4] = (tokens[4] + 1) % RANDOM_MODEL.vocab_size
    # the engine goes on from its own choice, and so does the oracle
    runs[1] = greedy(oracle, [tokens[:5]], 4)[0][0]
    truths = oracle.follow([run.tokens[:-1] for run in runs], [run.depths for run in runs])
    gate = tokens_gate(PROMPTS, runs, truths, LIMITS, oracle.recurrence)
    assert not gate.passed and gate.mismatched == 1
    assert gate.first_divergence == Divergence(1, 4, int(runs[1].depths[3]))


def test_a_token_chosen_at_a_wrong_depth_is_wrong(oracle: Oracle) -> None:
    runs, _ = greedy(oracle, PROMPTS, 8)
    depth = runs[0].depths
    depth[9] = depth[9] % 5 + 1
    truths = oracle.follow([run.tokens[:-1] for run in runs], [run.depths for run in runs])
    gate = tokens_gate(PROMPTS, runs, truths, LIMITS, oracle.recurrence)
    assert not gate.passed and gate.first_divergence is not None
    assert (gate.first_divergence.sequence, gate.first_divergence.token) == (0, 10)


def test_a_token_that_was_never_chosen_is_wrong(oracle: Oracle) -> None:
    runs, truths = greedy(oracle, PROMPTS, 8)
    runs[0].tokens[-1] = -1
    gate = tokens_gate(PROMPTS, runs, truths, LIMITS, oracle.recurrence)
    assert not gate.passed and math.isinf(gate.worst)


def test_the_excused_share_is_a_cap_rounded_down() -> None:
    def verdict(excused: int, compared: int, share: float, least: int = 0) -> Gate:
        tally = Tally("depth", 1.0, share, least)
        wrong = np.arange(compared) < excused
        tally.add(0, wrong, np.ones(compared, np.int64), near_tie=np.ones(compared, bool))
        return tally.gate()

    assert not verdict(1, 512, 1e-3).passed
    assert verdict(1, 1000, 1e-3).passed
    assert verdict(2, 2048, 1e-3).passed
    assert not verdict(3, 2048, 1e-3).passed
    assert not verdict(1, 10, 0.0).passed
    assert verdict(1, 72, 0.01, 1).passed and not verdict(2, 72, 0.01, 1).passed and verdict(3, 300, 0.01, 1).passed
    assert "2 near-ties among 512" in str(verdict(2, 512, 1e-3).detail)


def test_the_first_divergence_is_the_first_in_reading_order() -> None:
    tally = Tally("depth", 1.0)
    steps = np.array([3, 4])
    tally.add(5, np.array([False, True]), steps, start=10)
    tally.add(2, np.array([True, True]), steps, start=7)
    tally.add(9, np.array([True, True]), steps)
    assert tally.gate().first_divergence == Divergence(2, 7, 3)
    assert tally.gate().mismatched == 5


def test_a_measure_that_is_not_a_number_is_the_worst_there_is() -> None:
    tally = Tally("logits", 1.0)
    tally.add(0, np.array([False, True]), np.array([1, 1]), np.array([0.5, np.nan]))
    assert math.isinf(tally.gate().worst)


def test_a_gate_that_compared_nothing_has_not_passed_unless_it_was_skipped() -> None:
    assert not Tally("depth", 1.0).gate().passed
    assert skipped("perplexity", 1.0, "no text").passed


def test_following_depths_out_of_range_does_not_break_the_oracle(oracle: Oracle) -> None:
    wild = [np.array([0, 9, -3, 2] * 10), np.full(23, 99)]
    for truth in oracle.follow(IDS, wild):
        assert truth.depths.min() >= 1 and truth.depths.max() <= RANDOM_RECURRENCE.max_steps
    runs = [
        Run(ids, depth, truth.logits) for ids, depth, truth in zip(IDS, wild, oracle.follow(IDS, wild), strict=True)
    ]
    gate = judged(oracle, runs)["depth"]
    assert not gate.passed and math.isinf(gate.worst)


def test_the_oracle_computes_in_float64() -> None:
    tensors = random_tensors(RANDOM_MODEL, RecurrenceSpec(), 3, torch.float16)
    assert Oracle(RANDOM_MODEL, RecurrenceSpec(), tensors).read([IDS[0]])[0].logits.dtype == np.float64
