"""`latentcot env`: all that a bug report needs and nothing that tells of a person or a place."""

from __future__ import annotations

import csv
import getpass
import io
import json
import os
import platform
import socket
from pathlib import Path

import pytest

from latentcot_cli.main import EXTRA
from latentcot_export import environment
from latentcot_export.tables import FORMATS
from tests.cli.terminal import latentcot, shell_without


def test_json_has_what_decides_the_numerics() -> None:
    result = latentcot("env", "-o", "json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["schema_version"]) == (0, 1)
    assert report["versions"]["torch"].startswith("2.")
    assert report["versions"]["onnxruntime-gpu"] is None
    assert report["python"].startswith(platform.python_version())
    assert report["cores"]["usable"] >= 1 and report["memory_gib"] > 0
    assert "CPUExecutionProvider" in report["onnxruntime_providers"]
    assert latentcot("env", "--json").stdout == result.stdout
    if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists():
        assert "sse4_2" in report["cpu_features"]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_names_every_fact(form: str) -> None:
    result = latentcot("env", "-o", form)
    assert (result.exit_code, result.stderr) == (0, "")
    for word in ("onnxruntime", "python", "cpu_features", "CPUExecutionProvider"):
        assert word in result.stdout
    if form == "csv":
        assert next(csv.reader(io.StringIO(result.stdout))) == ["name", "value"]
    if form == "jsonl":
        assert json.loads(result.stdout) == json.loads(latentcot("env", "-o", "json").stdout)


def test_settings_are_told_but_never_a_place_or_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_TOOL_LIBRARIES", "~/somebody/lib.so")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    report = environment.environment()
    assert report["settings"]["OMP_NUM_THREADS"] == "3"
    assert report["settings"]["OMP_TOOL_LIBRARIES"] == "(set)"
    text = json.dumps(report)
    host = socket.gethostname()
    for private in ("hunter2", "somebody", os.getcwd(), str(Path.home()) + "/", *([host] if len(host) > 3 else [])):
        assert private not in text
    if len(user := getpass.getuser()) > 4:
        assert user not in text


def test_it_works_where_little_can_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def nothing(self: Path, *args: object, **options: object) -> str:
        if str(self).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda name: _missing(name))
    report = environment.environment()
    assert report["cpu_features"] == [] and report["memory_limit_gib"] is None
    assert set(report["versions"].values()) == {None}


def test_a_broken_installation_can_still_be_reported() -> None:
    done = shell_without(["onnxruntime", "numpy", "tokenizers", *EXTRA], "env", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["onnxruntime_providers"] is None


def _missing(name: str) -> str:
    raise environment.importlib.metadata.PackageNotFoundError(name)
