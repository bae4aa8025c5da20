"""One ONNX Runtime session of a verified bundle, and the loop that every host of it needs.

The graph decides how many passes a call takes; the host only supplies room in the cache and calls again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from typing import Any

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from ..errors import InputError, LatentCoTError
from .memory import release_mapped
from .state import SLOT_BLOCK, BatchState

LARGE_WEIGHTS = 64 << 20  # bytes; below, looking for pages to give back costs more than they are worth
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


class GraphSession:
    """Runs the graph of a bundle. `threads` 0 means ONNX Runtime's own choice, or OMP_NUM_THREADS where it is set.

    Errors: InputError when ONNX Runtime refuses the model.
    """

    _large = False

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self.manifest = bundle.manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
        options.inter_op_num_threads = 1
        # freed caches go back to the system: an arena would keep the largest call's memory for ever
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(
                str(bundle.path("model.onnx")), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = str(error).splitlines()[0][:300]
            raise InputError(
                f"{bundle.path('model.onnx')}: ONNX Runtime {ort.__version__} cannot load this graph ({reason}); "
                "export it again with this version of latentcot-export"
            ) from None
        self._weights = bundle.path("model.onnx.data")
        self._large = self._weights.stat().st_size >= LARGE_WEIGHTS
        self._release()
        self.outputs = [each.name for each in self.session.get_outputs()]
        self._check_names(str(bundle.path("model.onnx")))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "latentcot-call")

    def _release(self) -> None:
        if self._large:
            release_mapped(self._weights)

    def _check_names(self, where: str) -> None:
        """A graph of somebody else may be a valid ONNX file with a valid hash. Errors: InputError."""
        empty = BatchState.new(self.manifest.model, self.manifest.dtype, np.zeros((1, 1), np.int64), slots=1)
        carried = [*empty.arrays, *empty.caches]
        given = [*vars(CallInputs.greedy(1, 1)), "end", "max_passes"]
        found = {each.name for each in self.session.get_inputs()}
        if found != {*given, *carried} or set(self.outputs) != {f"{name}_out" for name in carried}:
            raise InputError(
                f"{where}: its inputs and outputs are not those of a bundle of this version; "
                "export it again with this version of latentcot-export"
            )

    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """One call of the graph: state advances in place, at most `max_passes` passes, positions below end `[B]`.

        Errors: LatentCoTError when ONNX Runtime gives up. After an exception, Ctrl-C included, `state` is of no use.
        """
        arrays = {**state.arrays, **vars(inputs), "end": np.asarray(end, np.int64), "max_passes": np.int64(max_passes)}
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) for name, value in arrays.items()}
        feeds.update(state.caches)
        for name, value in zip(self.outputs, self._results(feeds), strict=True):
            carried = name.removesuffix("_out")
            if carried in state.caches:
                state.caches[carried] = value
            else:
                state.arrays[carried] = value.numpy()

    def _results(self, feeds: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        """Outputs of one call; Ctrl-C ends it within one operator. Errors: LatentCoTError when ONNX Runtime fails."""
        options = ort.RunOptions()
        options.log_severity_level = 4  # what goes wrong is told by the exception, once
        try:
            if threading.current_thread() is not threading.main_thread():
                return self.session.run_with_ort_values(self.outputs, feeds, options)
            # Python sees Ctrl-C between two of its own instructions only: the main thread must not be inside the call
            future: concurrent.futures.Future[list[ort.OrtValue]] | None = None
            try:
                future = self._worker.submit(self.session.run_with_ort_values, self.outputs, feeds, options)
                return future.result()
            finally:
                options.terminate = True
                if future is not None:
                    concurrent.futures.wait([future])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise LatentCoTError(
                f"ONNX Runtime {ort.__version__} failed to run the model ({reason}); try fewer or shorter prompts"
            ) from error

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

    def feed(self, state: BatchState, inputs: CallInputs, end: np.ndarray, rows: int = PROMPT_ROWS) -> None:
        """Runs known tokens below `end` with up to `rows` rows a sequence, then leaves one idle row each."""
        pending = int((end - state.arrays["next_position"]).max())
        state.set_rows(max(1, min(rows, pending)))
        self.run(state, inputs, end)
        state.set_rows(1)
        self._release()
