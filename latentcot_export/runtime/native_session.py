"""The session of a `--target ort` bundle: one call is a burst of passes over the tables of a NativeState."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle, Manifest
from ..errors import InputError, LatentCoTError
from .library import library_path
from .native_state import NativeState
from .native_tables import CARRIED, TABLES, Control, Counter
from .ort_session import GRAPH, OrtSession

_OUTPUTS = tuple(f"{name}_out" for name in CARRIED)
BFLOAT16 = 16  # of ONNX's TensorProto; what numpy has no type for stands in arrays of uint16, which no other table is


class Session(Protocol):
    """What the engine needs of a session; a test may put another behind it."""

    manifest: Manifest

    def run(self, state: NativeState, max_passes: int) -> None:
        """See NativeSession."""

    def has_read(self, tokens: int) -> None:
        """See OrtSession."""


class NativeSession(OrtSession):
    """Runs the packed graph of a bundle. `threads`: see OrtSession. Several threads may run states of their own.

    Errors: InputError when ONNX Runtime refuses the model, or the op library is not built.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        super().__init__(bundle, threads, library_path())
        inputs = {"max_passes", *table_names(self.manifest), *CARRIED}
        self.check_names(str(bundle.path(GRAPH)), inputs, set(_OUTPUTS))

    def run(self, state: NativeState, max_passes: int) -> None:
        """Runs until nothing is live or can start, at most `max_passes` passes; tables and carried rows move on.

        Ends early where `control` asks for it. While a prompt is refined, each pass is a call of the graph. Errors:
        LatentCoTError when ONNX Runtime or an op gives up. After an exception, Ctrl-C included, `state` is of no use.
        """
        left = max_passes
        while state.refining and left > 0:
            before = state.passes
            state.refining.feed(state)
            self._call(state, 1)
            if state.passes == before:
                return
            state.refining.settle(state)
            left -= 1
            if state.arrays["control"][Control.YIELD_WHEN_DONE] and state.counters[Counter.FINISHED] > 0:
                return
        if left > 0 or left == max_passes:
            self._call(state, left)

    def _call(self, state: NativeState, max_passes: int) -> None:
        """One call of the graph."""
        bound = state.binding
        if not isinstance(bound, _Binding) or bound.session is not self.session or bound.layout != state.layout:
            bound = state.binding = _Binding(self.session, state)
        state.arrays["max_passes"][()] = max_passes
        bound.feed(state.carried)
        self.interruptible(self.session.run_with_iobinding, bound.binding)
        state.carried = dict(zip(CARRIED, bound.binding.get_outputs(), strict=True))


class _Binding:
    """The tables of one state bound to one session for good, without a copy: what an op writes, numpy reads."""

    def __init__(self, session: ort.InferenceSession, state: NativeState) -> None:
        self.session, self.layout = session, state.layout
        self.binding = session.io_binding()
        self.values: dict[str, ort.OrtValue] = {}  # the binding itself does not keep numpy's memory alive
        for name, table in state.arrays.items():
            self._bind(name, table)

    def feed(self, carried: dict[str, Any]) -> None:
        """Binds the rows in flight, and new outputs: ONNX Runtime would write into those of the call before."""
        for name, value in carried.items():
            self._bind(name, value)
            self.binding.bind_output(f"{name}_out")

    def _bind(self, name: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            value = shared_value(name, value)
        self.values[name] = value
        self.binding.bind_ortvalue_input(name, value)


def table_names(manifest: Manifest) -> set[str]:
    """The tables of a bundle's graphs."""
    return {*TABLES, *(["weights"] if manifest.recurrence.tailed else [])}


def shared_value(name: str, array: np.ndarray) -> ort.OrtValue:
    """A table as a tensor that is the very memory of the array, which the caller keeps. Errors: LatentCoTError."""
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise LatentCoTError(f"table {name} is not one writable piece of memory; make a new NativeState")
    if array.dtype == np.uint16:
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    else:
        value = ort.OrtValue.ortvalue_from_numpy(array)
    if array.size and value.data_ptr() != array.ctypes.data:
        raise InputError(
            f"ONNX Runtime {ort.__version__} copies its inputs, so that table {name} cannot be changed in place; "
            "install the version that requirements/core.txt names"
        )
    return value
