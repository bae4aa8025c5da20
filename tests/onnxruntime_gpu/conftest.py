"""onnxruntime-gpu itself on a machine without a GPU: its wheel, a stand-in for the CUDA runtime, the op library over it.

What runs is the real host code, that of ONNX Runtime and ours: which node goes where, what is captured, when somebody
waits. No kernel computes anything.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "onnxruntime-gpu-host"
WHEEL = "onnxruntime-gpu==1.31.1"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
DRIVES = "int cuInit(unsigned flags) { return flags; }\nint cuDeviceGetCount(int* count) { return *count = 1, 0; }\n"
MAKES = {
    "libcublas.so.13": "cublasCreate_v2",
    "libcublasLt.so.13": "cublasLtCreate",
}  # a handle, which must not be null
DRIVER, RANDOM, RUNTIME = "libcuda.so.1", "libcurand.so.10", "libcudart.so.13"


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def site() -> Path:
    """A folder with the package onnxruntime of the wheel."""
    folder = BUILT / "site"
    if not (folder / PROVIDER).exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        wheels = BUILT / "wheel"
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, WHEEL)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(BUILT / "fresh")
        (BUILT / "fresh").rename(folder)
        shutil.rmtree(wheels)
    return folder


@pytest.fixture(scope="session")
def cuda(site: Path) -> Path:
    """A folder with every library of CUDA that the provider is linked with, of which it asks for no more than is there."""
    folder = BUILT / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    source = (Path(__file__).with_name("stand_in.c")).read_text("utf-8")
    written = set(re.findall(r"\b(\w+)\([^()]*\) \{", source)) | set(MAKES.values())
    wanted: dict[str, list[str]] = collections.defaultdict(list, {DRIVER: [], RANDOM: []})
    for line in _run("nm", "-D", "--undefined-only", site / PROVIDER).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if re.match(r"cu[A-Z]|cuda|cublas|curand|__cuda", name):
            wanted[library or DRIVER].append(name)
    said = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    (headers,) = re.findall(r'^#\$ INCLUDES="-I([^"]+)"', said, re.MULTILINE)
    for library, names in wanted.items():
        text = {RUNTIME: source, DRIVER: DRIVES}.get(library, "")
        if library in MAKES:
            text += f"int {MAKES[library]}(void** made) {{ return *made = (void*)64, 0; }}\n"
        text += "".join(f"int {name}(void) {{ return 0; }}\n" for name in names if name not in written)
        (folder / "x.c").write_text(text or "int nothing;\n")
        (folder / "x.map").write_text(f"{library} {{ global: *; }};\n")
        versions = [] if library == DRIVER else [f"-Wl,--version-script={folder / 'x.map'}"]
        options = ["-shared", "-fPIC", "-w", "-I", headers, f"-Wl,-soname,{library}", *versions]
        _run("gcc", *options, folder / "x.c", "-o", folder / library)
    return folder


@pytest.fixture(scope="session")
def ops() -> Path:
    """The op library with its CUDA kernels, over whatever CUDA runtime is found."""
    folder, tools = BUILT / "ops", Path(sys.executable).parent
    settings = ["-DLATENTCOT_CUDA=ON", "-DLATENTCOT_CUDA_ARCHITECTURES=90-real", "-DLATENTCOT_CUDA_RUNTIME=Shared"]
    _run(tools / "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", *settings)
    _run(tools / "cmake", "--build", folder, "--target", "latentcot_ops")
    return folder / "liblatentcot_ops.so"


@pytest.fixture(scope="session")
def on_gpu(site: Path, cuda: Path, ops: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of this folder with onnxruntime-gpu, over the stand-in; the op library is its first word."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(cuda), "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}

    def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(Path(__file__).with_name(program)), str(ops), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)

    return run
