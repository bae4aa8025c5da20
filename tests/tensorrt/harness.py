"""harness.cpp by ctypes: plugins made of fields, asked what TensorRT's builder and execution contexts ask."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

MOST_RANK = 8  # nvinfer1::Dims::MAX_DIMS
FLOAT, HALF, INT32, INT64, BF16 = 0, 1, 3, 8, 7  # nvinfer1::DataType
FLOAT32_FIELD, INT32_FIELD = 1, 5  # nvinfer1::PluginFieldType
BUILD, RUNTIME = 0, 1  # nvinfer1::TensorRTPhase
TYPES = {
    np.dtype(np.float32): FLOAT,
    np.dtype(np.float16): HALF,
    np.dtype(ml_dtypes.bfloat16): BF16,
    np.dtype(np.int32): INT32,
    np.dtype(np.int64): INT64,
}
Shape = Sequence[int]
Value = int | float


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class _Collection(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(_Field)))


@dataclasses.dataclass(frozen=True)
class Creator:
    interface: str
    name: str
    version: str
    namespace: str
    fields: dict[str, int]  # name -> PluginFieldType


class Harness:
    """One plugin library. `refusal` is the sentence of the last thing that was refused."""

    def __init__(self, harness: Path, plugins: Path) -> None:
        self.library = ctypes.CDLL(str(harness))
        for name in ("create", "clone", "attach"):
            getattr(self.library, name).restype = ctypes.c_void_p
        for name in ("last_message", "creator", "describe"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.fields.restype = ctypes.POINTER(_Collection)
        self.library.workspace_size.restype = ctypes.c_size_t
        count = self.library.open_library(str(plugins).encode())
        assert count >= 0, self.refusal
        self.creators = [self._creator(i) for i in range(count)]

    @property
    def refusal(self) -> str:
        return str(self.library.last_message().decode())

    def _creator(self, i: int) -> Creator:
        interface, version, *names, fields = self.library.creator(i).decode().split("|")
        types = dict(field.split(":") for field in fields.split(","))
        return Creator(f"{interface} {version}", *names, {name: int(kind) for name, kind in types.items()})

    def create(self, name: str, fields: Mapping[str, Value] | Sequence[_Field], phase: int = BUILD) -> Plugin | None:
        """A plugin, None where it was refused; integers become int32 fields, the others float32."""
        self.library.forget_message()
        given = [field(*each) for each in fields.items()] if isinstance(fields, Mapping) else list(fields)
        array = (_Field * len(given))(*given)
        handle = self.library.create(name.encode(), len(given), array, phase)
        return Plugin(self, handle) if handle else None


def field(name: str, value: Value | None, kind: int | None = None, length: int = 1) -> _Field:
    """One field of one number; None gives no data."""
    kind = kind or (INT32_FIELD if isinstance(value, int) else FLOAT32_FIELD)
    number = np.array(value or 0, np.int32 if kind == INT32_FIELD else np.float32)
    made = _Field(name.encode(), number.ctypes.data if value is not None else None, kind, length)
    made.keep = number  # type: ignore[attr-defined]
    return made


class Plugin:
    """One plugin; deleted with this object."""

    def __init__(self, harness: Harness, handle: int) -> None:
        self.harness, self.library = harness, harness.library
        self.handle = ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self.library.destroy(self.handle)

    @property
    def describe(self) -> list[str]:
        return str(self.library.describe(self.handle).decode()).split("|")

    @property
    def fields(self) -> dict[str, Value]:
        """What an engine keeps of it."""
        collection = self.library.fields(self.handle).contents
        found: dict[str, Value] = {}
        for i in range(collection.count):
            each = collection.fields[i]
            assert each.length == 1
            kind = ctypes.c_int32 if each.type == INT32_FIELD else ctypes.c_float
            found[each.name.decode()] = kind.from_address(each.data).value
        return found

    def again(self) -> list[Plugin]:
        """A clone, and what an execution context gets."""
        return [Plugin(self.harness, getattr(self.library, name)(self.handle)) for name in ("clone", "attach")]

    @property
    def outputs(self) -> int:
        return int(self.library.output_count(self.handle))

    @property
    def aliases(self) -> list[int]:
        """The input that each output is, -1 for a new tensor."""
        return [self.library.alias(self.handle, i) for i in range(self.outputs)]

    def types(self, given: Sequence[int]) -> list[int] | None:
        made = (ctypes.c_int * self.outputs)()
        status = self.library.output_types(
            self.handle, len(given), (ctypes.c_int * len(given))(*given), self.outputs, made
        )
        return None if status else list(made)

    def shapes(self, given: Sequence[Shape]) -> list[tuple[int, ...]] | None:
        """Shapes of the outputs; numbers below 0 stand for dimensions that are not known."""
        ranks, dims = _shapes(given)
        made_ranks, made = (ctypes.c_int * self.outputs)(), np.zeros((self.outputs, MOST_RANK), np.int64)
        status = self.library.output_shapes(
            self.handle,
            len(given),
            ranks,
            ctypes.c_void_p(dims.ctypes.data),
            self.outputs,
            made_ranks,
            ctypes.c_void_p(made.ctypes.data),
        )
        return None if status else [tuple(int(n) for n in made[i, : made_ranks[i]]) for i in range(self.outputs)]

    def supports(self, at: int, types: Sequence[int], inputs: int, layout: int = 0) -> bool:
        """Whether input or output `at` may have its type, those before it given; layout 0 is linear."""
        array = (ctypes.c_int * len(types))(*types)
        return bool(self.library.supports(self.handle, at, inputs, len(types) - inputs, array, layout))

    def workspace(self, given: Sequence[Shape], types: Sequence[int]) -> int:
        ranks, dims = _shapes(given)
        kinds = (ctypes.c_int * len(types))(*types)
        return int(
            self.library.workspace_size(self.handle, len(given), ranks, ctypes.c_void_p(dims.ctypes.data), kinds)
        )

    def enqueue(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
        """Runs it; an aliased output must be the array of its input."""
        self.library.forget_message()
        shapes, kinds = [array.shape for array in inputs], [TYPES[array.dtype] for array in inputs]
        ranks, dims = _shapes(shapes)
        size = self.workspace(shapes, kinds)
        memory = np.full(size + 256, 0xFB, np.uint8)  # whatever stands there
        start = memory.ctypes.data + -memory.ctypes.data % 256
        pointers = [(ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)) for arrays in (inputs, outputs)]
        types = (ctypes.c_int * len(kinds))(*kinds)
        return int(
            self.library.enqueue(
                self.handle,
                len(inputs),
                ranks,
                ctypes.c_void_p(dims.ctypes.data),
                types,
                *pointers,
                ctypes.c_void_p(start),
            )
        )


def _shapes(given: Sequence[Shape]) -> tuple[ctypes.Array[ctypes.c_int], np.ndarray]:
    dims = np.zeros((len(given), MOST_RANK), np.int64)
    for i, shape in enumerate(given):
        dims[i, : len(shape)] = shape
    return (ctypes.c_int * len(given))(*(len(shape) for shape in given)), dims
