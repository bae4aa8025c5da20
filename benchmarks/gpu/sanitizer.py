"""compute-sanitizer over the small run of the kernels, in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu.session import finished

RUN = Path(__file__).with_name("run.py")
TOOLS = ("memcheck", "racecheck")
MOST_SECONDS = 150.0  # of a tool; with both of them that is a third of the device's time
_SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}


def command(tool: str, seed: int) -> list[str]:
    """What is run; only our kernels are looked at, PyTorch's are others' and many."""
    words = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=latentcot", "--report-api-errors", "no"]
    words += [sys.executable, str(RUN), "--only", "states,contexts,rows,tokens", "--small", "--unpublished"]
    return [*words, "--seed", str(seed)]


def findings(tool: str, output: str) -> int | None:
    """How many it counts; None where it says nothing."""
    found = _SUMMARY[tool].search(output)
    return int(found.group(1)) if found else None


def check(tool: str, seconds: float, seed: int) -> list[dict[str, Any]]:
    """One line, or none where the tool is not there or does not work here."""
    if shutil.which("compute-sanitizer") is None:
        print(f"{tool}: there is no compute-sanitizer on PATH", file=sys.stderr)
        return []
    # each tensor is an allocation of its own, whose bounds the tool knows; captures, which may not allocate, are left out
    settings = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = max(1.0, min(seconds, MOST_SECONDS))
    with tempfile.TemporaryFile() as file:  # no pipe, which what outlives its end would keep open
        given: dict[str, Any] = {"env": settings, "stdout": file, "stderr": subprocess.STDOUT}
        status = finished(command(tool, seed), seconds, patience=2.0, **given)
        file.seek(0)
        output = file.read().decode(errors="replace")
    if status is None:
        tail = " / ".join(line.strip() for line in output.splitlines()[-5:])[-300:]
        return [_line(tool, "", f"not done after {seconds:.0f} s, the last words: {tail or 'none'}")]
    count = findings(tool, output)
    if count is None:
        print(f"{tool}: {output[-2000:]}", file=sys.stderr)
        return []
    why = "" if status == 0 else f"the small run ended with status {status}"
    if count:
        where = (line.strip() for line in output.splitlines() if "=====" in line and "at " in line)
        why = next(where, "") or why or "see its output"
        print(f"{tool}: {output[-20000:]}", file=sys.stderr)
    return [_line(tool, f"{count} found", why)]


def _line(tool: str, compared: str, why: str) -> dict[str, Any]:
    return {"check": tool, "compared": compared, "distance": None, "passed": not why, "why": why}
