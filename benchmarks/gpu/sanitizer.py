"""compute-sanitizer over the small run of the kernels, in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = Path(__file__).with_name("run.py")
TOOLS = ("memcheck", "racecheck")
_SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}


def command(tool: str) -> list[str]:
    """What is run; only our kernels are looked at, PyTorch's are others' and many."""
    words = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=latentcot", "--report-api-errors", "no"]
    return [*words, sys.executable, str(RUN), "--only", "states,contexts,rows,tokens", "--small", "--unpublished"]


def findings(tool: str, output: str) -> int | None:
    """How many it counts; None where it says nothing."""
    found = _SUMMARY[tool].search(output)
    return int(found.group(1)) if found else None


def check(tool: str, seconds: float) -> list[dict[str, Any]]:
    """One line, or none where the tool is not there, does not work here or takes longer."""
    if shutil.which("compute-sanitizer") is None:
        return []
    # each tensor is an allocation of its own, whose bounds the tool knows; captures, which may not allocate, are left out
    settings = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command(tool), env=settings, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{tool}: not done after {seconds:.0f} s", file=sys.stderr)
        return []
    count = findings(tool, done.stdout + done.stderr)
    if count is None:
        print(f"{tool}: {(done.stdout + done.stderr)[-2000:]}", file=sys.stderr)
        return []
    why = (
        "" if not count else next((each for each in done.stdout.splitlines() if "=====" in each and "at " in each), "")
    )
    passed = count == 0 and done.returncode == 0
    why = why or ("" if passed else f"the small run ended with status {done.returncode}")
    return [{"check": tool, "compared": f"{count} found", "distance": None, "passed": passed, "why": why}]
