"""What the tests of target tensorrt-rtx share: the library out of PyPI, one bundle with its engine, a stand-in driver."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.bundle import Bundle

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements/tensorrt-rtx.txt"
TINY = ROOT / "examples/checkpoints/latentcot-tiny"


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the packages of requirements/tensorrt-rtx.txt, apart from the environment: no other test has them."""
    folder = ROOT / f"build/tensorrt-rtx/{sys.version_info[0]}.{sys.version_info[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "stamp"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != PINS.read_bytes():
            stamp.unlink(missing_ok=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
            command += ["--target", str(folder), "-r", str(PINS)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode:
                said = (done.stdout + done.stderr)[-2000:]
                pytest.fail(f"{PINS.name} cannot be installed, which needs PyPI:\n{said}", pytrace=False)
            stamp.write_bytes(PINS.read_bytes())
    return folder


@pytest.fixture(scope="session")
def library(packages: Path) -> Iterator[Any]:
    """TensorRT for RTX, importable while a session's tests of this folder run."""
    sys.path.insert(0, str(packages))
    try:
        yield importlib.import_module("tensorrt_rtx")
    finally:
        sys.path.remove(str(packages))
        for name in [name for name in sys.modules if name.startswith("tensorrt_rtx")]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def stages() -> list[str]:
    """What the export of `tiny` told of its progress."""
    return []


@pytest.fixture(scope="session")
def tiny(library: Any, stages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """latentcot-tiny exported and validated for target tensorrt-rtx; not to be changed."""
    from latentcot_export.export import export

    return export(
        TINY,
        tmp_path_factory.mktemp("rtx") / "tiny",
        target="tensorrt-rtx",
        max_seq_len=512,
        max_batch=8,
        progress=stages.append,
    )


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libcuda.so.1."""
    out = tmp_path_factory.mktemp("driver") / "libcuda_stand_in.so"
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(Path(__file__).with_name("driver.cpp")), "-o", str(out)], check=True, timeout=120)
    return out


@pytest.fixture
def machine(driver: Path) -> Iterator[ctypes.CDLL]:
    """The stand-in as ctypes sees it, with one GPU of capability 8.9."""
    loaded = ctypes.CDLL(str(driver))
    loaded.stand_in_held.restype = ctypes.c_size_t
    loaded.stand_in_room.argtypes = (ctypes.c_size_t,)
    loaded.stand_in_machine(1, 8, 9)
    yield loaded
    loaded.stand_in_machine(1, 8, 9)
    loaded.stand_in_room(1 << 40)
