"""A stand-in for the module `tensorrt_rtx` at run time: its engine is the bundle's graph, run by ONNX Runtime in place.

It takes and gives memory by address as the library does, and refuses what the library would: sizes outside the chosen
profile, tensors without an address.
"""

from __future__ import annotations

import ctypes
import enum
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latentcot_export.runtime.rtx_engine import Profile

_DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": bool}


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1


class _Logger:
    Severity = _Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class Location(enum.Enum):
    DEVICE = 0
    HOST = 1


class Context:
    """Runs the graph over the addresses it was given. `extra`: passes beyond what was asked for, a fault."""

    def __init__(self, graph: Path, profiles: tuple[Profile, ...], logger: Any, extra: int = 0) -> None:
        self.graph = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.profiles, self.logger, self.extra = profiles, logger, extra
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.chosen: list[int] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        self.chosen.append(index)
        self.shapes.clear()
        return stream != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream and self.profile is not None
        feeds, sizes = {}, {}
        for each in self.graph.get_inputs():
            shape = self.shapes[each.name]
            sizes.update({axis: size for axis, size in zip(each.shape, shape, strict=True) if isinstance(axis, str)})
            feeds[each.name] = self._array(each.name, shape, np.dtype(_DTYPES[each.type])).copy()
        if not self.profiles[self.profile].takes(sizes):
            self.logger.log(_Severity.ERROR, f"sizes {sizes} are not in profile {self.profile}")
            return False
        feeds["max_passes"] = np.asarray(feeds["max_passes"] + self.extra)
        outputs = [each.name for each in self.graph.get_outputs()]
        for name, value in zip(outputs, self.graph.run(outputs, feeds), strict=True):
            self._array(name, value.shape, value.dtype)[...] = value
        self.addresses.clear()
        return True

    def _array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def library(
    graph: Path,
    profiles: tuple[Profile, ...],
    engine: bytes,
    *,
    version: str = "1.7.1.116",
    on_host: tuple[str, ...] = (),
    extra: int = 0,
) -> Any:
    """The module, for an engine of these bytes. `contexts` lists those that were made; no other bytes are taken."""
    contexts: list[Context] = []

    class Engine:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def get_tensor_location(self, name: str) -> Location:
            return Location.HOST if name in on_host else Location.DEVICE

        def create_execution_context(self, strategy: str) -> Context:
            assert strategy == "on profile change"
            contexts.append(Context(graph, profiles, self.logger, extra))
            return contexts[-1]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if data == engine:
                return Engine(self.logger)
            self.logger.log(_Severity.ERROR, "this is no engine")
            return None

    strategies = types.SimpleNamespace(ON_PROFILE_CHANGE="on profile change")
    return types.SimpleNamespace(
        __version__=version,
        ILogger=_Logger,
        Runtime=Runtime,
        TensorLocation=Location,
        ExecutionContextAllocationStrategy=strategies,
        contexts=contexts,
    )
