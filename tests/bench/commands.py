"""Scripts of the repository as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, program: str = sys.executable, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [program, *words]
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    environment |= {"OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment)
