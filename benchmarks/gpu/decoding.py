"""Sequences that all decode, from the same place again and again: what a pass takes, and what it must read."""

from __future__ import annotations

import numpy as np
import torch

from gpu.device_pass import DevicePass
from gpu.device_state import DeviceState
from gpu.kernel_checks import Ops
from gpu.sizes import Weights
from gpu.timing import Clock
from latentcot_export.errors import CheckFailed
from latentcot_export.ops.packed_tables import Counter
from latentcot_export.spec import ModelSpec, RecurrenceSpec


class Decoding:
    """`batch` sequences with `context` tokens and random keys and values, whose tokens run depths `[batch, T]`.

    T - context is the room for passes: one more token for each that a burst may choose.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        weights: Weights,
        ops: Ops,
        context: int,
        depths: np.ndarray,
        seed: int = 0,
    ) -> None:
        batch, length = depths.shape
        self.clock, self.context, self.depths = Clock(ops.device), context, depths
        self.state = DeviceState(
            model,
            recurrence,
            places=batch,
            length=length,
            slots=int(depths.sum()) + batch * recurrence.max_steps,
            device=ops.device,
            dtype=weights.table.dtype,
        )
        self.state.fill(context, depths, length - 1, seed)
        self.passes = DevicePass(self.state, weights, ops, batch)
        self.passes.capture()
        self.weights = weights

    def rewind(self) -> None:
        """Back to where every burst starts; keys and values behind it are written anew."""
        self.state.push()
        self.passes.clear()

    def burst(self, count: int) -> tuple[float, int]:
        """Milliseconds of so many passes, and tokens chosen. Errors: CheckFailed when a place had nothing to run."""
        self.rewind()
        if self.state.device.type == "cuda":
            torch.cuda.synchronize()
        one = self.clock.mark()
        self.passes.burst(count)
        took = self.clock.between(one, self.clock.mark())
        counters = self.state.told().wait()[1]
        wanted = (count, count * len(self.depths))
        found = (int(counters[Counter.PASSES]), int(counters[Counter.EXECUTED_ROWS]))
        if found != wanted or counters[Counter.STALLED] < 0:
            raise CheckFailed(f"a burst took {found[0]} passes with {found[1]} rows, it should be {wanted}")
        return took, int(counters[Counter.HEAD_ROWS])

    def cache_bytes(self, count: int) -> float:
        """Bytes of keys and values that the rows of a pass see, in all layers, in the mean over a burst (duo)."""
        seen = 0
        for line in self.depths:
            planes = [np.minimum(line, k).cumsum() for k in range(1, self.state.host.max_steps + 1)]
            position, step = self.context - 1, 1
            for _ in range(count):
                seen += int(planes[step - 1][position - 1] if position else 0) + step
                position, step = (position + 1, 1) if step == line[position] else (position, step + 1)
        cache = self.state.tables["cache"]
        return seen / count * cache[:, :, 0].numel() * cache.element_size()
