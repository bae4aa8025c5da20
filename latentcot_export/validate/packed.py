"""The engine side of every comparison for a `--target ort` bundle: the packed graph, its tables and ragged cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from latentcot_export.bundle import Bundle, Manifest
from latentcot_export.bundle.manifest import POOLED
from latentcot_export.errors import CheckFailed
from latentcot_export.runtime.device import PASS, check_device
from latentcot_export.runtime.native_session import Session
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column, Status
from latentcot_export.runtime.pass_session import PassSession, packed_session
from latentcot_export.runtime.session import PROMPT_ROWS
from latentcot_export.runtime.tensorrt_build import recorded_positions
from latentcot_export.runtime.tensorrt_engine import TARGET as TENSORRT

from .runs import Engine, Ids, Run
from .widened import widened


class PackedEngine:
    """As `runs.Engine`, through the same session as every host of an `ort` bundle."""

    def __init__(self, bundle: Bundle, device: str = "cpu", session: Session | None = None) -> None:
        """`session`: one that is open already, whatever it runs."""
        self.manifest = bundle.manifest
        self.session = session or packed_session(bundle, device=device)

    def read(self, sequences: Sequence[Ids], forced: Sequence[Ids] | None = None, rows: int = PROMPT_ROWS) -> list[Run]:
        """See `runs.Engine.read`; `rows` is the most a sequence may have in flight."""
        lengths = [len(each) for each in sequences]
        state = self._state(len(sequences), max(lengths), max(lengths))
        state.control(rows * len(sequences), rows)
        depths: Sequence[Ids | None] = forced if forced is not None else [None] * len(sequences)
        for tokens, known in zip(sequences, depths, strict=True):
            state.add(tokens, end=len(tokens), forced_depth=known)
        self._finish(state)
        return _results(state, lengths, lengths)

    def write(self, prompts: Sequence[Ids], new: int, lockstep: bool = False) -> list[Run]:
        """See `runs.Engine.write`: depth-continuous or in lockstep."""
        lengths = [len(each) for each in prompts]
        state = self._state(len(prompts), max(lengths) + new, max(lengths) + new - 1)
        state.control(PROMPT_ROWS * len(prompts), PROMPT_ROWS, lockstep)
        for tokens in prompts:
            state.add(tokens, end=len(tokens) + new - 1)
        self._finish(state)
        return _results(state, [n + new for n in lengths], [n + new - 1 for n in lengths])

    def _state(self, count: int, length: int, logit_positions: int) -> NativeState:
        steps = self.manifest.recurrence.max_steps
        return NativeState(
            self.manifest.model,
            self.manifest.recurrence,
            places=count,
            length=length,
            slots=count * length * steps,
            dtype=self.manifest.cache.dtype,
            logit_positions=logit_positions,
            rounds=self.manifest.rounds,
        )

    def _finish(self, state: NativeState) -> None:
        """Runs everything. One token at a time, one sequence at a time is the slowest schedule, so more is a fault."""
        count, most = state.places, state.max_steps
        limit = count * state.arrays["tokens"].shape[1] * most + (self.manifest.rounds or 0)
        self.session.run(state, limit)
        if not (state.sequences[:, Column.STATUS] == Status.DONE).all():
            raise CheckFailed(
                f"the graph was not done with {count} sequences after {limit} passes, which is enough in any schedule; "
                "export the bundle again and, if that is no help, file an issue with `latentcot env`"
            )
        if state.free_slots != state.slots:
            raise CheckFailed(
                f"{state.slots - state.free_slots} cache slots were not given back by sequences that have ended; file "
                "an issue with `latentcot env`"
            )


def engine_of(bundle: Bundle, device: str = "cpu") -> Engine | PackedEngine:
    """The engine of the bundle's target on a device. Errors: InputError."""
    check_device(bundle, device)
    return PackedEngine(bundle, device) if bundle.manifest.target in POOLED else Engine(bundle)


def second_engine(bundle: Bundle, device: str) -> Callable[[], PackedEngine] | None:
    """What runs a bundle's pass.onnx on the processor, where there is one and nothing else runs it.

    A dtype below float32 is widened, see widened.py.
    """
    if device != "cpu" or PASS not in bundle.manifest.files:
        return None
    content = None if bundle.manifest.dtype == "float32" else widened(bundle)
    return lambda: PackedEngine(bundle, session=PassSession(bundle, device="cpu", content=content))


def most_positions(manifest: Manifest) -> int:
    """Positions of a sequence that can be read with its logits: an engine of TensorRT has what it was built for."""
    cache = manifest.cache
    if manifest.target != TENSORRT:
        return cache.max_seq_len
    assert cache.slots is not None
    # two sequences at least: one alone has no neighbour
    return max(1, min(recorded_positions(manifest), cache.slots // (2 * manifest.recurrence.max_steps)))


def most_sequences(manifest: Manifest, length: int) -> int:
    """Sequences of that length that can be read at once, at least one; see `most_positions`."""
    cache = manifest.cache
    if manifest.target != TENSORRT:
        return cache.max_batch
    assert cache.slots is not None
    return max(1, min(cache.max_batch, cache.slots // (length * manifest.recurrence.max_steps)))


def _results(state: NativeState, lengths: Sequence[int], run: Sequence[int]) -> list[Run]:
    arrays = state.arrays
    return [
        Run(
            arrays["tokens"][b, :length].astype(np.int64),
            arrays["depths"][b, :n].astype(np.int64),
            arrays["logits"][b, :n],
        )
        for b, (length, n) in enumerate(zip(lengths, run, strict=True))
    ]
