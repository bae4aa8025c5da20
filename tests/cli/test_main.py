"""Statuses, sentences and streams: what every verb has in common."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import latentcot_export.environment as environment
from latentcot_cli.main import EXTRA, VERBS
from latentcot_export.errors import CheckFailed, InputError, LatentCoTError
from tests.cli.terminal import ENVIRONMENT, LATENTCOT, latentcot, one_sentence, refused, shell, tree


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = latentcot(verb, "--help")
    assert result.exit_code == 0 and result.stderr == ""
    text = result.stdout
    assert f"Usage: latentcot {verb} " in text
    assert ("Example" in text and f"\n    latentcot {verb}" in text) or f"\n  latentcot {verb}" in text, text
    assert "--debug" in text
    assert "\b" not in text and all(len(line) <= 120 for line in text.splitlines())


def test_help_lists_every_verb_in_a_line() -> None:
    for args in ((), ("--help",)):
        result = latentcot(*args)
        assert result.exit_code == 0 and result.stderr == ""
        for verb, line in VERBS.items():
            assert f"  {verb}" in result.stdout and line in result.stdout


def test_version() -> None:
    result = latentcot("--version")
    assert (result.exit_code, result.stdout) == (0, f"latentcot {importlib.metadata.version('latentcot-export')}\n")


@pytest.mark.parametrize("args", [[], ["--version"], *([verb, "--help"] for verb in VERBS), ["env"], ["generate"]])
def test_nothing_heavy_is_imported_before_it_is_needed(args: list[str]) -> None:
    code = (
        f"import sys; from latentcot_cli.main import run; sys.argv[1:] = {args!r}\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        f"print(*({{name.split('.')[0] for name in sys.modules}} & set({EXTRA!r})), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, text=True, capture_output=True, timeout=60, check=True
    )
    assert done.stderr.splitlines()[-1] == "", done.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["frobnicate"], ["'frobnicate' is no verb", "export, init, validate"]),
        (["\x1b[31m"], ["'\\x1b[31m' is no verb"]),
        (["--frobnicate"], ["--frobnicate", "see `latentcot --help`"]),
        (["export", "--frobnicate", "a", "b"], ["--frobnicate", "see `latentcot export --help`"]),
        (["export"], ["missing argument 'CHECKPOINT'", "see `latentcot export --help`"]),
        (["export", "a"], ["missing argument 'BUNDLE'", "see `latentcot export --help`"]),
        (["export", "a", "b", "c"], ["(c)", "see `latentcot export --help`"]),
        (["export", "a", "b", "--opset"], ["--opset", "requires an argument", "see `latentcot export --help`"]),
        (["export", "a", "b", "--opset", "x"], ["--opset", "integer", "see `latentcot export --help`"]),
        (["init", "a", "b"], ["missing option '--max-latents'", "see `latentcot init --help`"]),
        (["init", "a", "b", "--max-latents", "1e9"], ["--max-latents", "see `latentcot init --help`"]),
        (["inspect"], ["missing argument 'BUNDLE|CHECKPOINT'", "see `latentcot inspect --help`"]),
        (["env", "-o", "xml"], ["-o is 'xml'", "table, md, csv, json, jsonl"]),
        (["inspect", "nowhere", "-o", "xml"], ["-o is 'xml'", "table, md, csv, json, jsonl"]),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_it(args: list[str], parts: list[str]) -> None:
    sentence = refused(*args)
    assert all(part in sentence for part in parts), sentence


class Raises:
    """Stands in for the work of `latentcot env`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (CheckFailed("gate depth failed; look"), 1, "gate depth failed; look"),
        (InputError("x is y; do z"), 2, "x is y; do z"),
        (LatentCoTError("x"), 2, "x"),
        (InputError("x\n\x1b[31m is\t\x07y\u202e; é"), 2, "x \\x1b[31m is \\x07y\\u202e; é"),
        (InputError(f"{'x' * 5000}; give a shorter one"), 2, "xxx...xxx"),
        (InputError(f"{'x' * 5000}; give a shorter one"), 2, "xxx; give a shorter one"),
        (MemoryError(), 2, "there is not enough memory for this; use a smaller model, batch or length"),
        (
            PermissionError(13, "Permission denied", "some/file"),
            2,
            "some/file: Permission denied; correct that and run",
        ),
        (ModuleNotFoundError("No module", name="onnxscript.ir"), 2, "this needs onnxscript.ir, which is not installed"),
        (ModuleNotFoundError("No module", name="torch"), 2, "pip install '.[export]'"),
    ],
)
def test_errors_become_a_status_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, sentence: str
) -> None:
    monkeypatch.setattr(environment, "environment", Raises(error))
    result = latentcot("env")
    assert (result.exit_code, result.stdout) == (status, "")
    assert sentence in one_sentence(result.stderr)


@pytest.mark.parametrize("error", [RuntimeError("boom\nbang"), KeyError("k"), AssertionError(), RecursionError("deep")])
@pytest.mark.parametrize("debug", ["no", "before", "behind", "environment", "environment 0"])
def test_a_bug_is_a_sentence_and_with_debug_a_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, debug: str
) -> None:
    monkeypatch.setattr(environment, "environment", Raises(error))
    monkeypatch.delenv("LATENTCOT_DEBUG", raising=False)
    if debug.startswith("environment"):
        monkeypatch.setenv("LATENTCOT_DEBUG", "0" if debug.endswith("0") else "1")
    args = {"before": ["--debug", "env"], "behind": ["env", "--debug"]}.get(debug, ["env"])
    result = latentcot(*args)
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert last.startswith(f"error: unexpected {type(error).__name__}") and "--debug and file an issue" in last
    assert ("Traceback" in result.stderr) == (debug in ("before", "behind", "environment"))
    assert result.stderr.count("\n") == 1 or "Traceback" in result.stderr
    monkeypatch.delenv("LATENTCOT_DEBUG", raising=False)
    assert "Traceback" not in latentcot("env").stderr, "--debug of one call must not reach the next"


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "environment", Raises(KeyboardInterrupt()))
    result = latentcot("env")
    assert (result.exit_code, result.output) == (130, "")


# --- real processes --------------------------------------------------------------------------------------------------


def test_a_process_has_the_same_statuses_and_streams(tmp_path: Path) -> None:
    good, bad = shell("env", "-o", "json"), shell("inspect", tmp_path / "nothing")
    assert (good.returncode, good.stderr) == (0, "")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "does not exist; give the folder" in one_sentence(bad.stderr)


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = shell("env", stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_stdout_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = shell("env", stdout=full)
    assert done.returncode == 2
    assert "No space left on device" in one_sentence(done.stderr)


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LATENTCOT, "inspect", str(tmp_path / "naïve-名")],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "na\\xefve-\\u540d" in one_sentence(done.stderr)


def test_ctrl_c_during_an_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [*LATENTCOT, "export", str(checkpoint), str(tmp_path / "b"), "--no-validate"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as work:
        assert work.stderr is not None and work.stdout is not None
        told = []
        for line in work.stderr:
            told.append(line)
            if line.startswith("tracing"):
                break
        work.send_signal(signal.SIGINT)
        rest = work.stderr.read()
        assert work.stdout.read() == ""
    assert work.returncode == 130, "".join(told) + rest
    assert rest == ""
    assert tree(tmp_path) == {}
