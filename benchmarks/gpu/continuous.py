"""Depth-continuous batching on the device: a backlog of requests, R rows, and places beside those that run.

A pass has R rows and there are more places than that, so a sequence that ends makes room for a token of one that is there
already: the device starts it by itself, in the very next pass. The host looks at a copy of the tables that is one burst
old, fills the places that it finds done, and the device never waits for it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from common.results import Spread
from common.traces import SEED, Backlog, Trace

from gpu.decoding import Decoding
from gpu.device_pass import DevicePass
from gpu.device_state import DeviceState
from gpu.kernel_checks import Ops
from gpu.sizes import Weights
from gpu.timing import Clock
from latentcot_export.errors import CheckFailed
from latentcot_export.ops.packed_tables import Column, Counter, Status
from latentcot_export.spec import ModelSpec, RecurrenceSpec

# Places beside those whose rows run. Three bursts pass between the end of a sequence and the first token of the one that
# the host puts in its place; requests of 16 to 112 tokens and 3.4 steps take 218 passes in the mean, so that of 64 rows 14
# end in three bursts of 16.
SPARE, BURST, FULL_PASSES = 32, 16, 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """What runs: rows, requests, their new tokens, bursts of a segment, and the three numbers above."""

    batch: int
    backlog: int
    lengths: tuple[int, int]
    segment: int
    spare: int = SPARE
    burst: int = BURST
    full: int = FULL_PASSES


class Course:
    """A backlog on its way through the device, with what happened while requests waited."""

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        weights: Weights,
        ops: Ops,
        backlog: Backlog,
        shape: Shape,
        lockstep: bool,
    ) -> None:
        length, places = int(backlog.lengths.max()) + 2, shape.batch + shape.spare
        self.state = DeviceState(
            model,
            recurrence,
            places=places,
            length=length,
            slots=places * length * int(backlog.depths.max()),
            device=ops.device,
            dtype=weights.table.dtype,
        )
        self.clock, self.shape, self.backlog = Clock(ops.device), shape, backlog
        self.passes = DevicePass(self.state, weights, ops, shape.batch)
        self.state.host.control(shape.batch, lockstep=lockstep)
        self.state.push()
        self.passes.capture()
        self.waiting = list(range(len(backlog.lengths)))[::-1]
        self.entered: dict[int, int] = {}  # running place -> bursts that were launched before it was filled
        self.bursts = 0
        self._admit()
        self.milliseconds = 0.0
        self.counts = np.zeros(3, np.int64)  # passes, rows, tokens

    @property
    def over(self) -> bool:
        """Whether no request waits any more."""
        return not self.waiting

    def segment(self) -> tuple[float, int]:
        """Some bursts, as long as requests wait: milliseconds and rows. Errors: CheckFailed when they ran nothing."""
        told = self.state.told()
        before = self._counts(told.wait()[1])
        one = self.clock.mark()
        at, waited = self.bursts, len(self.waiting)
        for _ in range(self.shape.segment):
            if self.over:
                break
            self.passes.burst(self.shape.burst)
            self.bursts += 1
            later = self.state.told()
            self._collect(told.wait()[0], at)
            told, at = later, self.bursts
            self._admit()
        took = self.clock.between(one, self.clock.mark())
        sequences, counters = told.wait()
        self._collect(sequences, at)
        self._admit()
        if counters[Counter.STALLED] < 0:
            raise CheckFailed(f"counters hold fault {counters[Counter.STALLED]} of an operator")
        done = self._counts(counters) - before
        if waited and not done[1]:  # else the backlog would never end
            raise CheckFailed(f"{self.shape.segment} bursts ran no row while {waited} requests waited")
        self.counts += done
        self.milliseconds += took
        return took, int(done[1])

    def _collect(self, sequences: np.ndarray, bursts: int) -> None:
        """Empties what was done after so many bursts; a place that was filled since then says nothing there."""
        done = np.flatnonzero(sequences[:, Column.STATUS] == Status.DONE).tolist()
        for place in done:
            if self.entered.get(place, bursts + 1) <= bursts - 1:
                self.state.leave(place)
                del self.entered[place]

    def _admit(self) -> None:
        entered = []
        while self.waiting and self.state.host.free_place() is not None:
            number = self.waiting.pop()
            length = int(self.backlog.lengths[number])
            forced = self.backlog.depths[number][:length]
            place = self.state.host.add([int(self.backlog.prompts[number])], length, forced_depth=forced)
            entered.append(place)
            self.entered[place] = self.bursts
        if entered:
            self.state.enter(entered)

    @staticmethod
    def _counts(counters: np.ndarray) -> np.ndarray:
        return counters[[Counter.PASSES, Counter.EXECUTED_ROWS, Counter.HEAD_ROWS]].copy()

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second of all sequences."""
        return 1e3 * float(self.counts[2]) / self.milliseconds

    @property
    def occupancy(self) -> float:
        """Rows that were run over rows that the passes had."""
        return float(self.counts[1]) / (float(self.counts[0]) * self.shape.batch)


def compare(
    model: ModelSpec,
    recurrence: RecurrenceSpec,
    weights: Weights,
    ops: Ops,
    trace: Trace,
    shape: Shape,
) -> dict[str, Any]:
    """The share of the ideal (benchmarks/schedule.py), and tokens a second over those of lockstep."""
    requests = Backlog.of(model.vocab_size, trace.depths(shape.backlog, shape.lengths[1]), *shape.lengths)
    main, other = (Course(model, recurrence, weights, ops, requests, shape, lockstep=each) for each in (False, True))
    tokens = int(np.ceil(shape.full / trace.mean))
    known = max(1, round(requests.mean_context) - tokens // 2)
    depths = trace.depths(shape.batch, known + shape.full + 2, SEED + 1)
    full = Decoding(model, recurrence, weights, ops, known, depths)
    full.burst(shape.full)
    ideal, full_ms, shares = 0.0, [], []
    while not main.over:
        before = full.burst(shape.full)[0] / shape.full
        took, rows = main.segment()
        after = full.burst(shape.full)[0] / shape.full
        full_ms += [before, after]
        share = rows / shape.batch * (before + after) / 2
        shares.append(share / took)
        ideal += share
        other.segment()
    while not other.over:
        other.segment()
    return {
        "full_pass_ms": Spread.of(full_ms),
        "pass_ms": main.milliseconds / float(main.counts[0]),
        "efficiency": ideal / main.milliseconds,
        "efficiency_by_segment": Spread.of(shares),
        "occupancy": main.occupancy,
        "tokens_per_s": {"continuous": main.tokens_per_s, "lockstep": other.tokens_per_s},
        "over_lockstep": main.tokens_per_s / other.tokens_per_s,
    }
