"""`pip install .` builds the op library, and finds it again."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from latentcot_export.runtime.library import LIBRARY, library_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # a build folder of its own, as everybody has who never ran make here
    command += [f"--config-settings=build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)]
    # tests/cuda/test_compile.py builds the library with CUDA kernels
    command += ["--config-settings=cmake.define.LATENTCOT_CUDA=OFF"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-6000:]
    (found,) = folder.glob("*.whl")
    return found


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


def test_the_wheel_holds_the_library_and_no_sources_of_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert f"latentcot_export/runtime/{LIBRARY}" in names
    assert not [name for name in names if name.startswith("plugins/") or name.endswith((".hpp", ".cpp", ".cmake"))]


def test_the_installed_package_finds_its_own_library(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    # -S keeps this environment's editable install away; its other packages are put back by hand
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import onnxruntime as ort\n"
        "from latentcot_export.runtime.library import library_path\n"
        "ort.SessionOptions().register_custom_ops_library(str(library_path()))\n"
        "print(library_path())"
    )
    command = [sys.executable, "-S", "-c", code, str(tmp_path), sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "latentcot_export" / "runtime" / LIBRARY


def test_this_environment_has_the_library() -> None:
    assert library_path().is_file()
