"""int8 and int4: shares and means decide, in plain words; wrong scales, codes and kernels are found all the same."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from latentcot_export.bundle import read_report
from latentcot_export.checkpoint import random_tensors
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.validate import TOLERANCES, Divergence, Gate, Tolerances, tolerances_of, validate
from latentcot_export.validate.gates import TeacherForced, by_share, tokens_gate
from latentcot_export.validate.runs import Oracle, Run
from latentcot_export.validate.tolerances import tolerances_for, within
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE
from tests.cli.terminal import latentcot
from tests.validate.tampering import edit_graph, rewritten, weight
from tests.validate.test_validate import FULL, GATES, failed, with_pass

TINY = Path(__file__).resolve().parents[2] / "examples" / "checkpoints" / "latentcot-tiny"
DOWN = "model.layers.0.mlp.down_proj.weight"
QUANTISED = ("int8", "int4")
IDS = [np.random.default_rng(1).integers(0, RANDOM_MODEL.vocab_size, n) for n in (40, 23)]


@pytest.fixture(scope="module")
def bundles(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantised")
    return {
        name: export(random_checkpoint, folder / name, target="ort", quantize=name, validate=False).folder
        for name in QUANTISED
    }


@pytest.mark.parametrize("quantize", QUANTISED)
def test_a_good_bundle_passes_against_its_checkpoint_and_alone(
    bundles: dict[str, Path], random_checkpoint: Path, quantize: str
) -> None:
    report = validate(bundles[quantize], against=random_checkpoint, tokens=1500, level="full")
    assert not failed(report)
    assert [gate.name for gate in report.gates] == ["config", "weights", *GATES, *with_pass(FULL)]
    gates = {gate.name: gate for gate in report.gates}
    assert all(gate.mismatched == 0 and gate.first_divergence is None for gate in report.gates)
    # it is not the checkpoint: something differs, and is told
    assert gates["depth"].excused > 0 and gates["argmax"].excused > 0 and gates["logits"].worst > 1e-6
    assert gates["depth"].worst == gates["depth"].excused / 1500
    alone = {gate.name: gate for gate in validate(bundles[quantize], tokens=1500, level="full").gates}
    assert all(gate.passed for gate in alone.values())
    # and held against what its codes stand for it is closer, which leaves int8 activations
    assert alone["logits"].worst < gates["logits"].worst / (1.2 if quantize == "int8" else 20)


def test_an_export_is_validated_against_its_checkpoint(tmp_path: Path) -> None:
    bundle = export(TINY, tmp_path / "tiny", target="ort", quantize="int8")
    kept = read_report(bundle, "validation.json")
    assert kept is not None and kept["passed"] and kept["checkpoint"] == "latentcot-tiny"
    check_words({gate["name"]: gate for gate in kept["gates"]}, "int8", 512)


def test_the_command_holds_it_against_a_checkpoint_on_real_text(tmp_path: Path) -> None:
    bundle = export(TINY, tmp_path / "tiny", target="ort", quantize="int4", validate=False)
    result = latentcot("validate", bundle.folder, "--against", TINY, "--tokens", 1024, "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    check_words({gate["name"]: gate for gate in json.loads(result.stdout)["gates"]}, "int4", 1024)


def check_words(gates: dict[str, dict[str, Any]], quantize: str, tokens: int) -> None:
    """Depth agreement, KL and perplexity are told in words, and far from their limits, since the model is trained."""
    limits = TOLERANCES[quantize]
    assert gates["weights"]["passed"] and gates["depth"]["compared"] == tokens
    agree, most = 100 * (1 - gates["depth"]["excused"] / tokens), 100 * (1 - limits.depth_share)
    assert gates["depth"]["detail"] == f"{agree:.4g} % of depths agree, {most:g} % must"
    assert "% of best logits agree" in gates["argmax"]["detail"]
    assert "% of tokens and their depths agree" in gates["tokens"]["detail"]
    assert f"mean KL {gates['logits']['worst']:.2g} of {limits.mean_kl:g} nats, largest" in gates["logits"]["detail"]
    assert gates["perplexity"]["detail"].startswith("perplexity ") and gates["perplexity"]["detail"].endswith(" %")
    for name in ("depth", "argmax", "logits", "perplexity"):
        assert 0 < gates[name]["worst"] < gates[name]["limit"] / 4, name


def test_which_limits_hold() -> None:
    def manifest(dtype: str = "float32", cache: str = "float32", quantize: str = "none", target: str = "ort") -> Any:
        return SimpleNamespace(dtype=dtype, quantize=quantize, target=target, cache=SimpleNamespace(dtype=cache))

    for own in (False, True):
        assert tolerances_for(manifest(), own) is TOLERANCES["float32"]
        assert tolerances_for(manifest("float16", "float16", target="onnx"), own) is TOLERANCES["float16"]
        for dtype in ("float16", "bfloat16"):
            for device in ("cpu", "cuda"):
                assert tolerances_for(manifest(cache=dtype), own, device) is TOLERANCES[f"{dtype} cache"]
            # a processor multiplies narrow weights in float32, a GPU does not
            assert tolerances_for(manifest(dtype, dtype), own) is TOLERANCES[f"{dtype} cache"]
            assert tolerances_for(manifest(dtype), own) is TOLERANCES["float32"]
            assert tolerances_for(manifest(dtype, dtype), own, "cuda") is TOLERANCES[f"{dtype} pass"]
            assert tolerances_for(manifest(dtype, dtype, target="tensorrt"), own, "cuda") is TOLERANCES[f"{dtype} pass"]
    for cache in ("float32", "float16"):
        for quantize in QUANTISED:
            assert tolerances_for(manifest(cache=cache, quantize=quantize), False) is TOLERANCES[quantize]
            assert tolerances_for(manifest(cache=cache, quantize=quantize), True) is TOLERANCES["int8"]
    with pytest.raises(InputError, match="no tolerances for dtype float64"):
        tolerances_for(manifest("float64", "float32", target="onnx"), True)
    # two runs of one graph share their weights, whatever these are worth
    same = {name: tolerances_of(name).between_runs for name in TOLERANCES}
    for name in ("float16", "float16 pass", "bfloat16 pass"):
        assert same.pop(name) is TOLERANCES[name]
    assert all(each is TOLERANCES["float32"] for each in same.values())
    assert within(np.array([0.0, 2.0, np.inf, np.nan]), math.inf).tolist() == [True, True, False, False]


def _without_zero_points(model: onnx.ModelProto) -> None:
    """The kernels take the middle of the range for them."""
    body = next(a.g for node in model.graph.node for a in node.attribute if a.name == "body")
    for node in body.node:
        if node.op_type == "MatMulNBits":
            node.input[3] = ""


def _gates_swapped(model: onnx.ModelProto) -> None:
    """Matrices of two layers in each other's place."""
    body = next(a.g for node in model.graph.node for a in node.attribute if a.name == "body")
    first, second = (node for node in body.node if "gate_up_proj" in node.name)
    for i in range(1, 4):
        first.input[i], second.input[i] = second.input[i], first.input[i]


@pytest.mark.parametrize("quantize", QUANTISED)
@pytest.mark.parametrize("edit", [_without_zero_points, _gates_swapped])
def test_kernels_that_do_not_compute_with_these_weights_are_found_without_a_checkpoint(
    bundles: dict[str, Path], tmp_path: Path, quantize: str, edit: Callable[[onnx.ModelProto], None]
) -> None:
    changed = rewritten(bundles[quantize], tmp_path / "x", lambda folder: edit_graph(folder, edit))
    found = failed(validate(changed, tokens=600))
    assert "logits" in found and "argmax" in found
    assert found["logits"].worst > found["logits"].limit == TOLERANCES["int8"].mean_kl
    assert found["argmax"].mismatched > 0 and found["argmax"].first_divergence is not None


@pytest.mark.parametrize("quantize", QUANTISED)
def test_one_wrong_scale_is_found_against_the_checkpoint(
    bundles: dict[str, Path], random_checkpoint: Path, tmp_path: Path, quantize: str
) -> None:
    def change(folder: Path) -> None:
        with weight(folder, f"{DOWN}_scale", np.float32) as scales:
            scales[7, 0] *= 1.1

    found = failed(validate(rewritten(bundles[quantize], tmp_path / "x", change), random_checkpoint, tokens=200))
    assert list(found) == ["weights"] and found["weights"].mismatched == 1
    assert f"{DOWN} is not the nearest or not the least clipped in 1 of its blocks" in str(found["weights"].detail)


@pytest.mark.parametrize("quantize", QUANTISED)
@pytest.mark.parametrize("part", ["q", "zero"])
def test_one_wrong_code_is_found_against_the_checkpoint(
    bundles: dict[str, Path], random_checkpoint: Path, tmp_path: Path, quantize: str, part: str
) -> None:
    def change(folder: Path) -> None:
        with weight(folder, f"{DOWN}_{part}", np.uint8) as codes:
            codes.reshape(-1)[3] ^= 0x11

    found = failed(validate(rewritten(bundles[quantize], tmp_path / "x", change), random_checkpoint, tokens=200))
    assert "weights" in found and DOWN in str(found["weights"].detail)


@pytest.mark.parametrize("quantize", QUANTISED)
def test_scales_of_another_matrix_are_found_by_what_they_do(
    bundles: dict[str, Path], random_checkpoint: Path, tmp_path: Path, quantize: str
) -> None:
    def change(folder: Path) -> None:
        for name in ("model.layers.0.mlp.gate_up_proj", "model.layers.1.self_attn.o_proj", "model.embed_tokens"):
            with weight(folder, f"{name}.weight_scale", np.float32) as scales:
                scales[:] = 4 * scales[::-1].copy()

    found = failed(validate(rewritten(bundles[quantize], tmp_path / "x", change), random_checkpoint, tokens=600))
    assert {"weights", "argmax", "logits"} <= set(found) and found["weights"].mismatched >= 3
    assert found["logits"].worst > found["logits"].limit == TOLERANCES[quantize].mean_kl
    assert "must" in str(found["argmax"].detail) and found["argmax"].worst > found["argmax"].limit


# by share, with samples so small that the real shares would be tried by a token or two
SHARES = Tolerances(excused_share=0.1, depth_share=0.1, mean_kl=0.01, perplexity=0.1, by_share=True)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(RANDOM_MODEL, RANDOM_RECURRENCE, random_tensors(RANDOM_MODEL, RANDOM_RECURRENCE, 3))


def judged(oracle: Oracle, runs: list[Run], limits: Tolerances = SHARES) -> dict[str, Gate]:
    gates = TeacherForced(limits, oracle.recurrence, True)
    truths = oracle.follow([run.tokens for run in runs], [run.depths for run in runs])
    for sequence, (run, truth) in enumerate(zip(runs, truths, strict=True)):
        gates.add(sequence, run, truth)
    return {gate.name: gate for gate in gates.gates()}


def honest(oracle: Oracle) -> list[Run]:
    return [
        Run(ids, truth.depths.copy(), truth.logits.astype(np.float32))
        for ids, truth in zip(IDS, oracle.read(IDS), strict=True)
    ]


def test_depths_may_differ_up_to_their_share(oracle: Oracle) -> None:
    truths = oracle.read(IDS)
    deep = np.flatnonzero(truths[0].depths > 1)
    for wrong, passed in ((0, True), (6, True), (7, False)):  # of 63 tokens
        runs = honest(oracle)
        runs[0].depths[deep[:wrong]] -= 1
        gates = TeacherForced(SHARES, oracle.recurrence, False)
        for sequence, (run, truth) in enumerate(zip(runs, truths, strict=True)):
            gates.add(sequence, run, truth)
        gate = gates.gates()[0]
        assert gate.passed is passed
        assert (gate.excused, gate.mismatched) == ((wrong, 0) if passed else (0, wrong))
        assert gate.worst == pytest.approx(wrong / 63) and gate.limit == 0.1
        assert (gate.first_divergence is None) is passed
    assert gate.first_divergence == Divergence(0, int(deep[0]), int(runs[0].depths[deep[0]]))
    assert gate.detail == "88.89 % of depths agree, 90 % must"


@pytest.mark.parametrize("depth", [0, 6, -1])
def test_what_is_no_depth_is_not_excused(oracle: Oracle, depth: int) -> None:
    runs = honest(oracle)
    runs[1].depths[4] = depth
    gate = judged(oracle, runs)["depth"]
    assert not gate.passed and math.isinf(gate.worst) and gate.mismatched == 1
    assert gate.first_divergence is not None and gate.first_divergence.token == 4


def test_best_logits_may_differ_up_to_their_share_and_by_any_distance(oracle: Oracle) -> None:
    for wrong, passed in ((6, True), (7, False)):
        runs = honest(oracle)
        for token in range(wrong):
            runs[0].logits[token, (runs[0].logits[token].argmax() + 1) % 96] += 30
        gates = judged(oracle, runs, dataclasses.replace(SHARES, mean_kl=100.0))
        assert gates["argmax"].passed is passed
        assert gates["logits"].passed
    assert gates["argmax"].first_divergence == Divergence(0, 0, int(runs[0].depths[0]))


def test_the_mean_of_the_divergence_decides_and_not_one_token(oracle: Oracle) -> None:
    runs = honest(oracle)
    runs[0].logits[5] += np.linspace(0, 1, 96, dtype=np.float32)
    gate = judged(oracle, runs)["logits"]
    assert gate.passed and 0 < gate.worst < 0.01
    largest = float(str(gate.detail).split("largest ")[1].split(";")[0])
    assert largest == pytest.approx(63 * gate.worst, rel=0.1), "it is all of this token"
    for run in runs:
        run.logits += np.random.default_rng(0).normal(size=run.logits.shape).astype(np.float32)
    gates = judged(oracle, runs, dataclasses.replace(SHARES, excused_share=1.0))
    assert not gates["logits"].passed and gates["logits"].worst > 0.01 and gates["argmax"].passed


def test_nan_logits_fail(oracle: Oracle) -> None:
    runs = honest(oracle)
    runs[0].logits[4] = np.nan
    gates = judged(oracle, runs)
    assert not gates["logits"].passed and gates["logits"].mismatched == 1 and gates["logits"].to_json()["worst"] is None
    assert not gates["perplexity"].passed


def test_written_tokens_may_differ_up_to_the_share(oracle: Oracle) -> None:
    prompts = [ids[:3] for ids in IDS]
    for wrong, passed in ((5, True), (6, False)):  # of 57 that were chosen
        runs = [
            Run(np.append(ids[:3], truth.logits[2:].argmax(axis=1)), truth.depths, truth.logits)
            for ids, truth in zip(IDS, oracle.read(IDS), strict=True)
        ]
        truths = oracle.read(IDS)  # as if these tokens had been read: the gate compares what it is given
        runs[0].tokens[10 : 10 + wrong] = (runs[0].tokens[10 : 10 + wrong] + 1) % 96
        gate = tokens_gate(prompts, runs, truths, SHARES, oracle.recurrence)
        assert gate.compared == 59 and gate.passed is passed
        assert (gate.excused, gate.mismatched) == ((wrong, 0) if passed else (0, wrong))
    assert gate.first_divergence is not None and gate.first_divergence.token == 10
    runs[0].tokens[10 : 10 + wrong] = truths[0].logits[9 : 9 + wrong].argmax(axis=1)
    runs[0].tokens[-1] = -1
    assert not tokens_gate(prompts, runs, truths, SHARES, oracle.recurrence).passed, "-1 is no token"


def test_a_gate_that_compared_nothing_has_not_passed() -> None:
    assert not by_share(Gate("depth", False, 0, 0, 0.0, 1.0), 0.5, "depths").passed
