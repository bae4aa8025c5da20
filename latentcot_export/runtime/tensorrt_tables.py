"""The tables of one state, and its rows in flight, in the memory of a GPU that TensorRT's engine changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import LatentCoTError
from .cuda_driver import DeviceArray
from .cuda_graphs import CapturingGpu
from .native_state import NativeState
from .native_tables import PASS_CARRIED, Column, Status
from .refining import as_array

SMALL = ("control", "order", "sequences", "sampling", "stop_tokens", "counters")  # the host may change them any time
TOLD = ("sequences", "counters")
RESULTS = ("tokens", "depths", "logits")
STOP_TOKENS = 16  # room for them from the start: with more, everything captured would be of no use
_CACHES = "cache_"


class GpuTables:
    """Copies of a state's tables by input of the graph. The cache is a buffer a layer, and never leaves the GPU."""

    def __init__(self, gpu: CapturingGpu, state: NativeState, cache_bytes: int) -> None:
        self.gpu, self.arrays = gpu, state.arrays
        state.widen_stops(STOP_TOKENS)
        # an admission looks at none of the slots, so those that nobody has taken are marked here, once
        for place, row in enumerate(state.sequences):
            started = row[Column.NEXT_POSITION] if row[Column.STATUS] == Status.RUNNING else 0
            state.arrays["slots"][place, :, started:] = -1
        state.cleared, state.bring, self._written = True, self.bring, state.written
        layers, *shape = state.arrays["cache"].shape
        kind = np.dtype(np.uint8)
        flat = (int(np.prod(shape, dtype=np.int64)) * cache_bytes,)
        # a slot is written before it is read, and with it the lanes behind its head
        self.values = {f"{_CACHES}{layer}": gpu.empty(flat, kind) for layer in range(layers)}
        self.shapes = {name: tuple(shape) for name in self.values}
        self._stale: set[str] = set()
        self.renew()

    def renew(self) -> None:
        """Makes buffers of arrays whose shape is new; the others stay where they are."""
        for name, array in self.arrays.items():
            if name in ("max_passes", "cache") or self.shapes.get(name) == array.shape:
                continue
            self.values[name], self.shapes[name] = self.gpu.put(array), array.shape
        self.gpu.wait()

    def push(self) -> None:
        """Small tables, and those large ones that the host has written."""
        for name in {*SMALL, *self._written}:
            self.gpu.write(self.values[name], self.arrays[name])
        self._written.clear()
        self._stale = {"slots", "free_slots"}  # for the engine is about to run

    def pull(self, names: Iterable[str]) -> None:
        """Copies these to the host."""
        for name in names:
            if self.arrays[name].size:
                self.arrays[name][...] = self.gpu.get(self.values[name])

    def bring(self, *names: str) -> None:
        """Copies those of these that the engine may have changed since they were here."""
        self.gpu.enter()
        self.pull(self._stale.intersection(names))
        self._stale.difference_update(names)

    def idle(self) -> None:
        """Makes every place empty, on the GPU alone, until the next `push`: a pass finds nothing to do."""
        self.gpu.write(self.values["sequences"], np.zeros_like(self.arrays["sequences"]))


class GpuRows:
    """Two sets of rows, each read by one pass and written by the next. A pass of R rows uses the first R of both.

    `at` is the set that the next pass reads.
    """

    def __init__(self, gpu: CapturingGpu, most: int, hidden: int) -> None:
        self.gpu, self.most, self.at, self.rows = gpu, most, 0, 0
        self.shapes: dict[str, tuple[int, ...]] = {"rows": (4,), "latent": (hidden,), "reach": (), "mix": (hidden,)}
        self.sets = [
            {name: gpu.empty((most, *shape), self._kind(name)) for name, shape in self.shapes.items()} for _ in range(2)
        ]
        self.told: dict[str, Any] = {}

    @staticmethod
    def _kind(name: str) -> np.dtype:
        return np.dtype(np.int32 if name == "rows" else np.float32)

    def load(self, carried: dict[str, Any], rows: int) -> None:
        """Makes the set that is read next hold the rows in flight, and dead ones up to `rows`.

        Errors: LatentCoTError for rows of the other form.
        """
        held = self.sets[self.at]
        if carried is self.told:
            # live rows stand in front; behind what the last pass wrote lies anything
            for name, array in held.items():
                self.gpu.fill(array, self.rows, rows, 0xFF if name == "rows" else 0)
        else:
            if len(as_array(carried.get("fresh", np.zeros(0)))):
                raise LatentCoTError(
                    "a sequence that was begun by another session cannot go on in this one; submit it again"
                )
            arrays = {name: as_array(carried[name]) for name in PASS_CARRIED}
            live = arrays["rows"][:, 0] >= 0
            for name, array in held.items():
                whole = np.full(array.shape, -1 if name == "rows" else 0, array.dtype)
                whole[: int(live.sum())] = arrays[name][live]
                self.gpu.write(array, whole)
        self.rows = rows

    def clear(self) -> None:
        """Makes all rows of both sets dead."""
        for one in self.sets:
            for name, array in one.items():
                self.gpu.fill(array, 0, self.most, 0xFF if name == "rows" else 0)

    def tell(self) -> dict[str, Any]:
        """The rows in flight, for the state: the step and place of each, and the rest where it is."""
        self.told = {name: _Front(self.gpu, array, self.rows) for name, array in self.sets[self.at].items()}
        self.told["rows"] = self.told["rows"].numpy()
        return self.told


class _Front:
    """The first rows of an array on the GPU, that the host reads only when a sequence leaves."""

    def __init__(self, gpu: CapturingGpu, array: DeviceArray, rows: int) -> None:
        self._gpu, self._array, self._rows = gpu, array, rows

    def numpy(self) -> np.ndarray:
        """Their content now."""
        self._gpu.enter()
        return self._gpu.get(self._array)[: self._rows]
