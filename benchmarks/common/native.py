"""A burst of decoding passes that can be run again and again from the same place, straight on a NativeSession."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from latentcot_export.errors import LatentCoTError
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState

PROMPT_ROWS = 128  # rows of a pass while prompts run, which are not timed
SEED = 20260208  # of random token ids; any number would do, it only has to stay the same


class DecodeBurst:
    """`batch` sequences that decode, `passes` passes a burst, at `depths[s][t]` or at depth 1.

    `context` is the mean number of positions that a row of the burst sees: prompts are that long less half of what the
    burst runs. Every run starts from the same tables; the cache behind them is written anew with the same values.
    """

    def __init__(
        self,
        session: NativeSession,
        batch: int,
        context: int,
        passes: int,
        depths: np.ndarray | None = None,
        mean_depth: float = 1.0,
    ) -> None:
        manifest = session.manifest
        steps, spec = manifest.recurrence.max_steps, manifest.model
        tokens = int(np.ceil(passes / mean_depth))  # of a sequence in one burst
        known = max(1, context - tokens // 2)
        length = known + passes + 2
        self.session, self.batch, self.passes = session, batch, passes
        if depths is None:
            depths = np.ones((batch, length), np.int32)
        depths = np.stack([np.resize(line, length) for line in depths])
        slots = int(depths.sum()) + (PROMPT_ROWS + batch) * steps
        self.state = NativeState(
            spec, manifest.recurrence, places=batch, length=length, slots=slots, dtype=manifest.cache.dtype
        )
        ids = np.random.default_rng(SEED).integers(0, spec.vocab_size, (batch, known))
        places = [
            self.state.add(line, length - 1, forced_depth=forced[: length - 1], pause=known)
            for line, forced in zip(ids, depths, strict=True)
        ]
        self.state.control(PROMPT_ROWS)
        session.run(self.state, 1 << 20)
        if self.state.live_rows:
            raise LatentCoTError("the prompts of a burst did not come to an end; use a bundle of this version")
        for place in places:
            self.state.pause(place, length)
        self.state.control(batch)
        self._tables = {
            name: each.copy() for name, each in self.state.arrays.items() if name not in ("cache", "logits")
        }
        self._carried = {name: _array(each).copy() for name, each in self.state.carried.items()}
        self.mean_context = known + tokens / 2 + 0.5

    def rewind(self) -> None:
        """Back to where every burst starts."""
        for name, each in self._tables.items():
            np.copyto(self.state.arrays[name], each)
        self.state.carried = {name: each.copy() for name, each in self._carried.items()}

    def seconds(self, passes: int | None = None) -> float:
        """Seconds of one pass, out of one burst. Errors: LatentCoTError when a place had nothing to run in a pass."""
        self.rewind()
        passes = passes or self.passes
        before = self.state.counters.copy()
        began = time.perf_counter()
        self.session.run(self.state, passes)
        took = time.perf_counter() - began
        taken, executed = (int(each) for each in (self.state.counters - before)[2:4])
        if (taken, executed) != (passes, passes * self.batch):
            raise LatentCoTError(
                f"a burst took {taken} passes with {executed} rows, it should be {passes} with {passes * self.batch}; "
                "use a bundle of this version"
            )
        return took / passes


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.numpy()
