"""What the tests of the TensorRT plugins share: headers and lean runtime out of PyPI, the library by nvcc and by g++."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from latentcot_export.runtime import tensorrt_build, tensorrt_library, tensorrt_session
from tests.tensorrt.harness import Harness
from tests.tensorrt.stand_in import TensorRT, gpu_of

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build/tensorrt"
PINS = ROOT / "requirements/tensorrt.txt"
HEADERS = "kernel_lens/include/tensorrt"
PLUGINS = "liblatentcot_trt.so"
# Fast, since whole generations run on the emulation; that the kernels do nothing undefined is for tests/cuda to show.
# setjmp of the emulation switches stacks, which _FORTIFY_SOURCE takes for an error.
GXX = (
    *("g++", "-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-fvisibility=hidden"),
)


def _once(folder: Path, parts: Iterable[bytes], make: Callable[[], None]) -> None:
    """Makes what is in `folder` unless it was made of the same parts, in one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    stamp = folder / "stamp"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            make()
            stamp.write_text(digest)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    if done.returncode:
        pytest.fail(f"{what}:\n{(done.stdout + done.stderr)[-6000:]}", pytrace=False)


def _sources() -> list[bytes]:
    folders = ("plugins/tensorrt", "plugins/kernels", "plugins/tests", "tests/tensorrt")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.[ch]*")) if path.is_file()]
    return [path.read_bytes() for path in files]


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the packages of requirements/tensorrt.txt, apart from the environment: no test must need them."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = BUILT / f"packages-{version}"

    def install() -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        _run([*command, "-r", str(PINS)], "the packages of requirements/tensorrt.txt cannot be had, which needs PyPI")

    _once(folder, [PINS.read_bytes()], install)
    return folder


@pytest.fixture(scope="session")
def headers(packages: Path) -> Path:
    """TensorRT's headers."""
    return packages / HEADERS


@pytest.fixture(scope="session")
def cuda_headers() -> Path:
    """The CUDA headers that TensorRT's include."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc, whose headers TensorRT's need")
    # nvcc may be a script that starts another one, which alone knows where it lies
    said = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    (found,) = re.findall(r'^#\$ INCLUDES="-I([^"]+)"', said, re.MULTILINE)
    return Path(found)


@pytest.fixture(scope="session")
def plugins(headers: Path, cuda_headers: Path) -> Path:
    """The plugin library as a user builds it, for one architecture."""
    folder = BUILT / "plugins"

    def build() -> None:
        folder_of_tools = Path(sys.executable).parent
        environment = [f"-DTENSORRT_INCLUDE_DIR={headers}", "-DCMAKE_CUDA_ARCHITECTURES=90-real"]
        if (folder_of_tools / "ninja").exists():
            environment += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={folder_of_tools / 'ninja'}"]
        cmake = shutil.which("cmake", path=os.pathsep.join([str(folder_of_tools), os.environ["PATH"]])) or "cmake"
        _run(
            [cmake, "-S", str(ROOT / "plugins/tensorrt"), "-B", str(folder), *environment], "cmake refuses the plugins"
        )
        _run([cmake, "--build", str(folder)], "the plugins do not compile")

    _once(folder, [*_sources(), (ROOT / "plugins/tensorrt/CMakeLists.txt").read_bytes()], build)
    return folder / PLUGINS


@pytest.fixture(scope="session")
def plugins_on_cpu(headers: Path, cuda_headers: Path) -> Path:
    """The same sources with the kernels on the emulation of plugins/tests, so that what is enqueued also runs."""
    folder = BUILT / "on-cpu"

    def build() -> None:
        sources = [ROOT / "plugins/tensorrt" / name for name in ("library.cpp", "launch.cu")]
        for source in sources:
            include = ["-isystem", str(headers), "-isystem", str(cuda_headers)] if source.suffix == ".cpp" else []
            command = [each for each in GXX if each != "-shared"] + [*include, "-x", "c++", "-c", str(source)]
            _run([*command, "-o", str(folder / f"{source.stem}.o")], f"{source.name} does not compile for the CPU")
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        _run([*GXX, *objects, "-o", str(folder / PLUGINS)], "the plugins do not link for the CPU")

    _once(folder, _sources(), build)
    return folder / PLUGINS


@pytest.fixture(scope="session")
def harness_library(headers: Path, cuda_headers: Path) -> Path:
    folder = BUILT / "harness"
    source = ROOT / "tests/tensorrt/harness.cpp"

    def build() -> None:
        command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-shared", "-fPIC", "-isystem", str(headers)]
        command += ["-isystem", str(cuda_headers), str(source), "-ldl", "-o", str(folder / "harness.so")]
        _run(command, "the harness does not compile")

    _once(folder, [source.read_bytes()], build)
    return folder / "harness.so"


@pytest.fixture(scope="session")
def harness(harness_library: Path, plugins: Path) -> Harness:
    """TensorRT's side of the library that nvcc has built."""
    return Harness(harness_library, plugins)


@pytest.fixture(scope="session")
def harness_on_cpu(harness_library: Path, plugins_on_cpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """TensorRT's side of the library that runs on the CPU; a copy, for the harness serves one library."""
    copy = tmp_path_factory.mktemp("harness") / "harness.so"
    copy.write_bytes(harness_library.read_bytes())
    return Harness(copy, plugins_on_cpu)


@pytest.fixture(scope="session")
def driver() -> Path:
    """The stand-in for the driver of a GPU."""
    folder = BUILT / "driver"
    sources = [ROOT / "tests/tensorrt/driver.cpp", ROOT / "tests/rtx/driver.cpp"]

    def build() -> None:
        command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-shared", "-fPIC", str(sources[0])]
        _run([*command, "-o", str(folder / "driver.so")], "the driver's stand-in does not compile")

    _once(folder, [source.read_bytes() for source in sources], build)
    return folder / "driver.so"


@pytest.fixture
def library(harness_on_cpu: Harness, driver: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    """TensorRT's stand-in as the module `tensorrt`, on a GPU that is the host."""
    loaded = ctypes.CDLL(str(driver))
    loaded.stand_in_machine(1, 9, 0)
    made = TensorRT(harness_on_cpu, loaded)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(tensorrt_session, "CapturingGpu", gpu_of(driver))
    monkeypatch.setattr(tensorrt_build, "Gpu", gpu_of(driver))
    return made


@pytest.fixture
def plugins_found(plugins_on_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(tensorrt_library.PLUGINS_VARIABLE, str(plugins_on_cpu))
    return plugins_on_cpu
