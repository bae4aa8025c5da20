"""The C++ example of target tensorrt compiles against TensorRT's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_it_compiles(headers: Path, tmp_path: Path) -> None:
    command = ["nvcc", "-x", "cu", "-std=c++17", "-O1", "-DLATENTCOT_CUDA", "-c", "-isystem", str(headers)]
    command += [str(ROOT / "examples/cpp/03_tensorrt.cpp"), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr[:3000]
