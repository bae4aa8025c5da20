"""A device that is none: the processor with tables apart from the host's, and passes recorded as ONNX Runtime does it."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort

from latentcot_export.bundle import Bundle
from latentcot_export.runtime.native_tables import Counter
from latentcot_export.runtime.pass_rows import RowSets
from latentcot_export.runtime.pass_session import PassSession

TIMES = 3  # a run before the capture, the run that is captured, and what was captured


def content(value: ort.OrtValue) -> np.ndarray:
    """The bytes of a tensor, of whatever type: a cache begins as anything, and bfloat16 is none of numpy's."""
    return np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8).copy()


class Replaying(PassSession):
    """Holds the fixed form to what a captured pass needs. `recorded` are the sets that were, in order."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        super().__init__(bundle, threads, "cpu", apart=True)
        self.recorded: list[RowSets] = []

    def _record(self, sets: RowSets, options: ort.RunOptions) -> None:
        """Several passes for one, none of which may leave a trace but in what is counted and that nothing runs."""
        tables = {name: content(value) for name, value in sets.tables.values.items()}
        for _ in range(TIMES):
            self._take(sets, options)
        for name, before in tables.items():
            after = content(sets.tables.values[name])
            if name == "counters":
                counted = [Counter.RESERVED, Counter.PASSES, Counter.STALLED]
                before.view(np.int64)[counted] = after.view(np.int64)[counted]
            assert np.array_equal(after, before), name
        for name, value in sets.sets[1 - sets.at].items():
            assert np.array_equal(value.numpy(), sets.blank[name]), name
        self.recorded.append(sets)
