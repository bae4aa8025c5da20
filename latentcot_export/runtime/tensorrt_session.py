"""The session of a `--target tensorrt` bundle: a burst is replays of one captured pass of its engine, without a question.

Never run on a GPU: tests/tensorrt runs every line of it over stand-ins for the driver and for TensorRT, whose engine there
is the reference of the ops.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import InputError, LatentCoTError
from ..spec import DTYPE_BYTES
from .cuda_graphs import CapturingGpu, Replay
from .faults import check_fault
from .native_state import NativeState
from .native_tables import PASS_CARRIED, Control, Counter
from .pass_rows import capacity_of, is_over, passes_before_a_look, wanted_rows
from .refining import as_array
from .tensorrt_build import row_limits
from .tensorrt_engine import engine_folder, engine_key, read_engine
from .tensorrt_library import copied_tables, load_plugins, tensorrt
from .tensorrt_listener import listener
from .tensorrt_tables import RESULTS, TOLD, GpuRows, GpuTables

_BYTE, _INT = np.dtype(np.uint8), np.dtype(np.int32)
# Tables that plugins change: outputs of the engine too.
_WRITTEN = {"sequences", "slots", "free_slots", "counters", "depths", "tokens", "logits", "weights"}


class TensorRTSession:
    """Loads the engine of a verified bundle, built by `tensorrt_build`; one call at a time, from any thread.

    `engines`: the folder it lies in. Errors: InputError without TensorRT, the plugins, a GPU or the engine, with the
    command that builds it where it is for another TensorRT or another GPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: str | os.PathLike[str] | None = None,
        library: Any = None,
        gpu: CapturingGpu | None = None,
    ) -> None:
        self.manifest, self._folder = bundle.manifest, bundle.folder
        library = library or tensorrt()
        self.gpu = gpu or CapturingGpu()
        folder = engine_folder(bundle, engines)
        key = engine_key(bundle, library.__version__, self.gpu.capability)
        plan = read_engine(bundle, folder, key)
        load_plugins(library)
        self._complaints: list[str] = []
        self._runtime = library.Runtime(listener(library, self._complaints))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InputError(f"engine {folder / key.file} cannot be loaded ({self._why()}); check the driver's version")
        self._version = library.__version__
        self._user_managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
        # all contexts work one after another, on one stream, in the same memory
        size = int(self._engine.device_memory_size_v2)
        self._scratch = self.gpu.empty((size,), _BYTE)
        self.decode_rows, self.prompt_rows = row_limits(self.manifest)
        self._lock, self._copies = threading.Lock(), 0

    def has_read(self, tokens: int) -> None:
        """See OrtSession; here there is nothing to give back."""

    def run(self, state: NativeState, max_passes: int) -> None:
        """Runs until nothing is live or can start, at most `max_passes` passes and one that only ends what is over.

        Tables and rows move on. Ends early where `control` asks for it, but only between two looks of the host. Errors:
        LatentCoTError when TensorRT, the driver or a kernel gives up. After an exception, `state` is of no use.
        """
        with self._lock:
            self.gpu.enter()
            self._run(state, max_passes)
        check_fault(state.counters, "in TensorRT", f"run `latentcot validate {self._folder} --device cuda`")

    def _run(self, state: NativeState, max_passes: int) -> None:
        bound = self._bound(state)
        left, again = max_passes, True
        yields = bool(state.arrays["control"][Control.YIELD_WHEN_DONE])
        bound.tables.push()
        while again and left > 0:
            passes = min(left, passes_before_a_look(state))
            again = bound.burst(state, passes, self._capacity(state))
            left -= passes
            counters = state.counters
            if counters[Counter.STALLED] < 0 or (yields and counters[Counter.FINISHED] > 0):
                break
            if left <= 0 and again and is_over(state):
                left = 1
        bound.tables.pull(RESULTS)

    def _capacity(self, state: NativeState) -> int:
        """R of the next passes: few different ones, since each is captured by itself."""
        wanted = wanted_rows(state)
        rows = capacity_of(wanted)
        return min(rows, self.decode_rows if wanted <= self.decode_rows else self.prompt_rows)

    def _bound(self, state: NativeState) -> _Bound:
        bound = state.binding
        if not isinstance(bound, _Bound) or bound.session is not self:
            bound = state.binding = _Bound(self, state)
        elif bound.layout != state.layout:
            state.carried = {name: as_array(value) for name, value in state.carried.items()}
            bound.renew(state)
        return bound

    def context(self, rows: int) -> Any:
        """A context for passes of so many rows. One a capture: to change it would spoil what was captured of it."""
        made = self._engine.create_execution_context(self._user_managed)
        if made is None:
            raise LatentCoTError(f"TensorRT {self._version} makes no context ({self._why()}); use a smaller max_batch")
        made.set_device_memory(self._scratch.address, self._scratch.shape[0])
        self.check(made.set_optimization_profile_async(int(rows > self.decode_rows), self.gpu.stream), "its profile")
        self.gpu.wait()
        return made

    def check(self, done: bool, what: str) -> None:
        """Raises LatentCoTError where TensorRT says no."""
        if not done:
            raise LatentCoTError(
                f"TensorRT {self._version} fails at {what} ({self._why()}); give a smaller max_batch or shorter prompts"
            )

    def note_copies(self, count: int) -> None:
        """Warns, once, where passes are right but slow."""
        if count and not self._copies:
            self._copies = count
            warnings.warn(
                f"TensorRT {self._version} copies {count} tables in every pass of {self._folder} instead of changing them "
                "in place; build the engine again with another version, or export with --target ort",
                RuntimeWarning,
                stacklevel=2,
            )

    def _why(self) -> str:
        return " ".join((self._complaints or ["it does not say why"])[-1].split())[:300]


class _Bound:
    """The tables of one state, its rows, and the captured passes over them by R: what reads set 0, what reads set 1."""

    def __init__(self, session: TensorRTSession, state: NativeState) -> None:
        gpu, self.session = session.gpu, session
        self.tables = GpuTables(gpu, state, DTYPE_BYTES[session.manifest.cache.dtype])
        self.layout = state.layout  # as the tables have left it
        most = max(session.decode_rows, session.prompt_rows)
        self.rows = GpuRows(gpu, most, as_array(state.carried["latent"]).shape[1])
        self.again = gpu.empty((1,), _INT)
        self._passes: dict[int, list[Replay]] = {}
        self._contexts: list[Any] = []  # a captured pass uses its context's memory

    def renew(self, state: NativeState) -> None:
        """Takes tables of new shapes."""
        self.tables.renew()
        self.layout = state.layout
        self._passes.clear()
        self._contexts.clear()

    def burst(self, state: NativeState, passes: int, rows: int) -> bool:
        """So many passes of R = `rows`; whether the last of them had anything to run."""
        if rows not in self._passes:
            self._capture(state, rows)
        self.rows.load(state.carried, rows)
        for _ in range(passes):
            self._passes[rows][self.rows.at]()
            self.rows.at ^= 1
        state.computed_rows += passes * rows
        self.tables.pull(TOLD)
        state.carried = self.rows.tell()
        return bool(self.session.gpu.get(self.again)[0])

    def _capture(self, state: NativeState, rows: int) -> None:
        """Both passes of a new R. TensorRT must have run each once before, which it does while nothing is live."""
        gpu, session = self.session.gpu, self.session
        state.carried = {name: as_array(value) for name, value in state.carried.items()}
        self.tables.idle()
        self.rows.clear()
        made = []
        for read in range(2):
            context = session.context(rows)
            self._bind(context, rows, read)
            before = copied_tables()
            self._enqueue(context)
            gpu.wait()
            session.note_copies(copied_tables() - before)
            made.append(gpu.capture(functools.partial(self._enqueue, context)))
            self._contexts.append(context)
        self._passes[rows] = made
        self.tables.push()
        # slots on the GPU are as they were, for a pass over empty places changes none

    def _enqueue(self, context: Any) -> None:
        self.session.check(context.execute_async_v3(self.session.gpu.stream), "a pass")

    def _bind(self, context: Any, rows: int, read: int) -> None:
        """Every input, and every output: those of tables are the tables themselves."""
        check, tables = self.session.check, self.tables
        for name, buffer in tables.values.items():
            check(context.set_input_shape(name, tables.shapes[name]), name)
            check(context.set_tensor_address(name, buffer.address), name)
            if name in _WRITTEN or name.startswith("cache_"):
                check(context.set_tensor_address(f"{name}_out", buffer.address), f"{name}_out")
        for name in PASS_CARRIED:
            check(context.set_input_shape(name, (rows, *self.rows.shapes[name])), name)
            check(context.set_tensor_address(name, self.rows.sets[read][name].address), name)
            check(context.set_tensor_address(f"{name}_out", self.rows.sets[1 - read][name].address), f"{name}_out")
        check(context.set_tensor_address("again", self.again.address), "again")
