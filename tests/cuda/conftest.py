"""The CUDA kernels on the CPU: one shared library of plugins/tests/cuda_entry*.cpp, built by g++ when a source changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.kernels import Kernels

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build/cuda-on-cpu"
# Misaligned 16-byte accesses, which a GPU refuses, and every other undefined behaviour end the run with a sentence.
# setjmp switches between stacks, which _FORTIFY_SOURCE takes for an error.
FLAGS = (
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"),
    "-Wno-unknown-pragmas",  # `unroll` is nvcc's
    *("-fsanitize=undefined", "-fno-sanitize-recover=all"),
)


def _sources(depends: Path) -> list[Path]:
    """What an object was made of, of the compiler's dependency file."""
    words = depends.read_text("utf-8").replace("\\\n", " ").split()
    return [Path(word) for word in words if not word.endswith(":")]


def _compiled(compiler: str, source: Path) -> Path:
    made = BUILT / f"{source.stem}.o"
    depends = made.with_suffix(".d")
    try:
        newest = max(path.stat().st_mtime_ns for path in [*_sources(depends), Path(__file__)])
        if made.stat().st_mtime_ns > newest:
            return made
    except OSError:
        pass  # never compiled, or a header has gone
    command = [compiler, *FLAGS, "-MMD", "-MF", str(depends), "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        made.unlink(missing_ok=True)
        pytest.fail(f"{source.name} does not compile:\n{done.stderr[:4000]}", pytrace=False)
    return made


def _built() -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the CUDA kernels for the CPU with")
    BUILT.mkdir(parents=True, exist_ok=True)
    with open(BUILT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes builds
        sources = sorted((ROOT / "plugins/tests").glob("cuda_entry*.cpp"))
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: _compiled(compiler, source), sources))
        library = BUILT / "liblatentcot_cuda_on_cpu.so"
        stamp = hashlib.sha256("".join(f"{o}{o.stat().st_mtime_ns}" for o in objects).encode()).hexdigest()
        kept = library.with_suffix(".stamp")
        if not library.exists() or not kept.exists() or kept.read_text() != stamp:
            # beside, then renamed: a process that has the old one mapped keeps it
            fresh = library.with_suffix(".new")
            command = [compiler, "-shared", "-fsanitize=undefined", *map(str, objects), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"the CUDA kernels do not link:\n{done.stderr[:4000]}", pytrace=False)
            fresh.rename(library)
            kept.write_text(stamp)
    return library


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels(_built())
