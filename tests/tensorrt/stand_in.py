"""A stand-in for the module `tensorrt`: its engine is the bundle's graph, node by node in numpy, and its plugins are those
of plugins/tensorrt with their kernels on the CPU. It refuses what TensorRT would refuse of the calls that we make."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentcot_export.runtime.cuda_graphs import CapturingGpu
from tests.tensorrt.harness import TYPES, Harness, Plugin

OPS = ("ChooseToken", "RaggedAdvance", "RaggedAttention", "RaggedHalt")
DTYPES = {number: dtype for dtype, number in TYPES.items()}
ONNX = {1: np.float32, 10: np.float16, 16: ml_dtypes.bfloat16, 6: np.int32, 7: np.int64}


def plugin_op(name: str, harness: Harness) -> type[OpRun]:
    """An op of the graph that is done by its plugin; tables are changed where they lie."""
    made: dict[str, Plugin] = {}

    def _run(self: Any, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        assert attributes.pop("plugin_namespace") == "latentcot" and attributes.pop("plugin_version") == "1"
        key = self.onnx_node.name
        if key not in made:
            plugin = harness.create(name, attributes)
            assert plugin is not None, harness.refusal
            made[key] = plugin
        plugin = made[key]
        # numpy slices without a copy; a table is one piece, and must stay where it is
        inputs = tuple(np.ascontiguousarray(array) for array in inputs)
        kinds = [TYPES[array.dtype] for array in inputs]
        shapes, types = plugin.shapes([array.shape for array in inputs]), plugin.types(kinds)
        assert shapes is not None and types is not None, harness.refusal
        assert len(shapes) == len(self.onnx_node.output)
        outputs = [
            inputs[alias] if alias >= 0 else np.full(shape, 0x7B, np.uint8).astype(DTYPES[kind])
            for alias, shape, kind in zip(plugin.aliases, shapes, types, strict=True)
        ]
        assert plugin.enqueue(inputs, outputs) == 0, harness.refusal
        return tuple(outputs)

    return type(name, (OpRun,), {"op_domain": "latentcot", "_run": _run})


class TensorRT(SimpleNamespace):
    """The module. `complaint` makes the next parse or build fail; `log` is what was asked of it."""

    def __init__(self, harness: Harness, driver: ctypes.CDLL, version: str = "11.4.0.106") -> None:
        self.__spec__ = ModuleSpec("tensorrt", None)  # torch asks every module it knows by name
        super().__init__()
        self.harness, self.driver, self.__version__ = harness, driver, version
        self.contexts: list[Context] = []
        self.log: list[str] = []
        self.complaint: str | None = None
        self.player = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: self.contexts[number].work())
        driver.stand_in_player(self.player)
        self.registry = Registry(self)
        self.ILogger = Logger
        self.PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.Builder = lambda logger: Builder(self, logger)
        self.OnnxParser = lambda network, logger: Parser(self, network)
        self.Runtime = lambda logger: Runtime(self, logger)

    def get_plugin_registry(self) -> Registry:
        return self.registry


class Logger:
    Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", WARNING="warning")

    def log(self, severity: str, message: str) -> None:
        raise NotImplementedError


class Registry:
    def __init__(self, module: TensorRT) -> None:
        self.module, self.loaded = module, False

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object() if self.loaded and name in OPS and (version, namespace) == ("1", "latentcot") else None

    def load_library(self, path: str) -> object | None:
        self.module.log.append("plugins")
        self.loaded = b"getCreators" in Path(path).read_bytes()
        return object() if self.loaded else None


class Parser:
    def __init__(self, module: TensorRT, network: SimpleNamespace) -> None:
        self.module, self.network, self.num_errors = module, network, 0

    def parse_from_file(self, path: str) -> bool:
        if self.module.complaint:
            self.num_errors = 1
            return False
        self.network.path = path
        return True

    def get_error(self, _i: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: self.module.complaint)


class Builder:
    def __init__(self, module: TensorRT, logger: Logger) -> None:
        self.module, self.logger = module, logger

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 2  # strongly typed
        return SimpleNamespace(path=None)

    def create_builder_config(self) -> Config:
        return Config(self.module)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: SimpleNamespace, config: Config) -> bytearray | None:
        inputs = onnx.load(network.path, load_external_data=False).graph.input
        dynamic = {each.name for each in inputs if any(dim.dim_param for dim in each.type.tensor_type.shape.dim)}
        for profile in config.profiles:
            assert set(profile.shapes) == dynamic
        assert config.flags == {"aliased": True, "tf32": False} and config.timings is not None
        if "build" in (self.module.complaint or ""):
            self.logger.log(Logger.Severity.ERROR, self.module.complaint)
            return None
        config.timings.content += b"timed;"
        return bytearray(json.dumps([network.path, [each.shapes for each in config.profiles]]).encode())


class Config:
    def __init__(self, module: TensorRT) -> None:
        self.module = module
        self.flags: dict[str, bool] = {}
        self.profiles: list[Profile] = []
        self.timings: Any = None

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.flags[feature] = on

    def clear_flag(self, flag: str) -> None:
        self.flags[flag] = False

    def create_timing_cache(self, content: bytes) -> SimpleNamespace:
        self.module.log.append(f"timings {content!r}")
        made = SimpleNamespace(content=content)
        made.serialize = lambda: bytearray(made.content)
        return made

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        self.timings = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self.timings

    def add_optimization_profile(self, profile: Profile) -> int:
        good = all(
            least <= tuned <= most for each in profile.shapes.values() for least, tuned, most in zip(*each, strict=True)
        )
        self.profiles.append(profile)
        return len(self.profiles) - 1 if good else -1


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, least: tuple[int, ...], tuned: tuple[int, ...], most: tuple[int, ...]) -> None:
        self.shapes[name] = (least, tuned, most)


class Runtime:
    def __init__(self, module: TensorRT, logger: Logger) -> None:
        self.module, self.logger = module, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if self.module.complaint:
            self.logger.log(Logger.Severity.ERROR, self.module.complaint)
            return None
        assert self.module.registry.loaded, "plugins come before engines"
        path, profiles = json.loads(bytes(plan))
        return Engine(self.module, path, profiles)


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, module: TensorRT, path: str, profiles: list[dict[str, Any]]) -> None:
        self.module, self.profiles = module, profiles
        ops = [plugin_op(name, module.harness) for name in OPS]
        model = onnx.load(path)
        self.evaluator = ReferenceEvaluator(model, new_ops=ops)
        self.inputs = {each.name: ONNX[each.type.tensor_type.elem_type] for each in model.graph.input}
        self.fixed = {
            each.name: tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in model.graph.input
        }
        self.outputs = [each.name for each in model.graph.output]

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user"
        self.module.contexts.append(Context(self))
        return self.module.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.number = engine, len(engine.module.contexts)
        self.memory, self.profile, self.ran = 0, -1, False
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        assert address and size >= self.engine.device_memory_size_v2
        self.memory = address

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.profile = index
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.inputs:
            return False
        least, _, most = self.engine.profiles[self.profile].get(name, (shape, shape, self.engine.fixed[name]))
        self.shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0 and (name in self.engine.inputs or name in self.engine.outputs)

    def execute_async_v3(self, _stream: int) -> bool:
        assert self.memory and set(self.shapes) == set(self.engine.inputs)
        assert set(self.addresses) == {*self.engine.inputs, *self.engine.outputs}
        driver = self.engine.module.driver
        if driver.stand_in_capturing():
            assert self.ran, "a pass must have run before it is captured"
            driver.stand_in_record(self.number)
        else:
            self.ran = True
            self.work()
        return True

    def work(self) -> None:
        """One pass, on the memory of the tensors."""
        given = {
            name: view(self.addresses[name], self.shapes[name], dtype) for name, dtype in self.engine.inputs.items()
        }
        made = self.engine.evaluator.run(None, given)
        for name, array in zip(self.engine.outputs, made, strict=True):
            source = name.removesuffix("_out")
            if source in given and source not in ("rows", "latent", "reach", "mix"):
                assert array is given[source] and self.addresses[name] == self.addresses[source]
                continue
            view(self.addresses[name], array.shape, array.dtype)[...] = array


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The memory at an address, which the stand-in of the driver has on the host."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8).view(dtype).reshape(shape)


def gpu_of(driver: Path) -> Callable[[], CapturingGpu]:
    return lambda: CapturingGpu(str(driver))
