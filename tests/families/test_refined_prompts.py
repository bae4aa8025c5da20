"""`--prefill jacobi:R` by the command line: export, validate, generate, inspect and bench; who has no such thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcot_export.export import export
from latentcot_export.model import LatentCoT
from latentcot_export.model.jacobi import refined
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.validate import validate
from latentcot_export.validate.packed import PackedEngine
from tests.cli.terminal import latentcot
from tests.families.sample import publish
from tests.runtime.sample import rebundle

PROMPTS, NEW = [[1, 5, 9, 3], [7], [2, 2, 4, 11, 19, 23, 4, 1, 0, 8]], 6
PONDERLM2 = ("ponderlm2 on llama", "ponderlm2 on gpt_neox", "ponderlm2 interpolated")


def run(*words: object) -> str:
    result = latentcot(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def report(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "-o", "json"))
    return found


@pytest.mark.parametrize("sample", PONDERLM2)
def test_all_the_way(tmp_path: Path, sample: str) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    read = publish(checkpoint, sample)
    told = run("export", checkpoint, bundle, "--target", "ort", "--prefill", "jacobi:1")
    assert "validation passed" in told and "prefill jacobi:1" in told
    words = "A prompt is refined in parallel (jacobi:1): 4 passes over all its tokens"
    assert words in (bundle / "README.md").read_text("utf-8")
    facts = report("inspect", bundle)
    assert facts["prefill"] == "jacobi:1" and words in facts["prefill_words"]
    assert words in run("inspect", bundle).replace("\n", " ")

    found = report("validate", bundle, "--against", checkpoint, "--level", "full", "--tokens", 96)
    assert found["passed"] and found["prefill"] == "jacobi:1"
    skipped = {gate["name"]: gate["detail"] for gate in found["gates"] if gate["skipped"]}
    assert skipped.keys() == {"chunking", "prefill_decode", "perplexity"}
    assert "only come near to what decoding gives" in skipped["prefill_decode"]
    assert "prompts run as jacobi:1" in run("validate", bundle, "--tokens", 48)

    ids = [word for prompt in PROMPTS for word in ("--ids", ",".join(map(str, prompt)))]
    written = report("generate", bundle, *ids, "-n", NEW, "--ignore-eos")["sequences"]
    model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    for prompt, each in zip(PROMPTS, written, strict=True):
        tokens = torch.tensor([prompt + each["ids"][:-1]])
        thoughts = refined(model, tokens, 1, torch.tensor([len(prompt)]))
        assert each["ids"] == model.head(thoughts.mix)[0, len(prompt) - 1 :].argmax(-1).tolist()
        assert each["depths"] == thoughts.depths[0].tolist()
    cuda = latentcot("generate", bundle, "--ids", "1", "--device", "cuda")
    assert cuda.exit_code == 2 and "refines its prompts (jacobi:1), which runs on device cpu alone" in str(cuda.output)
    rows = report("bench", bundle, "-p", 4, "-n", 3, "-b", "1,3", "-r", 1, "-w", 0, "--threads", 1)["rows"]
    assert all(row["mean_depth"] == read.recurrence.max_steps for row in rows)
    assert all(row["kv_bytes_in_use"] == row["kv_bytes_ideal"] for row in rows)
    one = next(row for row in rows if row["test"] == "pp4" and row["batch"] == 1)
    assert one["ttft_ms"]["p50"] * one["passes_per_s"] == pytest.approx(1000 * 4)  # K + R + 1 passes


def test_quantised(tmp_path: Path) -> None:
    publish(tmp_path / "c", "ponderlm2 on llama")
    words = ("--target", "ort", "--prefill", "jacobi:2", "--quantize", "int8", "--cache-dtype", "float16")
    assert "validation passed" in run("export", tmp_path / "c", tmp_path / "b", *words)


def test_an_exact_bundle_is_the_one_it_was(tmp_path: Path) -> None:
    publish(tmp_path / "c", "ponderlm2 on llama")
    plain = export(tmp_path / "c", tmp_path / "plain", target="ort", validate=False)
    exact = export(tmp_path / "c", tmp_path / "exact", target="ort", prefill="exact", validate=False)
    assert plain.manifest.digest() == exact.manifest.digest()
    assert "prefill" not in (plain.folder / "latentcot.json").read_text("utf-8")
    assert b"jacobi" not in plain.read_bytes("model.onnx") and "refined" not in plain.read_bytes("README.md").decode()


class Lazy(PackedEngine):
    """Leaves the rounds out."""

    def _state(self, *sizes: int) -> NativeState:
        state = super()._state(*sizes)
        state.refining.rounds = 0
        return state


def test_validate_sees_a_bundle_whose_prefill_is_another(tmp_path: Path) -> None:
    """The graph of an exact bundle cannot refine, and one that runs fewer rounds than it says gives other logits."""
    publish(tmp_path / "c", "ponderlm2 on llama")
    exact = export(tmp_path / "c", tmp_path / "exact", target="ort", validate=False)
    lie = rebundle(exact.folder, tmp_path / "lie", prefill="jacobi:1")
    result = latentcot("validate", lie)
    assert result.exit_code != 0 and "a cell must hold the slot of its one row" in str(result.output)
    refines = export(tmp_path / "c", tmp_path / "refines", target="ort", prefill="jacobi:1", validate=False)

    assert validate(refines, tokens=48).passed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentcot_export.validate.run.engine_of", Lazy)
        found = validate(refines, tokens=48)
    assert {gate.name for gate in found.gates if not gate.passed} >= {"logits"}


@pytest.mark.parametrize(
    ("sample", "words", "sentence"),
    [
        ("ponderlm2 on llama", ["--prefill", "jacobi:2"], "is for --target ort and this export's target is onnx"),
        ("ponderlm2 on llama", ["--target", "ort", "--prefill", "jacobi"], "must be exact or jacobi:R with R from 0"),
        ("ponderlm2 on llama", ["--target", "ort", "--prefill", "fast"], "--prefill is 'fast', it must be exact or"),
        *[
            (sample, ["--target", "ort", "--prefill", "jacobi:2"], "leave it out: its prompts are exact")
            for sample in ("llama", "adaptive", "ponderlm3", "ponderlm on llama", "ouro", "tah")
        ],
    ],
)
def test_what_cannot_be_refined_is_refused_in_one_sentence(
    tmp_path: Path, sample: str, words: list[str], sentence: str
) -> None:
    publish(tmp_path / "c", sample)
    result = latentcot("export", tmp_path / "c", tmp_path / "b", *words)
    assert result.exit_code == 2 and sentence in str(result.output) and not (tmp_path / "b").exists()
