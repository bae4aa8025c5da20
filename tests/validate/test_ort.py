"""Bundles of `--target ort`: a good one passes every gate without an excuse, a tampered one fails at the right gate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from latentcot_export.bundle import read_manifest
from latentcot_export.errors import CheckFailed
from latentcot_export.export import export
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Counter
from latentcot_export.validate import TOLERANCES, Report, validate
from latentcot_export.validate.packed import PackedEngine
from latentcot_export.validate.runs import Run
from tests.bundles import RANDOM_RECURRENCE
from tests.cli.terminal import latentcot, one_sentence
from tests.validate.tampering import add_to_weight, edit_graph, initializer, rewritten, set_attribute
from tests.validate.test_validate import FULL, GATES, QUICK, failed, with_pass

SAME = ("batch_permutation", "batch_neighbours", "chunking", "prefill_decode", "schedule", "pass_graph")
Graph = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ort") / "random-ort"
    return export(random_checkpoint, folder, target="ort", validate=False).folder


def tampered(bundle: Path, out: Path, edit: Graph) -> Path:
    return rewritten(bundle, out, lambda folder: edit_graph(folder, edit))


def test_a_good_bundle_passes_every_gate_of_both_levels(bundle: Path, random_checkpoint: Path) -> None:
    quick = validate(bundle, tokens=300)
    assert [gate.name for gate in quick.gates] == GATES + with_pass(QUICK) and quick.target == "ort"
    full = validate(bundle, against=random_checkpoint, tokens=700, level="full")
    assert [gate.name for gate in full.gates] == ["config", "weights", *GATES, *with_pass(FULL)]
    for report in (quick, full):
        assert not failed(report)
        assert all(gate.compared > 0 or gate.skipped for gate in report.gates)
        assert all(gate.mismatched == gate.excused == 0 for gate in report.gates)
    assert all(full.depth_histogram)


def test_whatever_the_batch_the_bits_are_the_same(bundle: Path) -> None:
    report = validate(bundle, tokens=300, level="full")
    assert {gate.name: gate.worst for gate in report.gates if gate.name in SAME} == dict.fromkeys(SAME, 0.0)


@pytest.mark.parametrize(
    ("stored", "name", "element"),
    [
        ("model.layers.1.mlp.down_proj.weight_t", "model.layers.1.mlp.down_proj.weight", 0),
        # 48 queries, then 24 keys, then 24 values side by side
        ("model.layers.0.self_attn.qkv_proj.weight_t", "model.layers.0.self_attn.q_proj.weight", 47),
        ("model.layers.0.self_attn.qkv_proj.weight_t", "model.layers.0.self_attn.k_proj.weight", 48),
        ("model.layers.0.self_attn.qkv_proj.weight_t", "model.layers.0.self_attn.v_proj.weight", 95),
        ("model.layers.1.self_attn.qkv_proj.bias", "model.layers.1.self_attn.v_proj.bias", 72),
        # 64 gates, then 64 ups
        ("model.layers.1.mlp.gate_up_proj.weight_t", "model.layers.1.mlp.gate_proj.weight", 63),
        ("model.layers.1.mlp.gate_up_proj.weight_t", "model.layers.1.mlp.up_proj.weight", 64),
        ("model.embed_tokens.weight", "model.embed_tokens.weight", 5),
    ],
)
def test_one_weight_of_many_is_found(
    bundle: Path, random_checkpoint: Path, tmp_path: Path, stored: str, name: str, element: int
) -> None:
    changed = rewritten(bundle, tmp_path / "x", lambda folder: add_to_weight(folder, stored, 1e-6, element))
    found = failed(validate(changed, against=random_checkpoint, tokens=60))
    assert list(found) == ["weights"] and found["weights"].mismatched == 1
    assert f"{name} differs in 1 of" in str(found["weights"].detail)


def test_another_router_bias_is_found_against_the_checkpoint(
    bundle: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    changed = rewritten(bundle, tmp_path / "x", lambda folder: add_to_weight(folder, "router.bias", 0.5))
    found = failed(validate(changed, against=random_checkpoint, tokens=300))
    assert {"weights", "depth"} <= set(found) and "config" not in found
    assert "router.bias differs in 1 of 1" in str(found["weights"].detail)
    assert found["depth"].first_divergence is not None and found["depth"].mismatched > 0
    # its own weights are what it computes with, so alone it is a faithful bundle of another model
    assert not failed(validate(changed, tokens=300))


def _threshold(model: onnx.ModelProto) -> None:
    set_attribute(model, "RaggedHalt", "tau", 0.35)


def _one_cache_for_two_layers(model: onnx.ModelProto) -> None:
    set_attribute(model, "RaggedAttention", "layer", 0)


def _another_epsilon(model: onnx.ModelProto) -> None:
    set_attribute(model, "RMSNormalization", "epsilon", 0.5)


def _another_position(model: onnx.ModelProto) -> None:
    """Angles of rope a little off."""
    name = next(each.name for each in model.graph.initializer if "frequenc" in each.name)
    tensor = initializer(model, name)
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("edit", "gates"),
    [
        (_threshold, {"depth"}),
        # each overwrites what the other has left, which matters from the second pass on
        (_one_cache_for_two_layers, {"depth", "argmax", "logits", "chunking", "prefill_decode"}),
        (_another_epsilon, {"depth", "argmax", "logits", "stock_depth_1"}),
        (_another_position, {"depth", "logits", "stock_depth_1"}),
    ],
)
def test_another_graph_is_found_without_a_checkpoint(
    bundle: Path, tmp_path: Path, edit: Graph, gates: set[str]
) -> None:
    found = failed(validate(tampered(bundle, tmp_path / "x", edit), tokens=300))
    assert gates <= set(found)
    assert found["depth"].first_divergence is not None and found["depth"].worst > 1e-3


@pytest.mark.parametrize("edit", [_threshold, _one_cache_for_two_layers, _another_epsilon, _another_position])
def test_another_pass_graph_is_found(bundle: Path, tmp_path: Path, edit: Graph) -> None:
    changed = rewritten(bundle, tmp_path / "x", lambda folder: edit_graph(folder, edit, "pass.onnx"))
    found = failed(validate(changed, tokens=300))
    assert list(found) == ["pass_graph"]
    assert found["pass_graph"].first_divergence is not None


def test_a_bundle_without_a_pass_graph_is_still_a_good_one(bundle: Path, tmp_path: Path) -> None:
    """As older versions wrote them."""
    report = validate(rewritten(bundle, tmp_path / "x", lambda folder: (folder / "pass.onnx").unlink()), tokens=300)
    assert [gate.name for gate in report.gates] == GATES + QUICK and not failed(report)


def test_another_threshold_in_the_manifest_is_found(bundle: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    rule = dataclasses.replace(RANDOM_RECURRENCE, halt_threshold=0.35)
    changed = rewritten(bundle, tmp_path / "x", recurrence=rule)
    assert "depth" in failed(validate(changed, tokens=300))
    assert list(failed(validate(changed, against=random_checkpoint, tokens=300))) == ["config"]


@pytest.mark.parametrize(("about", "gate"), [("logits", "logits"), ("depths", "depth")])
def test_a_graph_that_errs_once_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch, about: str, gate: str) -> None:
    honest = PackedEngine.read

    def erring(self: PackedEngine, sequences: list[np.ndarray], *rest: object, **options: object) -> list[Run]:
        runs = honest(self, sequences, *rest, **options)  # type: ignore[arg-type]
        if len(runs) > 2 and not rest and not options:
            getattr(runs[1], about)[11] += 1
        return runs

    monkeypatch.setattr(PackedEngine, "read", erring)
    where = failed(validate(bundle, tokens=500))[gate].first_divergence
    assert where is not None and (where.sequence, where.token) == (1, 11)


def test_a_graph_that_does_not_end_is_a_failed_check(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeSession, "run", lambda *_args: None)
    with pytest.raises(CheckFailed, match="was not done with 2 sequences after"):
        validate(bundle, tokens=300)


def test_slots_that_are_not_given_back_are_a_failed_check(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = NativeSession.run

    def leaking(self: NativeSession, state: NativeState, passes: int) -> None:
        honest(self, state, passes)
        state.counters[Counter.FREE_SLOTS] -= 3

    monkeypatch.setattr(NativeSession, "run", leaking)
    with pytest.raises(CheckFailed, match="3 cache slots were not given back"):
        validate(bundle, tokens=300)


def test_small_caches_and_batches_of_one(bundle: Path, tmp_path: Path) -> None:
    cache = dataclasses.replace(read_manifest(bundle).cache, max_seq_len=5, max_batch=1, slots=5)
    report: Report = validate(rewritten(bundle, tmp_path / "x", cache=cache), tokens=40, level="full")
    assert not failed(report) and report.tokens == 40


def test_the_command(bundle: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    good = latentcot("validate", rewritten(bundle, tmp_path / "good"), "--tokens", 100, "-o", "json")
    assert (good.exit_code, good.stderr) == (0, "")
    document = json.loads(good.stdout)
    assert document["passed"] and (document["target"], document["dtype"]) == ("ort", "float32")
    changed = rewritten(bundle, tmp_path / "x", lambda folder: add_to_weight(folder, "router.bias", 0.5))
    bad = latentcot("validate", changed, "--against", random_checkpoint, "--tokens", 100)
    assert bad.exit_code == 1 and "gate weights" in one_sentence(bad.stderr) and "FAILED" in bad.stdout


def test_a_cache_of_float16_has_limits_of_its_own(random_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(random_checkpoint, tmp_path / "x", target="ort", cache_dtype="float16").folder  # validates too
    report = validate(bundle, against=random_checkpoint, tokens=700, level="full")
    assert not failed(report)
    gates = {gate.name: gate for gate in report.gates}
    assert gates["logits"].limit == TOLERANCES["float16 cache"].logits
    assert TOLERANCES["float32"].logits < gates["logits"].worst < gates["logits"].limit
    # rows keep their bits in any batch, so two runs have float32's limits
    assert all(gates[name].worst == 0 and gates[name].limit == TOLERANCES["float32"].logits for name in SAME)
