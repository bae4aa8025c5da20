"""Running the command line in tests: in this process, or as a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from latentcot_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
# What a shell would run, without relying on the package being installed.
LATENTCOT = [sys.executable, "-m", "latentcot_cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "cli"))), "OMP_NUM_THREADS": "1"}


def latentcot(*args: object, **options: Any) -> Result:
    """In this process: fast, and errors of the test itself are seen."""
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def shell(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """As a process of its own, at most two minutes long."""
    command = [*LATENTCOT, *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, env=ENVIRONMENT, timeout=120, check=False, **streams)


def shell_without(modules: Iterable[str], *args: object) -> subprocess.CompletedProcess[str]:
    """As a process in which importing `modules` fails, as it does where they are not installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r})); sys.argv[1:] = {[*map(str, args)]!r}\n"
        "from latentcot_cli.main import run; run()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, text=True, capture_output=True, timeout=60, check=False
    )


def one_sentence(text: str) -> str:
    """The sentence of an `error: ...` that is all of stderr."""
    assert text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1, text
    sentence = text[7:-1]
    assert sentence.isprintable() and "Traceback" not in sentence and len(sentence) <= 2000
    assert not sentence.startswith("unexpected "), sentence
    return sentence


def refused(*args: object) -> str:
    """The sentence of a command line that must end with status 2 and nothing on stdout."""
    result = latentcot(*args)
    assert result.exit_code == 2, (args, result.output)
    assert result.stdout == ""
    # Stages of the work may be told before the error.
    return one_sentence("".join(line for line in result.stderr.splitlines(True) if not line.endswith(" ...\n")))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too; None for what is no regular file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }
