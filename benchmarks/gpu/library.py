"""plugins/kernels/cuda/launch.cu as a library: built by nvcc, or by g++ through the emulation of CUDA on the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from latentcot_export.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "plugins/kernels/cuda/launch.cu"
BUILT = ROOT / "build/gpu"
NVCC = ("-std=c++20", "-O3", "-lineinfo", "-gencode=arch=compute_90,code=sm_90", "-Xcompiler=-fPIC,-fvisibility=hidden")
# setjmp switches between the emulation's stacks, which _FORTIFY_SOURCE takes for an error
GXX = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-x", "c++")


def sources() -> list[Path]:
    """Every file that the library is made of."""
    kernels = (path for path in (ROOT / "plugins/kernels").rglob("*") if path.suffix in (".hpp", ".cuh", ".cu"))
    return sorted([*kernels, *(ROOT / "plugins/tests").glob("cuda_on_cpu*.hpp")])


def library_path(emulate: bool) -> Path:
    """Where the library of the sources as they are now lies; one that was built elsewhere and carried is used as it is."""
    digest = hashlib.sha256(" ".join(GXX if emulate else NVCC).encode())
    for path in sources():
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return BUILT / f"liblatentcot_cuda{'_on_cpu' if emulate else ''}_{digest.hexdigest()[:16]}.so"


def command(emulate: bool, out: Path) -> list[str]:
    """What builds it. Errors: InputError without a compiler."""
    name = os.environ.get("CXX", "g++") if emulate else "nvcc"
    compiler = shutil.which(name)
    if compiler is None:
        raise InputError(f"there is no {name} on PATH to build {SOURCE.name} with; install it and run this again")
    return [compiler, *(GXX if emulate else NVCC), "-shared", str(SOURCE), "-o", str(out)]


class Build:
    """A compilation that runs while other things are done; `library` waits for it."""

    def __init__(self, emulate: bool) -> None:
        self.path = library_path(emulate)
        self.process: subprocess.Popen[str] | None = None
        self.fault = ""
        self.began, self.seconds = time.perf_counter(), 0.0
        if not self._opens():
            BUILT.mkdir(parents=True, exist_ok=True)
            # beside, then renamed: two that build at a time do not read each other's half
            self.fresh = self.path.with_suffix(f".{os.getpid()}")
            self.process = subprocess.Popen(command(emulate, self.fresh), stderr=subprocess.PIPE, text=True)

    def _opens(self) -> bool:
        """Whether it is there; what another machine built may want other system libraries than this one has."""
        try:
            ctypes.CDLL(str(self.path))
        except OSError:
            return False
        return True

    def library(self) -> ctypes.CDLL:
        """The library. Errors: InputError with the compiler's first words, at every call."""
        if self.process is not None:
            told = self.process.communicate()[1]
            self.seconds = time.perf_counter() - self.began
            failed, self.process = self.process.returncode != 0, None
            if failed:
                self.fresh.unlink(missing_ok=True)
                first = next((line for line in told.splitlines() if "error" in line), told.strip()[:300])
                print(told, file=sys.stderr)
                self.fault = f"{SOURCE.name} does not compile ({first.strip()}); mend it and run this again"
            else:
                self._keep()
        if self.fault:
            raise InputError(self.fault)
        return ctypes.CDLL(str(self.path))

    def _keep(self) -> None:
        self.fresh.rename(self.path)
        kind = self.path.name.rpartition("_")[0]
        for old in BUILT.glob("*.so"):  # of earlier sources
            if old.name.rpartition("_")[0] == kind and old != self.path:
                old.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends a compilation that nobody has waited for."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.fresh.unlink(missing_ok=True)
            self.process = None
