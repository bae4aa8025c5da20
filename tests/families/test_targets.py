"""Every family from its published layout to tokens, by the command line, on both targets: the oracle's all the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.workload import Batch
from latentcot_export.checkpoint import Checkpoint, family_names
from latentcot_export.errors import InputError
from latentcot_export.model import LatentCoT, token_major
from latentcot_export.spec.words import recurrence_words
from tests.cli.terminal import latentcot
from tests.families.sample import SAMPLES, publish

# Tracing a portable graph takes seconds, so one sample a family; what else a family can say is for tests/ops. The stacks of
# the stock families are exported in test_equalities.py or are among these; adaptive_latent_cot is that of tests/export.
PORTABLE = ("ouro", "ponderlm2 on llama", "ponderlm3", "tah", "adaponderlm on gpt_neox", "ponderlm on gpt_neox")
ELSEWHERE = {"llama", "gpt_neox", "qwen3", "adaptive_latent_cot"}
# Of these the table is multiplied by as a whole at every step, which no quantised one can be.
WHOLE_TABLE = {name for name, (family, _) in SAMPLES.items() if family in ("ponderlm", "adaponderlm")}
# Deciders, depths known after step 1 and readouts of the last step whatever halted: the eager baseline has none of these.
NOT_EAGER = ("tah", "ponderlm3", "adaponderlm on llama")
PROMPTS = [[1, 5, 9, 3], [7], [2, 2, 4]]
NEW = 6
# What the rule of a sample does not have, and why validate skips its gate.
NO_STACK = "no stock family of checkpoints has this layer stack"
SKIPPED: dict[str, dict[str, str]] = {
    "ponderlm2": {"chunking": "a token starts when the one before it has halted"},
    "ponderlm3": {
        "chunking": "a token starts when the one before it has halted",
        "stock_depth_1": "reads out the share of step 1 alone",
    },
    "ouro": {"stock_depth_1": NO_STACK},
    "adaponderlm on llama": {"stock_depth_1": "runs on and step 3 is read out"},
}


def test_every_family_has_a_portable_sample() -> None:
    assert {SAMPLES[name][0] for name in PORTABLE} == set(family_names()) - ELSEWHERE


def run(*words: object) -> str:
    """A command's standard output; it must have ended well."""
    result = latentcot(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def report(*words: object) -> dict[str, Any]:
    return json.loads(run(*words, "-o", "json"))


def held_against_the_definition(read: Checkpoint, written: list[dict[str, Any]]) -> None:
    """Depths of all tokens that ran, and that each new one is the best behind those before it."""
    model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    tokens = [prompt + found["ids"][:-1] for prompt, found in zip(PROMPTS, written, strict=True)]
    longest = max(map(len, tokens))
    thoughts = token_major(model, torch.tensor([each + [-1] * (longest - len(each)) for each in tokens]))
    best = model.head(thoughts.mix).argmax(-1)
    for place, (prompt, found) in enumerate(zip(PROMPTS, written, strict=True)):
        assert found["depths"] == thoughts.depths[place, : len(tokens[place])].tolist()
        assert found["ids"] == best[place, len(prompt) - 1 : len(tokens[place])].tolist()


def all_the_way(folder: Path, sample: str, target: str) -> None:
    """export, validate, generate, inspect and bench of one sample."""
    read = publish(folder / "checkpoint", sample)
    bundle, last = folder / "bundle", read.recurrence.max_steps
    assert "validation passed" in run("export", folder / "checkpoint", bundle, "--target", target)

    card = (bundle / "README.md").read_text("utf-8")
    assert recurrence_words(read.recurrence) in card and ("The gate" in card) == read.recurrence.gated

    gates = {
        gate["name"]: gate
        for gate in report("validate", bundle, "--against", folder / "checkpoint", "--level", "full", "--tokens", 96)[
            "gates"
        ]
    }
    skipped = {name: gate["detail"] for name, gate in gates.items() if gate["skipped"] and name != "perplexity"}
    expected = SKIPPED.get(sample, SKIPPED.get(SAMPLES[sample][0], {}))
    assert skipped.keys() == expected.keys()
    assert all(expected[name] in detail for name, detail in skipped.items())
    assert gates["depth"]["excused"] == gates["argmax"]["excused"] == 0

    ids = [word for prompt in PROMPTS for word in ("--ids", ",".join(map(str, prompt)))]
    written = report("generate", bundle, *ids, "-n", NEW, "--ignore-eos")["sequences"]
    held_against_the_definition(read, written)

    shown = latentcot("generate", bundle, "--ids", "1", "-n", 2, "--ignore-eos", "--show-depth").stderr
    assert ("that all run" if read.recurrence.runs_on else "passes the model took") in shown

    facts = report("inspect", bundle)
    assert facts["recurrence"]["max_steps"] == last and facts["family"] == SAMPLES[sample][0]
    rows = report("bench", bundle, "-p", 4, "-n", 3, "-b", "1,3", "-r", 1, "-w", 0, "--threads", 1)["rows"]
    assert len(rows) == 4 and all(1 <= row["mean_depth"] <= last for row in rows)


@pytest.mark.parametrize("sample", SAMPLES)
def test_target_ort(tmp_path: Path, sample: str) -> None:
    all_the_way(tmp_path, sample, "ort")


@pytest.mark.parametrize("sample", PORTABLE)
def test_target_onnx(tmp_path: Path, sample: str) -> None:
    all_the_way(tmp_path, sample, "onnx")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_quantised(tmp_path: Path, sample: str, quantize: str) -> None:
    publish(tmp_path / "checkpoint", sample)
    words = ("export", tmp_path / "checkpoint", tmp_path / "bundle", "--target", "ort", "--quantize", quantize)
    if sample in WHOLE_TABLE:
        result = latentcot(*words)
        assert result.exit_code == 2 and "over the whole vocabulary; export it without --quantize" in str(result.output)
        return
    assert "validation passed" in run(*words)
    assert report("validate", tmp_path / "bundle", "--level", "full", "--tokens", 96)["passed"]


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_baseline_torch_decodes_what_the_definition_does(tmp_path: Path, sample: str, schedule: str) -> None:
    read = publish(tmp_path / "checkpoint", sample)
    if sample in NOT_EAGER:
        with pytest.raises(InputError, match="this checkpoint has another kind, leave --baseline out"):
            TorchEngine(read.model, read.recurrence, read.tensors, schedule)
        return
    engine = TorchEngine(read.model, read.recurrence, read.tensors, schedule, torch.float64)
    engine.start(Batch(np.random.default_rng(1).integers(0, 30, (3, 5)), np.zeros((3, 12), np.int64)))
    engine.decode(2)
    engine.decode(4)
    model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    thoughts = token_major(model, torch.from_numpy(engine.tokens[:, :-1]))
    assert (engine.work().depths[:, :-1] == thoughts.depths.numpy()).all()
    assert (engine.tokens[:, 5:] == model.head(thoughts.mix).argmax(-1).numpy()[:, 4:]).all()
