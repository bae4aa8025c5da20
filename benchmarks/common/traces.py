"""Synthetic depths, and the engine's own scheduler run on them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Counter
from latentcot_export.runtime.scheduler import Job, Scheduler
from latentcot_export.runtime.sequence import Request, Sequence

SEED = 20260208


@dataclasses.dataclass(frozen=True)
class Trace:
    """Independent depths from 1 to `most` with P(k) proportional to q^k, q such that the mean is `mean`.

    Of all distributions with that mean it is the one that assumes least.
    """

    mean: float
    most: int

    @property
    def name(self) -> str:
        """`2 of 6`."""
        return f"{self.mean:g} of {self.most}"

    def shares(self) -> np.ndarray:
        """P(k) for k = 1 .. most."""
        steps = np.arange(1, self.most + 1)
        low, high = 1e-9, 1e9
        for _ in range(200):
            middle = np.sqrt(low * high)
            weights = middle ** (steps - self.most if middle > 1 else steps - 1)
            weights /= weights.sum()
            low, high = (middle, high) if weights @ steps < self.mean else (low, middle)
        return weights

    def depths(self, count: int, length: int, seed: int = SEED) -> np.ndarray:
        """int32 `[count, length]`."""
        drawn = np.random.default_rng(seed).choice(self.most, (count, length), p=self.shares())
        return (drawn + 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Backlog:
    """Requests of one token each that go on for `lengths[i]` more, and run the depths that they are given."""

    prompts: np.ndarray
    lengths: np.ndarray
    depths: np.ndarray

    @classmethod
    def of(cls, vocab_size: int, depths: np.ndarray, low: int, high: int) -> Backlog:
        """One request per line of `depths`; lengths are uniform from `low` to `high`."""
        generator = np.random.default_rng(SEED)
        count = len(depths)
        return cls(generator.integers(0, vocab_size, count), generator.integers(low, high + 1, count), depths)

    @property
    def mean_context(self) -> float:
        """Mean position of a row, plus one."""
        return float((self.lengths * (self.lengths + 1) / 2).sum() / self.lengths.sum())

    def jobs(self) -> Iterator[Job]:
        """The requests, greedy, as the engine would queue them."""
        for index, (prompt, length) in enumerate(zip(self.prompts.tolist(), self.lengths.tolist(), strict=True)):
            yield Job(Sequence(index, Request((prompt,), length), None), eager=False)


class TracedState(NativeState):
    """A NativeState whose sequences, in the order in which they are placed, run the depths of a backlog."""

    lockstep = False
    traces: Iterator[np.ndarray]

    def add(self, tokens: Any, end: int, **arguments: Any) -> int:
        """See NativeState."""
        return super().add(tokens, end, forced_depth=next(self.traces)[:end], **arguments)

    def control(self, *arguments: Any, **named: Any) -> None:
        """See NativeState."""
        super().control(*arguments, **{**named, "lockstep": self.lockstep})


class Course:
    """The scheduler on a backlog, step by step, with what happened while every place was live."""

    def __init__(self, session: NativeSession, backlog: Backlog, places: int, lockstep: bool) -> None:
        manifest = session.manifest
        length = int(backlog.lengths.max()) + 2
        self.state = TracedState(
            manifest.model,
            manifest.recurrence,
            places=places,
            length=length,
            slots=places * length * int(backlog.depths.max()),
            dtype=manifest.cache.dtype,
        )
        self.state.lockstep, self.state.traces = lockstep, iter(backlog.depths)
        self.scheduler = Scheduler(session, self.state)
        self.scheduler.waiting.extend(backlog.jobs())
        self.places, self.seconds, self.over = places, 0.0, False
        self.passes = self.rows = self.tokens = 0

    def advance(self, seconds: float) -> tuple[float, int]:
        """Runs on for about `seconds`; what it took and the rows it ran. `over` once requests no longer wait.

        From the first pass until then every place is taken whenever a pass begins. What the host does is timed too.
        """
        before, took = self.state.counters.copy(), 0.0
        while took < seconds and not self.over:
            began = time.perf_counter()
            self.scheduler.sweep()
            passes = self.scheduler.prepare()
            if not self.scheduler.waiting:
                self.over = True
                break
            self.scheduler.run(passes)
            self.scheduler.collect()
            took += time.perf_counter() - began
        done = self.state.counters - before
        self.passes += int(done[Counter.PASSES])
        self.rows += int(done[Counter.EXECUTED_ROWS])
        self.tokens += int(done[Counter.HEAD_ROWS])
        self.seconds += took
        return took, int(done[Counter.EXECUTED_ROWS])

    @property
    def occupancy(self) -> float:
        """Rows that were run over places that could have run one."""
        return self.rows / (self.passes * self.places)

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second of all sequences."""
        return self.tokens / self.seconds
