"""Where the op library of `--target ort` bundles lies: built by `pip install`, loaded by ONNX Runtime."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from ..errors import InputError

LIBRARY = "liblatentcot_ops.so"


def library_path(device: str = "cpu") -> Path:
    """The op library, for `SessionOptions.register_custom_ops_library`, with kernels for `device`.

    It lies beside this module, or, where the package is installed in editable form, in the folder of the same name in
    site-packages. Errors: InputError with the command that builds it when it is in none of them.
    """
    # an editable package has both folders on its path, the sources first
    folders = [Path(__file__).parent, *map(Path, sys.modules[__package__].__path__)]
    for folder in folders:
        if (folder / LIBRARY).is_file():
            _check_kernels(folder / LIBRARY, device)
            return folder / LIBRARY
    raise InputError(
        f"{LIBRARY}: the op library that this bundle needs is not in {folders[0]}; "
        "build it with `pip install .` in a checkout of latentcot-export (a C++20 compiler is needed)"
    )


def _check_kernels(library: Path, device: str) -> None:
    """ONNX Runtime would run an op without a kernel for its device on the processor, on copies of the tables."""
    if device == "cpu":
        return
    try:
        ask = ctypes.CDLL(str(library)).latentcot_devices
        ask.restype = ctypes.c_char_p
        devices = ask().decode().split()
    except (OSError, AttributeError):  # one that is too old to be asked
        devices = []
    if device not in devices:
        raise InputError(
            f"{library.name} holds no kernels for device {device}; build it anew with `pip install .` in a checkout of "
            "latentcot-export where nvcc of CUDA 12 or later is on PATH, or use device cpu"
        )
