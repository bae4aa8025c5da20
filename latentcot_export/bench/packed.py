"""What is timed of a `--target ort` bundle: packed rows, a cache that holds executed (token, step) pairs and no more."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import InputError, LatentCoTError
from ..runtime.native_state import NativeState
from ..runtime.native_tables import Counter
from ..runtime.pass_session import packed_session
from ..runtime.scheduler import PROMPT_ROWS_ALONE
from ..runtime.tensorrt_engine import TARGET as TENSORRT
from .engines import Work, least_passes
from .workload import Batch

_NO_LIMIT = 1 << 30


class PackedEngine:
    """A bundle of target `ort`: one call for the prompts, one call for the burst of new tokens."""

    name = "bundle"

    def __init__(self, bundle: Bundle, schedule: str, threads: int, device: str = "cpu") -> None:
        manifest = bundle.manifest
        self.session = packed_session(bundle, threads, device)
        self.schedule, self.manifest = schedule, manifest
        self.target, self.dtype, self.quantize = manifest.target, manifest.dtype, manifest.quantize
        self.bytes_per_slot = manifest.cache.bytes_per_slot(manifest.model)

    def start(self, batch: Batch) -> None:
        """See bench.engines.Engine. Sequences pause behind their prompts, and never end, which would free their slots."""
        size, prompt = batch.prompts.shape
        length, steps = batch.forced_depth.shape[1], self.manifest.recurrence.max_steps
        slots, built = size * length * steps, self.manifest.cache.slots
        if self.target == TENSORRT and built is not None and slots > built:
            raise InputError(
                f"{size} sequences of {length} positions take up to {slots} cache slots and the engine has {built}; use a "
                f"smaller -b, -p or -n, or export with --cache-slots {slots}"
            )
        # pages of slots that nobody takes are never touched
        self.state = NativeState(
            self.manifest.model,
            self.manifest.recurrence,
            places=size,
            length=length,
            slots=slots,
            dtype=self.manifest.cache.dtype,
            rounds=self.manifest.rounds,
        )
        self.state.control(PROMPT_ROWS_ALONE, lockstep=self.schedule == "lockstep")
        self.until = prompt
        for tokens, forced in zip(batch.prompts, batch.forced_depth, strict=True):
            self.state.add(tokens, end=length, forced_depth=forced, pause=prompt)
        self._run(batch.prompts.size)

    def decode(self, count: int) -> None:
        """See bench.engines.Engine."""
        self.until += count
        for place in range(self.state.places):
            self.state.pause(place, self.until)
        self._run(self.state.places * count)

    def work(self) -> Work:
        """See bench.engines.Engine. Rows are packed: the layer stack computes only live ones, but in the fixed form."""
        counters = self.state.counters
        rows = int(counters[Counter.EXECUTED_ROWS])
        return Work(
            passes=int(counters[Counter.PASSES]),
            live_rows=rows,
            computed_rows=self.state.computed_rows or rows,
            cache_slots=int(counters[Counter.MOST_SLOTS]),
            depths=self.state.arrays["depths"].copy(),
            least_passes=least_passes(self.manifest.recurrence),
            repeats=0 if self.manifest.rounds is None else rows - int(counters[Counter.MOST_SLOTS]),
        )

    def _run(self, tokens: int) -> None:
        self.session.run(self.state, _NO_LIMIT)
        if self.state.live_rows:
            raise LatentCoTError("the graph returned with rows in flight; export the bundle again")
        self.session.has_read(tokens)  # which takes time now and then, as it does in an engine
