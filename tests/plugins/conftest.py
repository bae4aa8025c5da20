"""The official headers of ONNX Runtime, which no wheel ships: for tests alone, nothing of ours is built with them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# An npm package that carries them, and where in it they lie.
PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
INSIDE = "ios-arm64_x86_64-simulator/onnxruntime.framework/Headers/"


@pytest.fixture(scope="session")
def official() -> Path:
    """A folder with onnxruntime_c_api.h and what it includes: ONNXRUNTIME_INCLUDE_DIR, else of the npm package."""
    given = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    if given:
        return Path(given)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("ONNXRUNTIME_INCLUDE_DIR names no folder with onnxruntime_c_api.h, and there is no npm to get one")
    folder = ROOT / "build" / "onnxruntime-headers"
    folder.mkdir(parents=True, exist_ok=True)
    headers = folder / PACKAGE
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes fetches
        if not headers.exists():
            _fetch(npm, folder, headers)
    return headers


def _fetch(npm: str, folder: Path, headers: Path) -> None:
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm has no {PACKAGE} for us: {error} {str(error.stderr)[-300:]}")
    archive = folder / done.stdout.split()[-1]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256, f"{archive.name} is not what was looked at"
    made = folder / "unpacked"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and INSIDE in member.name and member.name.endswith(".h"):
                source = tar.extractfile(member)
                assert source is not None
                (made / Path(member.name).name).write_bytes(source.read())
    archive.unlink()
    assert (made / "onnxruntime_cxx_api.h").exists(), f"{PACKAGE} has its headers elsewhere"
    made.rename(headers)
