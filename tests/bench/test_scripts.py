"""The scripts of benchmarks/ run and write what they say; what they measure is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentcot_export.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_first_light_writes_its_table(bundle: Bundle, tmp_path: Path) -> None:
    words = f"-p 4 -n 2 -b 2 -r 1 --threads 1 --baseline torch --bundle {bundle.folder} -o {tmp_path}"
    done = run("benchmarks/first_light.py", *words.split())
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "first_light.json").read_text("utf-8"))
    assert [(row["engine"], row["test"]) for row in report["rows"]] == [
        (engine, test) for test in ("pp4", "tg2") for engine in ("bundle", "torch")
    ]
    assert [(row["schedule"], row["test"]) for row in report["schedules"]] == [
        (schedule, test) for test in ("pp4", "tg2") for schedule in ("continuous", "lockstep")
    ]
    assert {"machine", "command", "workload", "date", "load", "bundle"} <= set(report)
    page = (tmp_path / "first_light.md").read_text("utf-8")
    assert page == done.stdout
    assert report["command"] in page and report["machine"]["cpu"] in page
    assert "x torch" in page and "x lockstep" in page
    assert str(tmp_path) not in page and str(bundle.folder) not in page


@pytest.mark.parametrize(
    "words",
    [
        *("first_light.py -b 0 --bundle {} -o {}/out", "memory.py {} -b 0", "memory.py {} -n 0", "memory.py {}/absent"),
        *("floor.py {} -o {}/out", "floor.py {} -b 0 -o {}/out", "schedule.py {} -o {}/out", "soak.py {} -o {}/out"),
        *("schedule.py {} --lengths 5 -o {}/out", "soak.py {} -n 1 -o {}/out", "peers.py --kit {} -o {}/out"),
        *("peers.py --kit {} --only nobody -o {}/out", "peers.py --kit {} -r 0 -o {}/out"),
    ],
)
def test_wrong_usage_is_one_sentence(bundle: Bundle, tmp_path: Path, words: str) -> None:
    done = run(*f"benchmarks/{words}".format(bundle.folder, tmp_path).split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_accounts_for_weights_cache_and_file(bundle: Bundle) -> None:
    words = f"{bundle.folder} -p 6 -n 3 -b 2 -r 1 --threads 1 -o json"
    done = run("benchmarks/memory.py", *words.split())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    manifest = bundle.manifest
    slot = manifest.cache.bytes_per_slot(manifest.model)
    assert report["cache_bytes"] % (2 * slot) == 0 and report["cache_bytes"] >= 2 * slot * 9
    assert report["resident_bytes"]["all"] > 0
    assert report["resident_ratio"] == report["resident_bytes"]["all"] / (
        report["weights_bytes"] + report["cache_bytes"]
    )
    assert report["weights_file_bytes"] == manifest.files["model.onnx.data"]["size"]
    assert report["weights_file_ratio"] <= report["weights_file_limit"] == 1.03
