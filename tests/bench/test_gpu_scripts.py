"""The scripts of benchmarks/gpu where there is no GPU: through the emulation, with tiny sizes, and in their judgements."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench.commands import ROOT, run

compiled = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")


@compiled
def test_every_part_runs_through_the_emulation(tmp_path: Path) -> None:
    # what is left out is the same code with other numbers
    words = ("--emulate", "--seed", "7", "--skip", "versus/1.4B/3,pass/410M,versus/410M/3,versus/410M/5")
    done = run("benchmarks/gpu/run.py", *words, "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert page == done.stdout and str(tmp_path.parent) not in page
    compared = {key: len(lines) for key, lines in report["lines"].items()}
    # what compute-sanitizer looks at, a wide vocabulary and more than 128 rows of a prompt among it
    assert compared == {"states": 19, "contexts": 9, "rows": 6, "tokens": 2, "baselines": 1}
    names = [each["check"] for lines in report["lines"].values() for each in lines]
    assert "state, wide" in names and sum("150 rows of a prompt" in name for name in names) == 3
    assert all(each["passed"] for lines in report["lines"].values() for each in lines)
    assert report["details"] == {}  # no errors, and no figure of a machine that has no GPU
    lines = [line for line in page.splitlines() if line.startswith("| ") and "ran, emulated" in line]
    assert len(lines) == len(report["figures"]) == 17
    asked = {check["name"]: check["value"] for check in report["checks"]}
    assert {value for name, value in asked.items() if not name.endswith("failed")} == {None}
    for batch in (1, 16):
        kept = json.loads(gzip.decompress((tmp_path / f"trace-1.4B-{batch}.json.gz").read_bytes()))
        assert kept["traceEvents"] and "traceName" not in kept
    assert len(list(tmp_path.iterdir())) == 4  # and nothing of a half-written file


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "finds no CUDA device"),
        ("--emulate --only states,nothing", "names 'nothing'"),
        ("--emulate --minutes 0", "must be above 0"),
    ],
)
def test_arguments_are_refused_in_one_sentence(words: str, told: str, tmp_path: Path) -> None:
    if not words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("benchmarks/gpu/run.py", *words.split(), "-o", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and told in done.stderr
    assert not (tmp_path / "out").exists()


@compiled
def test_a_part_for_which_there_is_no_time_is_left_out(tmp_path: Path) -> None:
    done = run("benchmarks/gpu/run.py", "--emulate", "--minutes", "0.01", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr and "ran, emulated" not in done.stdout
    assert json.loads((tmp_path / "gpu.json").read_text("utf-8"))["figures"] == []


def test_the_published_table_has_the_lines_of_the_script(scripts: None, tmp_path: Path) -> None:
    from gpu import groups, parts, table

    published = (ROOT / "benchmarks/results/gpu.md").read_text("utf-8")
    told = json.loads((ROOT / "benchmarks/results/gpu.json").read_text("utf-8"))
    assert all(f"| {line.words} |" in published for line in (*table.GROUPS, *table.FIGURES))
    asked = table.checks({}, {})
    # every part is in one group
    assert sorted(name for names, _ in groups.GROUPS for name in names) == sorted(name for name, _, _ in parts.PARTS)
    assert [(each["name"], each["limit"]) for each in told["checks"]] == [(each.name, each.limit) for each in asked]
    if "machine" not in told:  # nobody has had a GPU yet: not a figure in it
        done = run("benchmarks/gpu/run.py", "--table-only", "-o", str(tmp_path))
        assert done.stdout == published


def test_a_kernel_that_is_wrong_is_found(scripts: None) -> None:
    from gpu.kernel_checks import RULES, SHAPES, check_rows
    from gpu.references import References
    from gpu.simulate import Case, Simulation

    from latentcot_export.errors import CheckFailed

    class Wrong(References):
        """Each op right but for a trifle that one of its users would not see at once."""

        which = ""

        def advance(self, rows: Any, tables: Any, out: Any, recurrence: Any) -> None:
            super().advance(rows, tables, out, recurrence)
            if self.which == "advance":
                tables["counters"][6] += 1

        def attention(self, row: Any, tables: Any, out: Any, *rest: Any) -> None:
            super().attention(row, tables, out, *rest)
            if self.which == "attention":
                out[0, 0] += 1e-3

        def halt(self, row: Any, tables: Any, out: Any, recurrence: Any) -> None:
            super().halt(row, tables, out, recurrence)
            if self.which == "halt":
                out[6][-1] = 1  # behind the live rows

        def choose(self, logits: Any, rows: Any, tables: Any, chosen: Any) -> None:
            super().choose(logits, rows, tables, chosen)
            if self.which == "choose":
                chosen[-1] = 0

        def gated_unit(self, gate_up: Any, out: Any) -> None:
            if self.which != "unwritten":
                super().gated_unit(gate_up, out)

    case = Case(RULES["reach, duo"], SHAPES[3], sampled=True, passes=6)
    wrong = Wrong()
    Simulation(case, wrong, 1).run()
    words_of = {"advance": "counters", "attention": "away", "halt": "head_index", "choose": "chosen"}
    for wrong.which, words in words_of.items():
        with pytest.raises(CheckFailed, match=words):
            Simulation(case, wrong, 1).run()
    wrong.which = "unwritten"
    assert not any(line["passed"] for line in check_rows(wrong, True, 1))


def test_calls_that_wait_are_those_within_the_burst(scripts: None) -> None:
    from gpu.trace import BURST, calls_within, kernels_of, waits

    from latentcot_export.errors import LatentCoTError

    def call(name: str, ts: float, cat: str = "cuda_runtime") -> dict[str, Any]:
        return {"name": name, "ts": ts, "cat": cat}

    span = {"name": BURST, "cat": "user_annotation", "ts": 10.0, "dur": 5.0}
    events = [call("cudaDeviceSynchronize", 9), call("cudaGraphLaunch", 11), call("cudaGraphLaunch", 12), span]
    events += [call("cudaDeviceSynchronize", 16), call("cudaStreamSynchronize", 12, "cpu_op")]
    assert calls_within(events) == {"cudaGraphLaunch": 2} and waits(calls_within(events)) == 0
    events += [call("cuStreamSynchronize", 13, "cuda_driver"), call("cudaMemcpyAsync", 14)]
    assert waits(calls_within(events)) == 2
    with pytest.raises(LatentCoTError, match="no span"):
        calls_within(events[:3])
    ran = [call(f"kernel {i}", 0, "kernel") | {"dur": i % 20} for i in range(60)]
    assert kernels_of([*events, *ran, *ran])[:1] == [{"name": "kernel 19", "us": 38.0, "calls": 2}]
    assert len(kernels_of(ran)) == 15


def test_bytes_of_a_pass_are_those_that_its_rows_see(scripts: None) -> None:
    from gpu.decoding import Decoding
    from gpu.references import References
    from gpu.sizes import TINY, Weights, latents, random_on_device

    model, cpu = TINY["1.4B"], torch.device("cpu")
    tensors = random_on_device(model, latents(3), cpu)
    weights = Weights.of(model, latents(3), tensors, cpu, torch.float32)
    depths = np.array([[2, 1, 3, 2, 1, 4, 1, 1, 1]], np.int32)
    decoding = Decoding(model, latents(3), weights, References(), 4, depths)
    # token 3 runs steps 1 and 2 over tokens of depths 2, 1, 3; token 4 step 1; token 5 steps 1 and 2 of 4
    seen = (3 + 1) + (2 + 1 + 2 + 2) + (4 + 1) + (5 + 1) + (2 + 1 + 2 + 2 + 1 + 2)
    slot = model.num_layers * 2 * model.num_kv_heads * 64 * 4
    assert decoding.cache_bytes(5) == seen / 5 * slot
    assert decoding.burst(5)[1] == 2  # tokens


def test_the_sanitizers_words_are_understood(scripts: None) -> None:
    from gpu.sanitizer import findings

    assert findings("memcheck", "...\n========= ERROR SUMMARY: 3 errors\n") == 3
    assert findings("memcheck", "========= ERROR SUMMARY: 0 errors") == 0
    assert findings("racecheck", "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)") == 2
    assert findings("memcheck", "Device not supported") is None


# What the process of a group runs in place of the parts.
FAKE = f"""
import json, os, signal, sys, time
sys.path[:1] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
from gpu import parts, run
def fine(run):
    published = json.loads((run.folder / "gpu.json").read_text())["lines"]
    run.lines["baselines"] = [parts.kernel_checks.line(" ".join(published), lambda: (1, 0.0, "rows"))]
    run.measured["copy"] = 1.0
def raises(run):
    return {{}}["x"]
acts = {{"rows": raises, "baselines": fine}}
acts |= {{"contexts": lambda run: os.kill(os.getpid(), signal.SIGKILL), "tokens": lambda run: time.sleep(600)}}
parts.PARTS = tuple((name, 0.0, act) for name, act in acts.items())
run.main()
"""


@compiled
def test_a_group_that_ends_badly_leaves_the_others_alone(scripts: None, tmp_path: Path, capsys: Any) -> None:
    from gpu import groups
    from gpu import run as script
    from gpu.report import Report

    from latentcot_export.errors import InputError

    (tmp_path / "fake.py").write_text(FAKE)
    asked = ((("rows", "contexts"), 60.0), (("tokens",), 1.0), (("baselines", "waits"), 60.0), (("copy",), 1e9))
    given: Any = {"skip": {"waits"}, "groups": asked, "script": tmp_path / "fake.py"}
    report = groups.supervise(Report.new(7, True), tmp_path, time.monotonic() + 200, ["--emulate"], **given)
    assert list(report.details["errors"].items()) == [
        ("rows", "KeyError: 'x'"),
        ("contexts", "its process was ended by signal 9"),
        ("tokens", "not done when its process was ended after 1 s"),
    ]
    assert not any(report.lines[key][0]["passed"] for key in report.details["errors"]) and report.status == 1
    assert list(report.details["left_out"]) == ["copy"] and list(report.measured) == ["copy"]
    assert report.lines["baselines"][0]["check"] == "rows contexts tokens"  # all that was published before it
    assert Report.read(tmp_path / "gpu.json").lines == report.lines
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "- tokens: failed, not done" in page and "- copy: left out" in page and "ran, emulated" in page

    # a later call adds to it, where it is of the same run
    words = ["--emulate", "--only", "rows", "--merge", str(tmp_path / "gpu.json")]
    done = run("benchmarks/gpu/run.py", *words, "-o", str(tmp_path / "later"))
    later = Report.read(tmp_path / "later/gpu.json")
    assert done.returncode == 1 and len(later.lines["rows"]) == 6 and list(later.measured) == ["copy"]
    assert list(later.details["errors"]) == ["contexts", "tokens"] and later.head["seed"] == 7
    assert later.head["command"].endswith("-o later") and " && python benchmarks/gpu/run.py" in later.head["command"]
    other = script.parsed([*words, "--seed", "8", "-o", str(tmp_path / "other")])
    assert not script.begun(other).lines and "its seed is 7, here it is 8" in capsys.readouterr().err
    other.out = tmp_path
    with pytest.raises(InputError, match="another run"):
        script.begun(other)


def test_the_shell_script_keeps_a_log_and_the_status(tmp_path: Path) -> None:
    done = run("benchmarks/gpu/run.sh", "--table-only", "-o", str(tmp_path), program="bash", PYTHON=sys.executable)
    assert done.returncode == 0 and (tmp_path / "gpu.log").read_text() == done.stdout
    done = run("benchmarks/gpu/run.sh", "--merge", "x", "-o", str(tmp_path), program="bash", PYTHON=sys.executable)
    assert done.returncode == 2 and (tmp_path / "gpu.log").read_text().startswith("error: ")


def test_what_hangs_ends_with_all_it_started(scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gpu import sanitizer
    from gpu.session import finished

    # neither hears the wish that it may end
    command = "trap '' TERM; sleep 600 & echo $! > child; echo some words; wait; wait"
    assert finished(["bash", "-c", command], 3.0, 0.2, cwd=tmp_path) is None
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until whoever adopts orphans has seen it
            os.kill(int((tmp_path / "child").read_text()), 0)
            time.sleep(0.05)
    assert finished(["bash", "-c", "exit 3"], 10) == 3
    monkeypatch.setattr(sanitizer, "command", lambda tool, seed: ["bash", "-c", "echo some words; sleep 600"])
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: name)
    (line,) = sanitizer.check("memcheck", 3.0, 1)
    assert not line["passed"] and line["why"] == "not done after 3 s, the last words: some words"


def test_errors_of_every_kind_become_lines(scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gpu import continuous, library, parts
    from gpu.kernel_checks import line
    from gpu.references import References
    from gpu.report import Report
    from gpu.sizes import TINY, Weights, latents, random_on_device

    from latentcot_export.errors import CheckFailed, InputError

    def fails(*_: Any) -> Any:
        raise RuntimeError

    assert line("x", fails)["why"] == "RuntimeError"
    fakes = {"BUILT": tmp_path, "library_path": lambda _: tmp_path / "none.so", "command": lambda *_: ["false"]}
    for name, fake in fakes.items():
        monkeypatch.setattr(library, name, fake)
    build = library.Build(True)
    for _ in range(2):
        with pytest.raises(InputError, match="does not compile"):
            build.library()

    # a compiler that fails takes its own figure alone
    model, cpu = TINY["1.4B"], torch.device("cpu")
    tensors = random_on_device(model, latents(3), cpu)
    weights = Weights.of(model, latents(3), tensors, cpu, torch.float32)
    report = Report({})
    made: Any = types.SimpleNamespace(report=report, measured=report.measured, details=report.details, tiny=True)
    made.size, made.ops, made.layer = lambda _: (model, tensors, weights), References(), fails
    made.publish = made.free = lambda: None
    parts.against("1.4B", 3)(made)
    assert report.details["errors"] == {"versus/1.4B/3/compiled": "RuntimeError"}
    assert sorted(report.measured) == [f"versus/1.4B/3/{name}" for name in ("oracle", "ours", "static")]

    # passes that run nothing do not run for ever
    requests = continuous.Backlog.of(model.vocab_size, parts.DEPTHS[3].depths(6, 4), 2, 4)
    shape = continuous.Shape(2, 6, (2, 4), 2, spare=2, burst=3, full=3)
    course = continuous.Course(model, latents(3), weights, References(), requests, shape, False)
    monkeypatch.setattr(course.passes, "burst", lambda count: None)
    with pytest.raises(CheckFailed, match="ran no row"):
        course.segment()
