from __future__ import annotations

import csv
import getpass
import io
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.bench import FORMATS, Settings, bench, summary, text_of
from latentcot_export.bundle import Bundle, read_report
from latentcot_export.errors import InputError
from tests.bench.test_measure import KEYS

ROOT = Path(__file__).resolve().parents[2]
SMALL = Settings(prompt=6, new=3, batches=(1, 2), depth="fixed:2", runs=2, warmup=0, threads=1)


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> dict[str, Any]:
    return bench(bundle, SMALL)


def test_the_report_has_the_keys_of_its_schema(report: dict[str, Any]) -> None:
    assert report["schema_version"] == 1
    assert list(json.loads(text_of(report, "json"))) == ["schema_version", "machine", "rows"]
    assert [row["test"] for row in report["rows"]] == ["pp6", "tg3"] * 2
    for row in report["rows"]:
        assert list(row) == KEYS
        assert (row["engine"], row["target"], row["dtype"], row["quantize"]) == ("bundle", "onnx", "float32", "none")
        assert row["mean_depth"] == row["max_depth"] == 2
        assert row["occupancy"] == 1
        assert row["tokens_per_s"]["mean"] > 0 and row["ttft_ms"]["p99"] >= row["ttft_ms"]["p50"] > 0
        assert (row["tpot_ms"]["p50"] is None) == row["test"].startswith("pp")
        assert row["kv_bytes_in_use"] >= row["kv_bytes_ideal"] > 0
    assert report["workload"] == {"prompts": "random ids", "depth": "fixed:2"}
    assert report["command"].startswith("latentcot bench bundle -p 6 -n 3 -b 1,2 ")


def test_the_machine_is_told_and_its_owner_is_not(report: dict[str, Any]) -> None:
    machine = report["machine"]
    assert set(machine) == {"cpu", "cores", "threads", "device", "memory_gib", "os", "python", "versions"}
    assert (
        machine["device"] == "cpu" and machine["threads"] == 1 and machine["cores"] >= 1 and machine["memory_gib"] > 0
    )
    assert {"onnxruntime", "numpy", "torch", "transformers"} <= set(machine["versions"])
    said = json.dumps(report) + "".join(summary(report))
    assert str(ROOT) not in said
    assert platform.node() not in said.split()
    assert getpass.getuser() not in said.split()


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_holds_every_row(report: dict[str, Any], style: str) -> None:
    text = text_of(report, style)
    assert text.endswith("\n") and not text.endswith("\n\n")
    if style == "json":
        assert json.loads(text)["rows"] == report["rows"]
    elif style == "jsonl":
        assert [json.loads(line) for line in text.splitlines()] == [
            {"schema_version": 1, **row} for row in report["rows"]
        ]
    elif style == "csv":
        lines = list(csv.DictReader(io.StringIO(text)))
        assert len(lines) == 4
        assert float(lines[0]["tokens_per_s_mean"]) == report["rows"][0]["tokens_per_s"]["mean"]
        assert lines[0]["tpot_ms_p50"] == "" and float(lines[1]["tpot_ms_p50"]) > 0
    else:
        body = text.splitlines()[2 if style == "md" else 1 :]
        assert [("pp6" in line, "tg3" in line) for line in body] == [(True, False), (False, True)] * 2
        assert all("±" in line for line in body)


def test_baselines_stand_beside_the_bundle_and_leave_torch_as_it_was(bundle: Bundle) -> None:
    import torch

    torch.set_num_threads(2)
    rows = bench(bundle, Settings(6, 3, (2,), "learned", "lockstep", ("torch", "transformers"), 1, 0, 1))["rows"]
    assert torch.get_num_threads() == 2
    assert [(row["engine"], row["schedule"]) for row in rows] == [
        *(("bundle", "lockstep"), ("torch", "lockstep"), ("transformers", "lockstep"))
    ] * 2
    assert rows[0]["mean_depth"] == rows[1]["mean_depth"] and rows[3]["mean_depth"] == rows[4]["mean_depth"]
    assert rows[2]["mean_depth"] == rows[5]["mean_depth"] == 1
    assert rows[0]["kv_bytes_ideal"] == rows[1]["kv_bytes_ideal"] > rows[2]["kv_bytes_ideal"]


def test_a_baseline_that_is_not_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentcot_export.bench import report as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "transformers" else 1)
    with pytest.raises(InputError, match="needs transformers, which is not installed; install it with `pip"):
        bench(bundle, Settings(4, 2, (1,), baselines=("transformers",)))


def test_the_bundle_alone_is_measured_without_torch(bundle: Bundle) -> None:
    code = (
        "import sys; from latentcot_export.bundle import open_bundle\n"
        "from latentcot_export.bench import Settings, bench\n"
        "bench(open_bundle(sys.argv[1]), Settings(4, 2, (1,), runs=1, warmup=0, threads=1))\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'onnx', 'onnx_ir'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from latentcot_cli.main import app

    with pytest.raises(SystemExit) as end:
        app(["bench", *words])
    out = capsys.readouterr()
    return int(end.value.code or 0), out.out, out.err


def test_the_verb_prints_the_report_and_leaves_it_in_the_bundle(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "-p 4 -n 2 -b 1 -r 2 -w 0 --depth fixed:3 --threads 1 -o json"
    status, out, err = run(capsys, str(bundle.folder), *words.split())
    assert status == 0, err
    printed = json.loads(out)
    stored = read_report(bundle, "bench.json")
    assert stored is not None
    assert {key: stored[key] for key in printed} == printed
    assert set(stored) == {*printed, "command", "workload", "manifest_digest"}
    assert stored["command"] in err and printed["machine"]["cpu"] in err


@pytest.mark.parametrize(
    "words",
    [
        *("-b 0", "-p -1", "-n -1", "-p 0 -n 0", "-r 0", "-p 600", "-b 65", "-p x", "--threads -1", "-o xml"),
        *("--depth fixed:9", "--depth trace:absent.jsonl", "--baseline jax", "--schedule slow", "--unknown"),
    ],
)
def test_wrong_usage_is_one_sentence(bundle: Bundle, capsys: pytest.CaptureFixture[str], words: str) -> None:
    status, out, err = run(capsys, str(bundle.folder), *words.split())
    assert status == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, str(tmp_path))
    assert status == 2 and out == "" and "is not a bundle" in err
