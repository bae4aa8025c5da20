"""The tables of one NativeState as tensors that a graph changes: its own memory, or copies on another device.

On another device the cache never leaves it. Small tables go there before every burst, large ones where the host has
changed them. What every burst tells comes back after it, slots when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable

import numpy as np
import onnxruntime as ort

from ..errors import InputError
from .native_session import BFLOAT16, shared_value
from .native_state import NativeState
from .native_tables import Column, Status

SMALL = ("control", "order", "sequences", "sampling", "stop_tokens", "counters")
TOLD = ("sequences", "counters")
RESULTS = ("tokens", "depths", "logits")
STOP_TOKENS = 16  # room for them from the start: with more, every captured pass would be of no use

# A capture forbids allocations and copies to all threads of a process.
DEVICE_LOCK = threading.RLock()


class SharedTables:
    """Tables in the host's memory: what an op writes, numpy reads."""

    def __init__(self, state: NativeState) -> None:
        self.arrays = state.arrays
        self.values: dict[str, ort.OrtValue] = {}
        self.renew()

    def renew(self) -> None:
        """Takes the arrays as they are now."""
        self.values = {name: self.tensor(array, name) for name, array in self.arrays.items() if name != "max_passes"}

    def tensor(self, array: np.ndarray, name: str = "of rows") -> ort.OrtValue:
        """A tensor for the graph; here the memory of the array."""
        return shared_value(name, array)

    def push(self) -> None:
        """Shows the graph what the host has changed."""

    def pull(self, names: Iterable[str]) -> None:
        """Shows the host what the graph has changed."""

    def idle(self) -> None:
        """See DeviceTables; here there is nothing to capture."""


class DeviceTables(SharedTables):
    """Tables on `device`, of which the state has copies. Errors: InputError when they do not fit there."""

    def __init__(self, state: NativeState, device: str) -> None:
        self.device = device
        self._stale: set[str] = set()
        state.widen_stops(STOP_TOKENS)
        for place, row in enumerate(state.sequences.tolist()):
            started = row[Column.NEXT_POSITION] if row[Column.STATUS] == Status.RUNNING else 0
            state.arrays["slots"][place, :, started:] = -1
        state.cleared, state.bring, self._written = True, self.bring, state.written
        super().__init__(state)

    def renew(self) -> None:
        """Makes tensors of arrays whose shape is new; the others stay where they are."""
        for name, array in self.arrays.items():
            held = self.values.get(name)
            if name != "max_passes" and (held is None or tuple(held.shape()) != array.shape):
                self.values[name] = self.tensor(array, name)

    def tensor(self, array: np.ndarray, name: str = "of rows") -> ort.OrtValue:
        """A copy of the array on the device; of the cache, which nobody reads before it is written, room alone."""
        try:
            if name == "cache":
                kind = BFLOAT16 if array.dtype == np.uint16 else array.dtype.type
                return ort.OrtValue.ortvalue_from_shape_and_type(array.shape, kind, self.device, 0)
            return ort.OrtValue.ortvalue_from_numpy(array if self.device != "cpu" else array.copy(), self.device, 0)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"table {name} of {array.nbytes} bytes does not fit on device {self.device} ({reason}); give fewer "
                "cache_slots or a smaller max_batch"
            ) from None

    def push(self) -> None:
        """Small tables, and those large ones that the host has written."""
        for name in {*SMALL, *self._written}:
            self.values[name].update_inplace(self.arrays[name])
        self._written.clear()
        self._stale = {"slots", "free_slots"}  # for the graph is about to run

    def pull(self, names: Iterable[str]) -> None:
        """Copies these to the host."""
        for name in names:
            if self.arrays[name].size:
                self.arrays[name][...] = self.values[name].numpy()

    def bring(self, *names: str) -> None:
        """Copies those of these that the graph may have changed since they were here."""
        with DEVICE_LOCK:
            self.pull(self._stale.intersection(names))
        self._stale.difference_update(names)

    def idle(self) -> None:
        """Makes every place empty, on the device alone, until the next `push`: a pass finds nothing to do."""
        self.values["sequences"].update_inplace(np.zeros_like(self.arrays["sequences"]))


class OnDevice:
    """A tensor of rows in flight that the host reads only when a sequence leaves."""

    def __init__(self, value: ort.OrtValue) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        """Its content now."""
        with DEVICE_LOCK:
            return np.array(self.value.numpy())


def locked(apart: bool) -> contextlib.AbstractContextManager[object]:
    """What to hold while tables that lie apart are made, filled or run over."""
    return DEVICE_LOCK if apart else contextlib.nullcontext()
