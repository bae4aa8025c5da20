"""`latentcot export` and `latentcot init`: options arrive where they belong, and the end says what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import latentcot_export.export as exporter
from latentcot_export.bundle import open_bundle, write_report
from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.inspection import summary
from tests.checkpoint.sample import stock
from tests.cli.terminal import latentcot, refused, tree


def test_the_bundle_is_what_was_asked_for(bundle: Path, checkpoint: Path) -> None:
    opened = open_bundle(bundle)
    manifest = opened.manifest
    assert (manifest.target, manifest.dtype, manifest.opset, manifest.quantize) == ("onnx", "float32", 24, "none")
    assert (manifest.cache.max_seq_len, manifest.cache.max_batch) == (48, 8)
    assert manifest.model == read_checkpoint(checkpoint).model


def test_the_summary_says_what_was_made_and_what_comes_next(bundle: Path) -> None:
    opened = open_bundle(bundle)
    lines = summary(opened).splitlines()
    assert lines[0].startswith(f"wrote {bundle}: ") and opened.manifest.digest()[:16] in lines[0]
    assert "up to 4 steps a token, onnx float32, opset 24" in lines[1]
    assert "at most 48 tokens, 8 sequences" in lines[2]
    assert "not validated" in lines[3]
    assert lines[4] == f"next: latentcot generate {bundle} --ids 1,2,3 --show-depth"


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            {"passed": True, "gates": [{}] * 3, "tokens": 64, "mean_depth": 2.5},
            "passed: 3 gates on 64 tokens, mean depth",
        ),
        ({"passed": False, "gates": [{}], "tokens": 64}, "FAILED: 1 gates on 64 tokens"),
        ({"gates": "none"}, "FAILED: 0 gates"),
    ],
)
def test_the_summary_of_a_validated_bundle(tmp_path: Path, report: dict[str, Any], line: str) -> None:
    from tests.bundle.sample import write_bundle

    bundle = write_bundle(tmp_path / "b")
    write_report(bundle, "validation.json", report)
    assert line in summary(bundle)
    assert '-p "..."' in summary(bundle)
    (tmp_path / "b" / "validation.json").write_text("{")
    assert "not validated" in summary(bundle)


def test_every_option_reaches_the_exporter(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    seen: dict[str, Any] = {}

    def export(*folders: str, progress: Any, **options: Any) -> Any:
        seen.update(options, folders=folders)
        progress("working")
        return open_bundle(bundle)

    monkeypatch.setattr(exporter, "export", export)
    result = latentcot("export", "from", "to")
    assert (result.exit_code, result.stderr) == (0, "importing the exporter ...\nworking ...\n")
    defaults = {"target": "onnx", "dtype": "float32", "opset": None, "max_seq_len": None, "max_batch": 64}
    defaults |= {"quantize": "none", "cache_dtype": None, "cache_slots": None, "prefill": "exact"}
    assert seen == {**defaults, "family": None, "validate": True, "force": False, "folders": ("from", "to")}
    options = "--target onnx --dtype float16 --opset 20 --max-seq-len 7 --max-batch 3 --quantize int8 --family llama"
    options += " --cache-dtype float16 --cache-slots 99 --prefill jacobi:2"
    assert latentcot("export", "from", "to", *options.split(), "--no-validate", "--force").exit_code == 0
    given = {"target": "onnx", "dtype": "float16", "opset": 20, "max_seq_len": 7, "max_batch": 3}
    given |= {"quantize": "int8", "cache_dtype": "float16", "cache_slots": 99, "prefill": "jacobi:2"}
    assert seen == {**given, "family": "llama", "validate": False, "force": True, "folders": ("from", "to")}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--dtype bfloat16", ["--dtype is bfloat16", "float32, float16", "--target ort"]),
        ("--dtype int3", ["int3", "float32"]),
        ("--target ort --dtype int3", ["--dtype is int3", "float32, float16, bfloat16"]),
        ("--target ort --opset 20", ["--opset is 20", "24"]),
        ("--target ort --cache-dtype int8", ["--cache-dtype is int8", "float32, float16"]),
        ("--target ort --cache-slots 3", ["--cache-slots is 3", "--cache-slots 4"]),
        ("--target ort --cache-slots 99999999999", ["slots is 99999999999", "--cache-slots"]),
        ("--target tensorrt-rtx --opset 24", ["--opset is 24", "it must be 20"]),
        ("--target frob", ["--target frob"]),
        ("--quantize int8", ["--quantize int8 is for --target ort"]),
        ("--quantize frob", ["--quantize is frob", "none, int8, int4"]),
        ("--cache-dtype float16", ["--cache-dtype is for --target ort"]),
        ("--cache-slots 64", ["--cache-slots", "ort"]),
        ("--opset 3", ["--opset is 3", "20 to 24"]),
        ("--max-seq-len 0", ["max_seq_len is 0", "--max-seq-len"]),
        ("--max-seq-len -5", ["max_seq_len is -5"]),
        ("--max-seq-len 99999999999999999999", ["99999999999999999999"]),
        ("--max-batch 0", ["max_batch is 0", "--max-batch"]),
        ("--family frob", ["the family 'frob' is unknown", "adaptive_latent_cot, gpt_neox, llama"]),
        ("--family llama", ["max_latents is 3"]),
    ],
)
def test_what_is_not_possible_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, options: str, parts: list[str]
) -> None:
    sentence = refused("export", checkpoint, tmp_path / "b", *options.split())
    assert all(part in sentence for part in parts), sentence
    assert tree(tmp_path) == {}


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_makes_an_adaptive_checkpoint(tmp_path: Path) -> None:
    stock(tmp_path / "base")
    options = "--max-latents 5 --router-type mlp --router-hidden-size 6 --per-step-routers --halt-threshold 0.25"
    result = latentcot("init", tmp_path / "base", tmp_path / "new", *options.split(), "--embedding-scale", "2")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert f"wrote {tmp_path / 'new'}: up to 6 steps a token" in result.stdout
    recurrence = read_checkpoint(tmp_path / "new").recurrence
    assert (recurrence.max_latents, recurrence.halt_threshold, recurrence.embedding_scale) == (5, 0.25, 2.0)
    assert (recurrence.router_type, recurrence.router_hidden_size, recurrence.router_shared) == ("mlp", 6, False)
    assert "exists already" in refused("init", tmp_path / "base", tmp_path / "new", "--max-latents", 2)
    assert latentcot("init", tmp_path / "base", tmp_path / "new", "--max-latents", 2, "--force").exit_code == 0
    assert read_checkpoint(tmp_path / "new").recurrence.max_latents == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--max-latents -1", "max_latents is -1"),
        ("--max-latents 65", "max_latents is 65"),
        ("--max-latents 2 --router-type frob", "router_type is 'frob'"),
        ("--max-latents 2 --router-type mlp", "router_hidden_size is None"),
        ("--max-latents 2 --router-type mlp --router-hidden-size 0", "router_hidden_size is 0"),
        ("--max-latents 2 --halt-threshold nan", "halt_threshold is nan"),
        ("--max-latents 2 --halt-threshold inf", "halt_threshold is inf"),
        ("--max-latents 2 --halt-threshold -0.1", "halt_threshold is -0.1"),
        ("--max-latents 2 --halt-threshold 0", "halt_threshold is 0"),
        ("--max-latents 2 --embedding-scale nan", "embedding_scale is nan"),
    ],
)
def test_init_refuses_what_no_model_can_be(tmp_path: Path, options: str, part: str) -> None:
    stock(tmp_path / "base")
    before = tree(tmp_path)
    assert part in refused("init", tmp_path / "base", tmp_path / "new", *options.split())
    assert tree(tmp_path) == before


def test_init_refuses_an_adaptive_base_and_its_own_folder(checkpoint: Path, tmp_path: Path) -> None:
    assert "starts from a stock one" in refused("init", checkpoint, tmp_path / "new", "--max-latents", 2)
    stock(tmp_path / "base")
    before = tree(tmp_path)
    sentence = refused("init", tmp_path / "base", tmp_path / "base", "--max-latents", 2, "--force")
    assert "is the base checkpoint" in sentence
    assert tree(tmp_path) == before


def test_a_checkpoint_of_init_shows_that_it_halts_at_once(tmp_path: Path) -> None:
    stock(tmp_path / "base")
    latentcot("init", tmp_path / "base", tmp_path / "new", "--max-latents", 3)
    report = json.loads(latentcot("inspect", tmp_path / "new", "-o", "json").stdout)
    assert (report["family"], report["recurrence"]["max_steps"]) == ("adaptive_latent_cot", 4)
