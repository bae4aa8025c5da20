"""What is timed: an engine starts a batch with its prompts and then decodes. The engine of a bundle lives here too."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from ..bundle import Bundle
from ..runtime.rtx_session import portable_session
from ..runtime.session import PROMPT_ROWS, CallInputs
from ..runtime.state import BatchState
from ..spec import RecurrenceSpec
from .workload import Batch


@dataclasses.dataclass(frozen=True)
class Work:
    """What an engine has done on its batch so far.

    `live_rows` are executed (token, step) pairs, `computed_rows` all rows that the layer stack ran, padding included;
    `cache_slots` is the room for such pairs that the cache holds now, over all sequences; depths int64 `[B, T]`,
    0 where a token has not been run. `least_passes` is what a token takes however early it halts: all steps where halted
    tokens run on. `repeats` of the live rows are pairs that had run before, as where a prompt is refined.
    """

    passes: int
    live_rows: int
    computed_rows: int
    cache_slots: int
    depths: np.ndarray
    least_passes: int = 1
    repeats: int = 0


def least_passes(recurrence: RecurrenceSpec) -> int:
    """See Work."""
    return recurrence.max_steps if recurrence.runs_on else 1


class Engine(Protocol):
    """One way of running the model. Greedy, and no token stops it."""

    name: str
    schedule: str
    target: str
    dtype: str
    quantize: str
    bytes_per_slot: int

    def start(self, batch: Batch) -> None:
        """Drops the batch before, runs the prompts of this one and chooses each sequence's first new token."""

    def decode(self, count: int) -> None:
        """Runs `count` more tokens of every sequence, choosing as many."""

    def work(self) -> Work:
        """Totals since `start` began."""


class BundleEngine:
    """A bundle of a portable graph: one call for the prompts, then bursts of new tokens (one call on the processor)."""

    name = "bundle"

    def __init__(self, bundle: Bundle, schedule: str, threads: int, device: str = "cpu") -> None:
        manifest = bundle.manifest
        self.session = portable_session(bundle, threads, device)
        self.schedule, self.spec, self.recurrence = schedule, manifest.model, manifest.recurrence
        self.target, self.dtype, self.quantize = manifest.target, manifest.dtype, manifest.quantize
        self.bytes_per_slot = manifest.cache.bytes_per_slot(manifest.model)

    def start(self, batch: Batch) -> None:
        """See Engine. The cache begins with a slot per prompt token and grows as depths need, as the runtime's does."""
        size, length = batch.prompts.shape
        self.end = np.full(size, length, np.int64)
        rows = min(length, PROMPT_ROWS)
        self.inputs = dataclasses.replace(
            CallInputs.greedy(*batch.forced_depth.shape),
            forced_depth=batch.forced_depth,
            lockstep=self.schedule == "lockstep",
        )
        self.state = BatchState.new(self.spec, self.recurrence, self.dtype, batch.tokens(), length)
        rows = self.session.feed(self.state, self.inputs, self.end, rows)
        self.prompt_rows = int(self.state.arrays["passes"]) * size * rows
        self.prompt_passes = int(self.state.arrays["passes"])

    def decode(self, count: int) -> None:
        """See Engine."""
        self.end = self.end + count
        self.session.run(self.state, self.inputs, self.end)

    def work(self) -> Work:
        """See Engine."""
        arrays, batch = self.state.arrays, self.state.batch
        passes = int(arrays["passes"])
        return Work(
            passes=passes,
            live_rows=int(arrays["live_rows"]),
            computed_rows=self.prompt_rows + (passes - self.prompt_passes) * batch * self.state.rows,
            cache_slots=batch * self.state.slots,
            depths=arrays["depths"],
            least_passes=least_passes(self.recurrence),
        )
