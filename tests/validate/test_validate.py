"""Whole bundles: a good one passes every gate, a tampered one fails at the right gate, and the command says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from latentcot_export.bundle import open_bundle, read_manifest, read_report
from latentcot_export.checkpoint import write_random_checkpoint
from latentcot_export.errors import CheckFailed, InputError
from latentcot_export.runtime.session import GraphSession
from latentcot_export.validate import Gate, Report, validate
from latentcot_export.validate.runs import Engine, Run
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE
from tests.cli.terminal import latentcot, one_sentence
from tests.validate.tampering import add_to_weight, change_constant, rewritten

GATES = ["depth", "argmax", "tokens", "logits", "perplexity"]
QUICK = ["batch_neighbours", "chunking", "prefill_decode", "schedule", "stock_depth_1"]
FULL = ["batch_permutation", *QUICK, "full_depth", "depth_replay"]


def with_pass(gates: list[str]) -> list[str]:
    """The same of a bundle of target ort, whose pass.onnx is held against its model.onnx."""
    at = gates.index("stock_depth_1")
    return [*gates[:at], "pass_graph", *gates[at:]]


def failed(report: Report) -> dict[str, Gate]:
    return {gate.name: gate for gate in report.gates if not gate.passed}


def test_a_good_bundle_passes_every_gate_of_both_levels(random_bundle: Path, random_checkpoint: Path) -> None:
    before = sorted(path.name for path in random_bundle.iterdir())
    stages: list[str] = []
    report = validate(random_bundle, tokens=300, progress=lambda stage, _done, _total: stages.append(stage))
    assert not failed(report)
    assert [gate.name for gate in report.gates] == GATES + QUICK
    assert (report.tokens, report.source, report.level) == (300, "random ids", "quick")
    assert [gate.name for gate in report.gates if gate.skipped] == ["perplexity"]
    assert all(gate.compared > 0 and gate.mismatched == 0 for gate in report.gates if not gate.skipped)
    assert sum(report.depth_histogram) == 300 and all(report.depth_histogram)
    assert len(set(stages)) >= 4
    full = validate(str(random_bundle), against=random_checkpoint, tokens=700, level="full")
    assert not failed(full)
    assert [gate.name for gate in full.gates] == ["config", "weights", *GATES, *FULL]
    assert full.checkpoint == "random-checkpoint" and full.bundle == "random-bundle"
    assert sorted(path.name for path in random_bundle.iterdir()) == before, "validate writes nothing"


def test_another_router_bias_is_found_against_the_checkpoint(
    random_bundle: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = rewritten(random_bundle, tmp_path / "x", lambda folder: add_to_weight(folder, "router.bias", 0.5))
    found = failed(validate(bundle, against=random_checkpoint, tokens=300))
    assert {"weights", "depth"} <= set(found) and "config" not in found
    assert "router.bias differs in 1 of 1" in str(found["weights"].detail)
    assert found["weights"].worst == pytest.approx(0.5)
    assert found["depth"].first_divergence is not None and found["depth"].mismatched > 0
    # its own weights are what it computes with, so alone it is a faithful bundle of another model
    assert not failed(validate(bundle, tokens=300))


def test_one_weight_of_many_is_found(random_bundle: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    bundle = rewritten(random_bundle, tmp_path / "x", lambda folder: add_to_weight(folder, f"{name}_t", 1e-6))
    found = failed(validate(bundle, against=random_checkpoint, tokens=100))
    assert list(found) == ["weights"] and found["weights"].mismatched == 1
    assert f"{name} differs in 1 of" in str(found["weights"].detail)


def test_another_threshold_in_the_graph_is_found(random_bundle: Path, tmp_path: Path) -> None:
    bundle = rewritten(random_bundle, tmp_path / "x", lambda folder: change_constant(folder, 0.3, 0.35))
    found = failed(validate(bundle, tokens=300))
    assert "depth" in found and found["depth"].first_divergence is not None
    assert found["depth"].worst > 1e-3


def test_another_threshold_in_the_manifest_is_found(
    random_bundle: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    rule = dataclasses.replace(RANDOM_RECURRENCE, halt_threshold=0.35)
    bundle = rewritten(random_bundle, tmp_path / "x", recurrence=rule)
    assert "depth" in failed(validate(bundle, tokens=300))
    found = failed(validate(bundle, against=random_checkpoint, tokens=300))
    assert list(found) == ["config"]
    assert "recurrence.halt_threshold is 0.35 and the checkpoint's 0.3" in str(found["config"].detail)


def test_another_model_fails_at_its_config_and_is_not_run(random_bundle: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(RANDOM_MODEL, intermediate_size=80)
    write_random_checkpoint(tmp_path / "other", model, RANDOM_RECURRENCE)
    report = validate(random_bundle, against=tmp_path / "other")
    assert [gate.name for gate in report.gates] == ["config"] and not report.passed
    assert report.tokens == 0 and report.to_json()["mean_depth"] is None


@pytest.mark.parametrize(("about", "gate"), [("logits", "logits"), ("depths", "depth")])
def test_a_graph_that_errs_once_is_found(
    random_bundle: Path, monkeypatch: pytest.MonkeyPatch, about: str, gate: str
) -> None:
    honest = Engine.read

    def erring(self: Engine, sequences: list[np.ndarray], *rest: object, **options: object) -> list[Run]:
        runs = honest(self, sequences, *rest, **options)  # type: ignore[arg-type]
        if len(runs) > 2 and not rest and not options:
            getattr(runs[1], about)[11] += 1
        return runs

    monkeypatch.setattr(Engine, "read", erring)
    found = failed(validate(random_bundle, tokens=500))
    where = found[gate].first_divergence
    assert where is not None and (where.sequence, where.token) == (1, 11)


def test_a_graph_that_does_not_end_is_a_failed_check(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphSession, "run", lambda *_args, **_options: None)
    with pytest.raises(CheckFailed, match="was not done after"):
        validate(random_bundle)


@pytest.mark.parametrize("options", [{"tokens": 1}, {"tokens": -5}, {"tokens": 1 << 40}, {"level": "thorough"}])
def test_unusable_options_are_refused(random_bundle: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="must be"):
        validate(random_bundle, **options)  # type: ignore[arg-type]


def test_small_caches_and_batches_of_one(random_bundle: Path, tmp_path: Path) -> None:
    cache = dataclasses.replace(read_manifest(random_bundle).cache, max_seq_len=5, max_batch=1)
    bundle = rewritten(random_bundle, tmp_path / "x", cache=cache)
    report = validate(bundle, tokens=40, level="full")
    assert not failed(report)
    assert report.tokens == 40


def test_the_command_prints_the_report_and_keeps_it(random_bundle: Path, tmp_path: Path) -> None:
    bundle = rewritten(random_bundle, tmp_path / "x")
    result = latentcot("validate", bundle, "--tokens", 100, "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["passed"] and document["bundle"] == "x" and document["tokens"] == 100
    kept = read_report(open_bundle(bundle), "validation.json")
    assert kept is not None and {**document, "manifest_digest": kept["manifest_digest"]} == kept


def test_a_failed_gate_ends_the_command_with_status_1(
    random_bundle: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = rewritten(random_bundle, tmp_path / "x", lambda folder: add_to_weight(folder, "router.bias", 0.5))
    result = latentcot("validate", bundle, "--against", random_checkpoint, "--tokens", 100)
    assert result.exit_code == 1
    assert "gate weights" in one_sentence(result.stderr)
    assert "FAILED" in result.stdout and "depth" in result.stdout
    kept = read_report(open_bundle(bundle), "validation.json")
    assert kept is not None and not kept["passed"]


def test_a_bundle_that_cannot_keep_the_report_is_still_validated(
    random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise InputError("report validation.json was not written: Read-only file system; choose another place")

    monkeypatch.setattr(Report, "save", refuse)
    result = latentcot("validate", random_bundle, "--tokens", 100, "-o", "csv")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: report validation.json was not written")


def test_unusable_input_ends_the_command_with_status_2(random_bundle: Path, tmp_path: Path) -> None:
    for args in (
        [tmp_path / "nothing"],
        [random_bundle, "--against", tmp_path / "nothing"],
        [random_bundle, "--text", tmp_path / "nothing"],
        [random_bundle, "--level", "thorough"],
        [random_bundle, "--tokens", "0"],
        [random_bundle, "-o", "yaml"],
    ):
        result = latentcot("validate", *args)
        assert (result.exit_code, result.stdout) == (2, ""), args
        one_sentence(result.stderr)
