"""`latentcot inspect`: every fact of a folder, in every format, with no more dependencies than it needs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentcot_cli.main import EXTRA
from latentcot_export.bundle import open_bundle, write_report
from latentcot_export.checkpoint import tensor_shapes
from latentcot_export.checkpoint.families import find_family
from latentcot_export.checkpoint.read import specs_of
from latentcot_export.errors import InputError
from latentcot_export.inspection import inspect
from latentcot_export.inspection.graph import graph_report
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.spec.words import backbone_words, parameters, recurrence_words
from latentcot_export.tables import FORMATS
from tests.bundle.sample import write_bundle
from tests.checkpoint.sample import adaptive, edit_config, edit_tensors, shard, stock
from tests.cli.terminal import latentcot, shell_without
from tests.families.sample import SAMPLES, configs, publish
from tests.specs import models, recurrences


def report_of(folder: Path, *options: str) -> dict[str, Any]:
    result = latentcot("inspect", folder, "-o", "json", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["schema_version"] == 1
    return report


def test_a_bundle_shows_its_manifest_and_its_graph(bundle: Path) -> None:
    report, opened = report_of(bundle), open_bundle(bundle)
    assert (report["kind"], report["digest"], report["opset"]) == ("bundle", opened.manifest.digest(), 24)
    assert report["recurrence"]["max_steps"] == 4
    # keys and values of 2 layers, 2 heads of 4, float32
    assert report["cache"]["bytes_per_token_per_step"] == 2 * 2 * 2 * 4 * 4
    assert report["cache"]["bytes_per_sequence_at_full_depth"] == 2 * 2 * 2 * 4 * 4 * 48 * 4
    graph = report["graph"]
    assert graph["opsets"] == {"ai.onnx": 24}
    assert graph["operators"]["Loop"] >= 1 and sum(graph["operators"].values()) > 100
    carried = {each["name"]: each for each in graph["carried"]}
    assert carried["keys_1"] == {"name": "keys_1", "dtype": "float32", "axes": ["batch", 2, "slots", 4]}
    assert carried["tokens"]["dtype"] == "int64" and carried["stopped"]["dtype"] == "bool"
    assert {"forced_depth", "uniform", "max_passes"} <= {each["name"] for each in graph["inputs"]}
    for name, entry in report["files"].items():
        data = (bundle / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert report["weights"]["file_bytes"] <= 1.03 * report["weights"]["tensor_bytes"]
    assert report["reports"] == {"validation.json": "none", "bench.json": "none"}


def test_the_counts_are_those_of_a_second_walk_through_the_graph(bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"), load_external_data=False)

    def count(graph: onnx.GraphProto) -> int:
        inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        return len(graph.node) + sum(map(count, inner))

    assert sum(report_of(bundle)["graph"]["operators"].values()) == count(model.graph)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_every_format_holds_the_facts(bundle: Path, checkpoint: Path, form: str, kind: str) -> None:
    result = latentcot("inspect", bundle if kind == "bundle" else checkpoint, "-o", form)
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout
    sha256 = hashlib.sha256((checkpoint / "config.json").read_bytes()).hexdigest()
    for part in ("adaptive_latent_cot", "Every token takes 1 to 4 steps", sha256, "float32", "config.json"):
        assert part in text
    for part in ("keys_0", "slots", "Loop", "onnxruntime") if kind == "bundle" else ("router.weight", "rms_norm_eps"):
        assert part in text
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {"section": "parameters", "name": "head", "value": "640"} in rows
        assert all(set(row) == {"section", "name", "value"} for row in rows)
    if form == "jsonl":
        assert text.count("\n") == 1 and json.loads(text)["schema_version"] == 1
    if form == "md":
        assert "\n## Model\n\n| name | value |\n" in text


def test_reports_are_shown_for_what_they_are(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle, copy)
    write_report(open_bundle(copy), "validation.json", {"passed": True})
    write_report(open_bundle(copy), "bench.json", {})
    assert report_of(copy)["reports"] == {"validation.json": "passed", "bench.json": "measured this bundle"}
    write_report(open_bundle(copy), "validation.json", {"passed": "yes"})
    (copy / "bench.json").write_text("{}")
    assert report_of(copy)["reports"] == {"validation.json": "failed", "bench.json": "stale: of another manifest"}
    (copy / "bench.json").write_text("{")
    assert report_of(copy)["reports"]["bench.json"] == "unreadable"


def test_without_the_export_extra_a_bundle_is_shown_and_the_rest_named(bundle: Path, checkpoint: Path) -> None:
    done = shell_without(EXTRA, "inspect", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "operators need onnx: `pip install '.[export]'`" in done.stdout
    assert "Every token takes 1 to 4 steps" in done.stdout
    done = shell_without(EXTRA, "inspect", checkpoint)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install '.[export]'" in done.stderr and "Traceback" not in done.stderr


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_shows_keys_tensors_and_files(tmp_path: Path) -> None:
    adaptive(tmp_path / "c")
    edit_config(tmp_path / "c", eos_token_id=[3, 4], transformers_version="5", initializer_range=0.02)
    (tmp_path / "c" / "notes.txt").write_text("not read")
    report = report_of(tmp_path / "c")
    assert (report["kind"], report["family"], report["dtype"]) == ("checkpoint", "adaptive_latent_cot", "float32")
    assert {"transformers_version", "initializer_range"} <= set(report["config_keys"]["not_read"])
    assert {"model_type", "max_latents", "hidden_size", "eos_token_id"} <= set(report["config_keys"]["read"])
    assert report["tokens"] == {"eos_token_ids": [3, 4], "bos_token_id": None}
    tensors = {each["name"]: each for each in report["tensors"]}
    assert tensors["router.weight"] == {
        **{"name": "router.weight", "dtype": "float32", "axes": [1, 16], "bytes": 64},
        "used": True,
    }
    assert sum(each["bytes"] for each in tensors.values()) == 4 * report["parameters"]["total"]
    assert report["files"]["notes.txt"] == {"size": 8, "sha256": None}
    data = (tmp_path / "c" / "model.safetensors").read_bytes()
    assert report["files"]["model.safetensors"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_stock_sharded_half_precision_checkpoint(tmp_path: Path) -> None:
    checkpoint = stock(tmp_path / "c", dtype=torch.bfloat16)
    weight_map = shard(tmp_path / "c")
    report = report_of(tmp_path / "c")
    assert (report["family"], report["dtype"]) == ("llama", "bfloat16")
    assert report["elements_by_dtype"] == {"bfloat16": report["parameters"]["total"]}
    assert "takes 1 step" in report["recurrence_words"] and report["parameters"]["router"] == 0
    for name in ("config.json", "model.safetensors.index.json", *weight_map.values()):
        assert report["files"][name]["sha256"] is not None
    assert len(report["tensors"]) == len(checkpoint.tensors)


def test_a_tensor_that_is_checked_and_dropped_is_not_called_used(tmp_path: Path) -> None:
    from tests.checkpoint.sample import TIED

    checkpoint = stock(tmp_path / "c", TIED)
    edit_tensors(tmp_path / "c", {"lm_head.weight": checkpoint.tensors["model.embed_tokens.weight"].clone()})
    used = {each["name"]: each["used"] for each in report_of(tmp_path / "c")["tensors"]}
    assert used["lm_head.weight"] is False and used["model.embed_tokens.weight"] is True


def test_progress_counts_every_byte_that_is_hashed(bundle: Path, checkpoint: Path) -> None:
    for folder in (bundle, checkpoint):
        told: list[tuple[int, int]] = []
        report = inspect(folder, lambda done, total, told=told: told.append((done, total)))
        hashed = sum(entry["size"] for entry in report["files"].values() if entry["sha256"])
        assert told[-1] == (hashed, hashed) and told == sorted(told)


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_family_is_recognised_and_told_in_words(tmp_path: Path, sample: str) -> None:
    checkpoint = publish(tmp_path / "c", sample)
    report = report_of(tmp_path / "c")
    assert report["family"] == SAMPLES[sample][0] == report_of(tmp_path / "c", "--family", checkpoint.family)["family"]
    for words in ("recurrence_words", "backbone_words"):
        assert report[words].endswith(".") and report[words].isprintable()
    assert all(each["used"] for each in report["tensors"] if "early_exit" not in each["name"])
    assert not set(report["config_keys"]["read"]) & set(report["config_keys"]["not_read"])
    assert report["parameters"]["total"] == sum(value.numel() for value in checkpoint.tensors.values())
    assert all(report["files"][name]["sha256"] for name in ("config.json", "model.safetensors"))


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("ouro", "newest step up to its own number"),
        ("ouro", "the token halts once the product of these is 0.25 or less. Its output is its last hidden state"),
        ("ouro as released", "A halted token runs on all the same"),
        ("ouro at 1.0", "Every token takes 4 steps, always"),
        ("ouro weighted", "mixed by the probability of halting after each"),
        ("ponderlm2 on gpt_neox", "step 1 reads its embedding times 6.32456, each further step the last hidden state"),
        ("ponderlm2 on llama", "attends to every step of earlier tokens"),
        ("ponderlm2 interpolated", "softmax over the 5 largest logits of the readout so far, times 4."),
        ("ponderlm on llama", "step 1 reads its embedding times 12, each further step its former input plus"),
        ("adaponderlm on gpt_neox", "two-layer router of width 64 (one per step)"),
        ("adaponderlm on llama", "with its input frozen once halted"),
        ("ponderlm3", "gives each step its share; a step is not run once the shares from it on sum to 0.0001 or less"),
        ("tah", "decider on the states of layers 0, 1, 2 and the 7 largest logits (shared by all steps)"),
        ("tah", "an adapter of rank 2"),
        ("tah with one iteration", "takes 1 step"),
    ],
)
def test_the_words_of_a_family_say_its_rule(tmp_path: Path, sample: str, words: str) -> None:
    publish(tmp_path / "c", sample)
    assert words in report_of(tmp_path / "c")["recurrence_words"]


def test_the_backbone_and_the_keys_are_told(tmp_path: Path) -> None:
    publish(tmp_path / "c", "ponderlm2 on gpt_neox")
    edit_config(tmp_path / "c", drop=("rope_parameters",), rotary_pct=0.5, rotary_emb_base=99, use_cache=True)
    report = report_of(tmp_path / "c")
    assert (
        "layer norms with bias before attention and before the MLP, which stand side by side"
        in (report["backbone_words"])
    )
    assert (
        "RoPE (default, base 99) on the first 4 dimensions of each head; a plain gelu MLP" in report["backbone_words"]
    )
    assert {"rotary_pct", "rotary_emb_base", "num_latent_thoughts", "num_jacobi_iterations"} <= set(
        report["config_keys"]["read"]
    )
    assert "use_cache" in report["config_keys"]["not_read"]
    assert "4 layers" not in report["backbone_words"]
    text = latentcot("inspect", tmp_path / "c").stdout
    assert "Every token takes 3 steps, always" in text and "2 layers of width 16" in text


def test_a_wrong_family_and_a_family_of_a_bundle_get_a_sentence(bundle: Path, tmp_path: Path) -> None:
    publish(tmp_path / "c", "ouro")
    result = latentcot("inspect", tmp_path / "c", "--family", "llama")
    assert result.exit_code == 2 and "total_ut_steps is 4, which makes this a recurrent checkpoint of" in result.stderr
    result = latentcot("inspect", tmp_path / "c", "--family", "nobody")
    assert result.exit_code == 2 and "'nobody' is unknown; known families are" in result.stderr
    result = latentcot("inspect", bundle, "--family", "llama")
    assert result.exit_code == 2 and "leave --family out" in result.stderr


@given(models(), recurrences())
def test_parameters_are_the_elements_of_the_tensors(model: ModelSpec, recurrence: RecurrenceSpec) -> None:
    shapes = tensor_shapes(model, recurrence)
    counts = parameters(model, recurrence)
    assert counts["total"] == sum(math.prod(shape) for shape in shapes.values())
    assert counts["router"] == sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("router"))
    assert counts["head"] == math.prod(shapes.get("lm_head.weight", (0,)))


@given(configs())
def test_parameters_of_every_family_are_the_elements_of_its_tensors(drawn: tuple[str, dict[str, Any]]) -> None:
    model, recurrence = specs_of(find_family(drawn[0], "c"), drawn[1], "c")
    counts, shapes = parameters(model, recurrence), tensor_shapes(model, recurrence)
    assert counts["total"] == sum(math.prod(shape) for shape in shapes.values())
    assert counts["adapter"] == sum(math.prod(shape) for name, shape in shapes.items() if ".adapter_" in name)
    assert backbone_words(model).isprintable() and recurrence_words(recurrence).isprintable()


@given(recurrences())
def test_the_words_hold_every_number_of_the_recurrence(recurrence: RecurrenceSpec) -> None:
    words = recurrence_words(recurrence)
    assert words.endswith(".") and words.isprintable()
    assert (f"times {recurrence.embedding_scale:g}" in words) == (recurrence.embedding_scale != 1)
    if recurrence.max_latents:
        assert f"1 to {recurrence.max_steps} steps" in words and f" {recurrence.halt_threshold:g} or less" in words
        assert ("shared by all steps" in words) == recurrence.router_shared
        assert ("of width 7" in words) == (recurrence.router_type == "mlp")


# --- hostile graphs --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    try:
        graph_report(data, "file model.onnx")
    except InputError as error:
        assert str(error).startswith("file model.onnx is not an ONNX model")


@given(st.data())
def test_a_damaged_graph_is_shown_or_refused_and_never_crashes(bundle: Path, data: st.DataObject) -> None:
    raw = bytearray((bundle / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        json.dumps(graph_report(bytes(raw), "file model.onnx"))
    except InputError as error:
        assert str(error).isprintable()


def test_names_in_a_graph_cannot_steer_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b[31mred\n[bold]\r"
    value = onnx.helper.make_tensor_value_info(evil, 99, [evil, None, -1])
    node = onnx.helper.make_node(evil, [evil], [evil], domain=evil)
    graph = onnx.helper.make_graph([node], evil, [value], [value])
    model = onnx.helper.make_model(graph, producer_name=evil, opset_imports=[onnx.helper.make_opsetid(evil, 1)])
    from tests.bundle import sample

    with sample.BundleWriter(tmp_path / "b") as writer:
        sample.write_files(writer.folder, {**sample.FILES, "model.onnx": model.SerializeToString()})
        writer.commit(sample.manifest())
    for form in FORMATS:
        result = latentcot("inspect", tmp_path / "b", "-o", form)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.stdout and "\r" not in result.stdout
        assert "red" in result.stdout


def test_a_bundle_whose_graph_is_no_graph(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    result = latentcot("inspect", tmp_path / "b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "file model.onnx of bundle" in result.stderr and "is not an ONNX model" in result.stderr


def test_graphs_nested_without_end_are_bounded() -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("If", ["x"], ["y"])], "g", [], [])
    for _ in range(20):
        node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        outer = onnx.helper.make_graph([node], "g", [], [])
        graph = outer if len(outer.SerializeToString()) < 1 << 20 else graph
    report = graph_report(onnx.helper.make_model(graph).SerializeToString(), "g")
    assert report["operators"]["If"] > 1000
