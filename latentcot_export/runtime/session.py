"""One ONNX Runtime session of a verified bundle, and the loop that every host of it needs.

The graph decides how many passes a call takes; the host only supplies room in the cache and calls again.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle, Manifest
from ..errors import LatentCoTError
from .ort_session import OrtSession
from .state import SLOT_BLOCK, BatchState

PROMPT_ROWS = 64  # rows per sequence of a prompt call: enough to keep the matrix products busy, small for the mask


@dataclasses.dataclass
class CallInputs:
    """What stays the same during a call (graph names; B sequences, T tokens, S stop ids)."""

    forced_depth: np.ndarray  # int64 [B, T], 0 = learned
    uniform: np.ndarray  # float32 [B, T] in [0, 1)
    temperature: np.ndarray  # float32 [B], 0 = greedy
    top_k: np.ndarray  # int64 [B], 0 = off
    top_p: np.ndarray  # float32 [B], 1 = off
    stop_tokens: np.ndarray  # int64 [B, S], padded with -1
    lockstep: bool = False

    @classmethod
    def greedy(cls, batch: int, length: int) -> CallInputs:
        """Greedy choice, learned depth, no stop tokens."""
        return cls(
            np.zeros((batch, length), np.int64),
            np.zeros((batch, length), np.float32),
            np.zeros(batch, np.float32),
            np.zeros(batch, np.int64),
            np.ones(batch, np.float32),
            np.full((batch, 1), -1, np.int64),
        )

    def keep(self, sequences: list[int]) -> CallInputs:
        """The inputs of these sequences, in this order."""
        kept: dict[str, Any] = {
            name: value[sequences] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **kept)


class PortableSession(abc.ABC):
    """Runs a portable graph, whoever executes it: the loop that every host of one needs, around `call`."""

    manifest: Manifest

    @abc.abstractmethod
    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """One call of the graph: state advances in place, at most `max_passes` passes, positions below end `[B]`.

        Errors: LatentCoTError when it fails. After an exception, Ctrl-C included, `state` is of no use.
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Gives back memory that only prompts need."""

    def run(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int = 1 << 30) -> None:
        """Calls the graph until no sequence has work below `end` or `max_passes` more passes were taken.

        Grows the caches as needed: a call returns before the pass that would not fit.
        """
        last = int(state.arrays["passes"]) + max_passes
        while state.has_work(end) and int(state.arrays["passes"]) < last:
            used = int(state.arrays["used_slots"].max())
            # a quarter more than now, so that a long run is copied a logarithmic number of times
            if used + state.rows > state.slots:
                state.reserve(used + state.rows + max(SLOT_BLOCK, used // 4))
            before = int(state.arrays["passes"])
            self.call(state, inputs, end, last - before)
            if int(state.arrays["passes"]) <= before:
                raise LatentCoTError("the graph returned without taking a pass; export the bundle again")

    def feed(self, state: BatchState, inputs: CallInputs, end: np.ndarray, rows: int = PROMPT_ROWS) -> int:
        """Runs known tokens below `end` with up to `rows` rows a sequence, then leaves one idle row each.

        Returns how many rows a sequence had.
        """
        pending = int((end - state.arrays["next_position"]).max())
        rows = max(1, min(rows, pending))
        state.set_rows(rows)
        self.run(state, inputs, end)
        state.set_rows(1)
        self.release()
        return rows


class GraphSession(OrtSession, PortableSession):
    """Runs the portable graph of a bundle, `--target onnx`. `threads` and errors: see OrtSession."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        super().__init__(bundle, threads)
        self.outputs = [each.name for each in self.session.get_outputs()]
        empty = BatchState.new(
            self.manifest.model, self.manifest.recurrence, self.manifest.dtype, np.zeros((1, 1), np.int64), slots=1
        )
        carried = [*empty.arrays, *empty.caches]
        given = [*vars(CallInputs.greedy(1, 1)), "end", "max_passes"]
        self.check_names(str(bundle.path("model.onnx")), {*given, *carried}, {f"{name}_out" for name in carried})

    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """See PortableSession."""
        arrays = {**state.arrays, **vars(inputs), "end": np.asarray(end, np.int64), "max_passes": np.int64(max_passes)}
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for name, value in arrays.items()}
        feeds.update(state.caches)
        values = self.interruptible(self.session.run_with_ort_values, self.outputs, feeds)
        for name, value in zip(self.outputs, values, strict=True):
            carried = name.removesuffix("_out")
            if carried in state.caches:
                state.caches[carried] = value
            else:
                state.arrays[carried] = value.numpy()
