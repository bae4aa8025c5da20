"""The native tests of plugins/tests under AddressSanitizer and UBSan, and what the objects hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Kept between runs, so that only what changed is compiled again; `make clean` removes it.
BUILD = ROOT / "build" / "native-tests"
TESTS = sorted(path.stem for path in (ROOT / "plugins" / "tests").glob("test_*.cpp"))
SANITIZERS = "-fsanitize=address,undefined"


def tool(name: str) -> str:
    """A build tool of the environment, else of the machine."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert found, f"{name} is not installed; it is one of requirements/dev.txt"
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    assert compiler, "no C++ compiler, without which nothing of this package can be built"
    probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
    probe.write_text("int main() { return 0; }", "utf-8")
    command = [compiler, SANITIZERS, str(probe), "-o", str(probe.with_suffix(""))]
    for step in (command, [str(probe.with_suffix(""))]):
        done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            pytest.skip(f"{compiler} cannot build or run with {SANITIZERS}: {done.stderr[:200]}")
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    configure += ["-DLATENTCOT_BUILD_TESTS=ON", "-DLATENTCOT_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    cache = BUILD / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text("utf-8"):
        shutil.rmtree(BUILD)
    for step in (configure, [tool("cmake"), "--build", str(BUILD)]):
        done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return BUILD


def test_there_are_native_tests() -> None:
    assert TESTS


@pytest.mark.parametrize("name", TESTS)
def test_native(built: Path, name: str) -> None:
    settings = {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(built / name)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env={**os.environ, **settings}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def weak_symbols(listing: str) -> set[str]:
    """Functions that a linker may take from any object that has them, in the output of `nm --demangle`."""
    return set(re.findall(r"^[0-9a-f]+ W (.+)$", listing, re.MULTILINE))


def strangers(listing: str, isa: str) -> set[str]:
    """Those of them that are not of the object's own instruction set."""
    return {name for name in weak_symbols(listing) if f"latentcot::{isa}::" not in name}


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_no_wide_code_is_shared(built: Path, isa: str) -> None:
    """An inline function compiled for AVX-512 must not be the copy that a processor without it gets to run."""
    objects = [path for path in built.rglob("isa_kernels.cpp.o") if f"latentcot_{isa}.dir" in path.parts]
    nm = shutil.which("nm")
    if nm is None or not objects:
        pytest.skip("no nm, or no such instruction set on this machine")
    listing = subprocess.run([nm, "--demangle", *objects], capture_output=True, text=True, check=True).stdout
    assert f"latentcot::{isa}::" in listing
    assert not strangers(listing, isa)


def test_the_rule_can_fail() -> None:
    listing = "0000 W latentcot::avx2::exp(float)\n0000 W latentcot::make_plan(int)\n0000 T latentcot::avx2::table\n"
    assert strangers(listing, "avx2") == {"latentcot::make_plan(int)"}
    assert strangers(listing, "avx512") == {"latentcot::make_plan(int)", "latentcot::avx2::exp(float)"}
