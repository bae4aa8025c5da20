"""The session of `pass.onnx`: a burst is passes of the fixed form, one after another without a question to the host.

On a CUDA device each shape of a pass is captured once and replayed. ONNX Runtime takes a pass several times over while it
captures it, so that is done while the device's tables say that nothing runs.
"""

from __future__ import annotations

import itertools

import onnxruntime as ort

from ..bundle import Bundle
from ..errors import InputError
from .device import PASS, check_device
from .device_tables import RESULTS, TOLD, DeviceTables, SharedTables, locked
from .faults import check_fault
from .library import library_path
from .native_session import NativeSession, Session, table_names
from .native_state import NativeState
from .native_tables import PASS_CARRIED, Control, Counter
from .ort_session import OrtSession
from .pass_rows import RowSets, capacity_of, is_over, passes_before_a_look, wanted_rows
from .refining import as_array


class PassSession(OrtSession):
    """Runs the fixed form of a bundle's pass on `device`. States are those of NativeSession.

    `threads` and `content`: see OrtSession; a processor cannot run the pass of a dtype below float32 as it is. `apart`
    keeps copies of the tables where the device could use the host's own: for tests. Errors: InputError.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        device: str = "cuda",
        apart: bool = False,
        content: bytes | None = None,
    ) -> None:
        check_device(bundle, device)
        if PASS not in bundle.manifest.files:
            raise InputError(f"bundle {bundle.folder} has no {PASS}; export it again with --target ort")
        with locked(device != "cpu"):  # loading takes memory on the device, which spoils another session's capture
            super().__init__(bundle, threads, library_path(device), PASS, device, content)
        outputs = {*(f"{name}_out" for name in PASS_CARRIED), "again"}
        self.check_names(str(bundle.path(PASS)), {*table_names(self.manifest), *PASS_CARRIED}, outputs)
        self.apart = apart or device != "cpu"
        self._graphs = itertools.count(1)

    def run(self, state: NativeState, max_passes: int) -> None:
        """Runs until nothing is live or can start, at most `max_passes` passes and one that only ends what is over.

        Tables and rows move on. Ends early where `control` asks for it, but only between two looks of the host. Errors:
        LatentCoTError when ONNX Runtime, an op or a kernel gives up. After an exception, `state` is of no use.
        """
        self.interruptible(self._run, state, max_passes)
        remedy = "run the same on device cpu, where the operator says which value"
        check_fault(state.counters, f"on device {self.device}", remedy)

    def _run(self, state: NativeState, max_passes: int, options: ort.RunOptions) -> None:
        left, again = max_passes, True
        yields = bool(state.arrays["control"][Control.YIELD_WHEN_DONE])
        with locked(self.apart):
            bound = self._bound(state)
            bound.tables.push()
            while again and left > 0 and not options.terminate:
                rows = wanted_rows(state)
                passes = min(left, passes_before_a_look(state) if rows else 1)
                again = self._burst(bound, state, capacity_of(rows), passes, options)
                left -= passes
                counters = state.counters
                if counters[Counter.STALLED] < 0 or (yields and counters[Counter.FINISHED] > 0):
                    break
                if left <= 0 and again and is_over(state):
                    left = 1
            bound.tables.pull(RESULTS)

    def _burst(self, bound: _Bound, state: NativeState, rows: int, passes: int, options: ort.RunOptions) -> bool:
        """So many passes with R = `rows`; whether the last of them had anything to run."""
        sets = bound.sets(rows)
        sets.bursts += 1
        if self.apart and sets.bursts > 1 and not sets.captured:  # a shape that comes once is not worth it
            self._capture(bound, sets, state)
        sets.load(state.carried)
        waited = False  # the last pass waits for those before it
        try:
            for left in reversed(range(passes)):
                if options.terminate:
                    break
                self._take(sets, self._options(sets, options, last=not left))
                waited = not left
                sets.at ^= 1
        finally:
            if not waited:  # passes still write to tables that may be given back as soon as this returns
                sets.bindings[sets.at].synchronize_outputs()
        state.computed_rows += passes * sets.rows
        bound.tables.pull(TOLD)
        state.carried = sets.tell()
        return bool(sets.again.numpy())

    def _options(self, sets: RowSets, options: ort.RunOptions, last: bool) -> ort.RunOptions:
        """What a pass is run with: those of the call on the processor; else which captured pass, and no waiting for it."""
        if not self.apart:
            return options
        key = (sets.at, last)
        if key not in sets.options:
            made = sets.options[key] = ort.RunOptions()
            made.log_severity_level = 4
            made.add_run_config_entry("gpu_graph_id", str(sets.graphs[sets.at]))
            if not last:
                made.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return sets.options[key]

    def _capture(self, bound: _Bound, sets: RowSets, state: NativeState) -> None:
        state.carried = {name: as_array(value) for name, value in state.carried.items()}
        bound.tables.idle()
        sets.clear()
        sets.graphs, sets.captured = [next(self._graphs) for _ in sets.sets], True
        sets.options.clear()
        for sets.at in (1, 0):
            self._record(sets, self._options(sets, ort.RunOptions(), last=True))
        bound.tables.push()

    def _record(self, sets: RowSets, options: ort.RunOptions) -> None:
        """A pass that is captured; ONNX Runtime runs it as often as it likes."""
        self._take(sets, options)

    def _take(self, sets: RowSets, options: ort.RunOptions) -> None:
        self.session.run_with_iobinding(sets.bindings[sets.at], options)

    def _bound(self, state: NativeState) -> _Bound:
        bound = state.binding
        if not isinstance(bound, _Bound) or bound.session is not self.session:
            tables = DeviceTables(state, self.device) if self.apart else SharedTables(state)
            bound = state.binding = _Bound(self.session, tables, state)
        elif bound.layout != state.layout:
            state.carried = {name: as_array(value) for name, value in state.carried.items()}
            bound.renew(state)
        return bound


class _Bound:
    """The tables of one state, and rows for every R that it has needed."""

    def __init__(self, session: ort.InferenceSession, tables: SharedTables, state: NativeState) -> None:
        self.session, self.tables, self.layout = session, tables, state.layout
        self._hidden = as_array(state.carried["latent"]).shape[1]
        self._sets: dict[int, RowSets] = {}

    def renew(self, state: NativeState) -> None:
        """Binds tables of new shapes."""
        self.tables.renew()
        self.layout = state.layout
        self._sets.clear()

    def sets(self, rows: int) -> RowSets:
        """Those of R = `rows`."""
        if rows not in self._sets:
            self._sets[rows] = RowSets(self.session, self.tables, rows, self._hidden)
        return self._sets[rows]


def packed_session(bundle: Bundle, threads: int = 0, device: str = "cpu") -> Session:
    """The session of a bundle of packed rows on a device. Errors: InputError."""
    if bundle.manifest.target == "tensorrt":
        from .tensorrt_session import TensorRTSession  # whose modules no other target needs

        return TensorRTSession(bundle)
    return NativeSession(bundle, threads) if device == "cpu" else PassSession(bundle, threads, device)
