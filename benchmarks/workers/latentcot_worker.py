"""A `--target ort` bundle: bursts of passes over a NativeState, as long as the engine's own.

The prompts are paused at their ends, so that both clocks measure what they say. `api` in place of a bundle's session: the
public `Engine`, whose second clock begins with the first new token; for one sequence that is the same work.
"""

from __future__ import annotations

import sys

import numpy as np
from serve import serve

from latentcot_export import Engine
from latentcot_export.bundle import open_bundle
from latentcot_export.runtime import scheduler
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column


class Native:
    """See serve.Engine. Depth is learned: a checkpoint of `latentcot init` halts after one step."""

    def __init__(self, model: str, threads: int) -> None:
        bundle = open_bundle(model)
        self.manifest = bundle.manifest
        self.session = NativeSession(bundle, threads)
        self.note = f"target {self.manifest.target}, quantize {self.manifest.quantize}"

    def open(self, batch: int, length: int) -> None:
        """See Engine. One state for all runs, as an engine has one for all requests."""
        self.batch, self.length, self.places = batch, length, []
        spec, steps = self.manifest.model, self.manifest.recurrence.max_steps
        # beside what is kept: a row that starts must find room for all its steps
        slots = batch * length + (scheduler.PROMPT_ROWS_ALONE + batch) * steps
        self.state = NativeState(
            spec,
            self.manifest.recurrence,
            places=batch,
            length=length + 1,
            slots=slots,
            dtype=self.manifest.cache.dtype,
        )

    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        for place in self.places:
            self.state.remove(place)
        self.known = self.until = len(prompts[0])
        self.places = [self.state.add(prompt, self.length, pause=self.known) for prompt in prompts]
        self._run(scheduler.PROMPT_ROWS_ALONE)

    def _run(self, rows: int) -> None:
        """Runs positions below `until` of every sequence."""
        sequences = self.state.sequences
        sequences[self.places, Column.PAUSE] = self.until
        self.state.control(rows)
        while self.state.live_rows or (sequences[self.places, Column.NEXT_POSITION] < self.until).any():
            self.session.run(self.state, scheduler.MAX_BURST)

    def decode(self, count: int) -> None:
        """See Engine."""
        self.until += count
        self._run(self.batch)

    def tokens(self) -> list[list[int]]:
        """See Engine."""
        found = self.state.arrays["tokens"][self.places, self.known : self.until + 1]
        depths = self.state.arrays["depths"][self.places, : self.until]
        if not np.all(depths == 1):
            raise RuntimeError(f"the mean depth is {depths.mean()}, a comparison with the others needs 1")
        return found.tolist()


class Api:
    """See serve.Engine: one sequence through `Engine.submit`."""

    def __init__(self, model: str, threads: int) -> None:
        self.model, self.threads, self.engine = model, threads, None
        self.note = "through Engine.submit"

    def open(self, batch: int, length: int) -> None:
        """See Engine."""
        if batch != 1:
            raise RuntimeError("the api is measured with one sequence")
        self.length = length
        self.engine = self.engine or Engine.from_pretrained(self.model, self.threads)

    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        new = self.length - len(prompts[0])
        self.handle = self.engine.submit(prompts[0], new, ignore_eos=True)
        self.new = [next(self.handle).token]

    def decode(self, count: int) -> None:
        """See Engine."""
        for _ in range(count):
            self.new.append(next(self.handle).token)

    def tokens(self) -> list[list[int]]:
        """See Engine. Ends the request."""
        self.handle.cancel()
        return [self.new]


if __name__ == "__main__":
    serve(Api if "api" in sys.argv[1:] else Native, ("latentcot-export", "onnxruntime", "numpy"))
