"""nvcc compiles the GPU side without a warning, and what it made serves the CPU where there is no GPU."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.runtime import native_session
from latentcot_export.runtime.library import LIBRARY, library_path
from tests.plugins import sample
from tests.plugins.test_native import tool

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda"  # kept between runs, so that only what changed is compiled again
ARCHITECTURE = "90-real"  # one of those of a release: what a changed kernel does not compile for, this shows too
KERNELS = "liblatentcot_cuda.so"
FUNCTIONS = {f"latentcot_{op}" for op in ("halt", "advance", "choose", "attention", "add_norm", "gated_unit")}
MOST_BYTES = 4 << 20  # of the op library with kernels for one architecture; cudart alone is 0.7 MB


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def built() -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc, which compiles the CUDA kernels, is not installed")
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes builds
        cache = BUILD / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text("utf-8"):
            cache.unlink()
        done = configure(
            BUILD,
            "-DLATENTCOT_CUDA=ON",
            f"-DLATENTCOT_CUDA_ARCHITECTURES={ARCHITECTURE}",
            "-DCMAKE_CUDA_FLAGS=-Werror all-warnings -Xcompiler=-Werror",
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        command = [tool("cmake"), "--build", str(BUILD), "--target", "latentcot_ops", "latentcot_cuda"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        assert "warning" not in done.stdout + done.stderr
    return BUILD


@pytest.fixture(scope="module")
def library(built: Path) -> Path:
    return built / LIBRARY


def output_of(name: str, *arguments: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} of the binutils is not installed")
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=True).stdout


def exported(path: Path) -> set[str]:
    listed = output_of("nm", "-D", "--defined-only", str(path))
    return {line.split()[-1] for line in listed.splitlines()}


def test_only_our_functions_are_exported(built: Path, library: Path) -> None:
    assert exported(library) == {"RegisterCustomOps", "latentcot_devices"}
    assert exported(built / KERNELS) == FUNCTIONS


@pytest.mark.parametrize("name", [LIBRARY, KERNELS])
def test_nothing_of_cuda_is_needed_to_load(built: Path, name: str) -> None:
    path = built / name
    needed = [line for line in output_of("readelf", "--dynamic", str(path)).splitlines() if "(NEEDED)" in line]
    assert needed and not [line for line in needed if "cuda" in line.lower() or "onnxruntime" in line]
    assert path.stat().st_size < MOST_BYTES
    assert b"sm_90" in path.read_bytes() or b".nv_fatbin" in path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(path)], check=False, timeout=60
    )
    assert done.returncode == 0


def devices(path: Path) -> bytes:
    ask = ctypes.CDLL(str(path)).latentcot_devices
    ask.restype = ctypes.c_char_p
    answer: bytes = ask()
    return answer


def test_the_library_says_what_it_has_kernels_for(library: Path) -> None:
    assert devices(library) == b"cpu cuda"


def results(op: str, path: Path) -> dict[str, np.ndarray]:
    """Outputs of an op, and what it made of its inputs."""
    values = sample.feeds(op)
    made = sample.session(sample.model(op, values), path).run(None, values)
    return {**values, **dict(zip(sample.OUTPUTS[op], made, strict=True))}


@pytest.mark.parametrize("op", sample.INPUTS)
def test_an_op_runs_on_the_cpu_as_ever(library: Path, op: str) -> None:
    wanted = results(op, library_path())
    for name, value in results(op, library).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_a_bundle_runs_on_the_cpu_as_ever(library: Path, random_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    from latentcot_export.export import export

    assert "CUDAExecutionProvider" not in ort.get_available_providers() or pytest.skip("this ONNX Runtime has CUDA")
    bundle = export(random_checkpoint, tmp_path / "bundle", target="ort", validate=False).folder
    prompts, options = [[1, 2, 3], [9], [4] * 40], {"temperature": 1.0, "seed": [1, 2, 3], "ignore_eos": True}
    wanted = LatentCoTForCausalLM.from_pretrained(bundle).generate(prompts, 20, **options)
    asked = []
    monkeypatch.setattr(native_session, "library_path", lambda *_: asked.append(library) or library)
    assert LatentCoTForCausalLM.from_pretrained(bundle).generate(prompts, 20, **options) == wanted
    assert asked


def halved(op: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Inputs of float16, and a sample whose outputs ONNX Runtime takes for what its kernel of that type gives."""
    outputs = {name: "float32" if name == "total" else "float16" for name in sample.OUTPUTS[op]}
    monkeypatch.setitem(sample.OUTPUTS, op, outputs)
    values = sample.feeds(op)
    kept = {"cos", "sin", "residual", "weight", *(name for name, value in values.items() if value.dtype != np.float32)}
    return {name: value if name in kept else value.astype(np.float16) for name, value in values.items()}


@pytest.mark.parametrize("op", ["AddNorm", "GatedUnit"])
def test_types_that_only_a_gpu_has_are_converted(library: Path, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = results(op, library_path())
    values = halved(op, monkeypatch)
    made = sample.session(sample.model(op, values), library).run(None, values)
    for name, value in zip(sample.OUTPUTS[op], made, strict=True):
        np.testing.assert_allclose(value, wanted[name], rtol=4e-3, atol=4e-3)


def test_a_table_is_never_converted(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would run the op on a copy of the cache."""
    values = halved("RaggedAttention", monkeypatch)
    with pytest.raises(Exception, match="qkv is float16, but must be float32 on the CPU"):
        sample.session(sample.model("RaggedAttention", values), library)


class Array(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 5),
    )


class Launch(ctypes.Structure):
    _fields_ = (
        *(("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t), ("stream", ctypes.c_void_p)),
        ("message", ctypes.c_char * 480),
    )


TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 2, np.dtype(np.int32): 3, np.dtype(np.int64): 4}


def arrays(values: list[np.ndarray | None], count: int) -> ctypes.Array:
    made = (Array * count)()
    for array, value in zip(made, values, strict=False):
        if value is not None:
            array.data, array.type, array.rank = value.ctypes.data, TYPES[value.dtype], value.ndim
            array.shape = (ctypes.c_int64 * 5)(*value.shape)
    return made


class AttentionAttributes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("layer", "num_heads", "num_kv_heads", "head_dim", "visibility")),
        *(("epsilon", ctypes.c_float), ("prompt", ctypes.c_int)),
    )


def test_the_c_functions_check_what_they_are_given(built: Path) -> None:
    """Host code only: without a GPU a launch is refused with a sentence, as are arrays that do not fit."""
    library = ctypes.CDLL(str(built / KERNELS))
    feeds = sample.feeds("RaggedAttention")
    out = np.zeros((2, sample.HEADS * sample.HEAD_DIM), np.float32)
    attributes = AttentionAttributes(1, sample.HEADS, sample.KV_HEADS, sample.HEAD_DIM, 0, 0.0, 0)
    launch = Launch()

    def call(values: dict[str, np.ndarray]) -> int:
        given = [values[name] for name in sample.INPUTS["RaggedAttention"]]
        inputs, outputs = arrays([*given], 10), arrays([out], 1)
        return library.latentcot_attention(inputs, outputs, ctypes.byref(attributes), ctypes.byref(launch))

    assert call(feeds) == 0 and launch.workspace_bytes > 0 and launch.message == b""
    assert call({**feeds, "sin": feeds["sin"][:1].copy()}) == -1
    assert launch.message == b"RaggedAttention: sin has size 1 along axis 0, but must have 2 (one for each row)."
    out = out[:1].copy()
    assert call(feeds) == -1 and b"output 0 has 24 elements" in launch.message
    attributes.num_kv_heads = 0
    assert call(feeds) == -1 and b"num_kv_heads is 0" in launch.message


@pytest.mark.parametrize(("wanted", "sentence"), [("AUTO", ""), ("OFF", ""), ("ON", "but there is no nvcc")])
def test_without_nvcc_only_the_cpu_library_is_built(tmp_path: Path, wanted: str, sentence: str) -> None:
    # the compiler alone, in a folder that has no nvcc
    for name in ("c++", "g++", "cc", "gcc", "as", "ld"):
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    tools = {"PATH": str(tmp_path), "CUDACXX": "", "CUDA_PATH": ""}
    done = configure(tmp_path / "build", f"-DLATENTCOT_CUDA={wanted}", **tools)
    assert (done.returncode == 0) == (not sentence), done.stderr
    assert sentence in done.stderr
    if not sentence:
        assert ".cu" not in (tmp_path / "build" / "build.ninja").read_text("utf-8")
