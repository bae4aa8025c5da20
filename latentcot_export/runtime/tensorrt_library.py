"""TensorRT as it is installed here, and the plugins it needs for a bundle."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .tensorrt_engine import PLUGIN_VERSION, TARGET

PLUGINS = "liblatentcot_trt.so"
PLUGINS_VARIABLE = "LATENTCOT_TENSORRT_PLUGINS"
OPS = ("ChooseToken", "RaggedAdvance", "RaggedAttention", "RaggedHalt")
NAMESPACE = "latentcot"  # kNamespace of plugins/tensorrt/plugin.hpp


def plugin_library() -> Path:
    """The plugin library, liblatentcot_trt.so. Errors: InputError with the commands that build it."""
    given = os.environ.get(PLUGINS_VARIABLE)
    path = Path(given) if given else Path(__file__).parent / PLUGINS
    if path.is_file():
        return path
    raise InputError(
        f"{path}: the plugin library that target {TARGET} needs is not there; build it in a checkout with `cmake -S "
        "plugins/tensorrt -B build/tensorrt/plugins -DTENSORRT_INCLUDE_DIR=FOLDER && cmake --build build/tensorrt/plugins` "
        f"and set {PLUGINS_VARIABLE} to build/tensorrt/plugins/{PLUGINS}"
    )


def tensorrt() -> Any:
    """The module of TensorRT. Errors: InputError that says what to install."""
    try:
        import tensorrt as module
    except (ImportError, OSError, RuntimeError) as error:  # the package, or a library that it loads
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"target {TARGET} needs TensorRT, which cannot be imported here ({reason}); install NVIDIA's package with "
            "`pip install tensorrt-cu13`, or export with --target ort"
        ) from None
    return module


def copied_tables() -> int:
    """How many tables plugins of this process had to copy, because TensorRT did not change them in place.

    0 where they are not of `plugin_library`, or of one that does not count: a host may have registered its own.
    """
    try:
        loaded = ctypes.CDLL(str(plugin_library()), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        count = loaded.latentcot_copied_tables
    except (InputError, OSError, AttributeError):
        return 0
    count.restype = ctypes.c_longlong
    return int(count())


def load_plugins(library: Any) -> None:
    """Puts the plugins into TensorRT's registry, once. Errors: InputError when it does not take them."""
    registry = library.get_plugin_registry()
    if all(registry.get_creator(op, PLUGIN_VERSION, NAMESPACE) is not None for op in OPS):
        return
    path = plugin_library()
    registry.load_library(str(path))
    missing = [op for op in OPS if registry.get_creator(op, PLUGIN_VERSION, NAMESPACE) is None]
    if missing:
        raise InputError(
            f"plugin library {path} gives TensorRT {library.__version__} no {missing[0]} of version {PLUGIN_VERSION}; "
            "build it again with the headers of this TensorRT"
        )
