"""The C++ examples: they compile without a warning, and what they write is what Python writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from latentcot_export import Engine
from latentcot_export.bundle import Bundle
from latentcot_export.export import export
from latentcot_export.runtime.library import library_path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "cpp"
PROMPT, NEW = [5, 9, 13, 2, 11, 6, 40, 3, 17, 29], 21
NVCC = ("nvcc", "-x", "cu", "-std=c++17", "-O0", "-DLATENTCOT_CUDA", "-c")


@pytest.fixture(scope="module")
def onnxruntime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the installed wheel, under the names that a release of ONNX Runtime has."""
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("lib")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    return folder


@pytest.fixture(scope="module")
def built(official: Path, onnxruntime: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What g++ makes of an example."""
    folder, made = tmp_path_factory.mktemp("bin"), {}

    def build(name: str) -> Path:
        if name not in made:
            program = folder / name
            command = ["g++", "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", str(EXAMPLES / f"{name}.cpp")]
            command += ["-isystem", str(official), "-L", str(onnxruntime), "-lonnxruntime", f"-Wl,-rpath,{onnxruntime}"]
            done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:3000]
            made[name] = program
        return made[name]

    return build


@pytest.fixture(scope="module")
def bundles(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        dtype: export(random_checkpoint, folder / dtype, target="ort", dtype=dtype, validate=False)
        for dtype in ("float32", "bfloat16")
    }


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("name", "dtype"), [("01_onnxruntime", "float32"), ("01_onnxruntime", "bfloat16"), ("02_replay", "float32")]
)
def test_an_example_writes_what_python_writes(
    built: Callable[[str], Path], bundles: dict[str, Bundle], name: str, dtype: str
) -> None:
    done = run(built(name), bundles[dtype].folder, library_path(), NEW, *PROMPT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with Engine.from_pretrained(bundles[dtype].folder, max_batch=1) as engine:
        wanted = engine.submit(PROMPT, NEW).result()
    assert (found["ids"], found["depths"]) == (wanted.ids[0], wanted.depths[0])
    assert len(found["ids"]) == NEW and max(found["depths"]) > 1


def test_what_is_missing_is_said(built: Callable[[str], Path], random_bundle: Path, tmp_path: Path) -> None:
    done = run(built("01_onnxruntime"), tmp_path, library_path(), 0, 1)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and "LIBRARY NEW_TOKENS" in done.stderr
    done = run(built("01_onnxruntime"), tmp_path, library_path(), 4, 1)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "model.onnx" in done.stderr
    done = run(built("01_onnxruntime"), random_bundle, library_path(), 4, 1)
    assert done.returncode == 1 and "no input `cache`; export it with --target ort" in done.stderr
    done = run(built("01_onnxruntime"), random_bundle, library_path(), 4, 1, "two")
    assert done.returncode == 2 and "error: two is no token id" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_replay_of_a_gpu_compiles(official: Path, tmp_path: Path) -> None:
    command = [*NVCC, str(EXAMPLES / "02_replay.cpp"), "-isystem", str(official), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr[:3000]


def test_a_page_has_every_command() -> None:
    page = (ROOT / "docs" / "cpp.md").read_text("utf-8")
    sources = sorted(EXAMPLES.glob("*.cpp"))
    assert [source.stem for source in sources] == ["01_onnxruntime", "02_replay", "03_tensorrt"]
    for source in sources:
        assert f"examples/cpp/{source.name}" in page
        assert f"examples/cpp/{source.name}" in source.read_text("utf-8"), "the command stands in the file too"
