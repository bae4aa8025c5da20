"""One batch: unequal prompts run together, each sequence with its own sampling, limits and stops.

Prompts are run with many rows a sequence, then all sequences decode with one row each, in bursts of passes. A burst is
counted in passes and not in tokens, so that no sequence waits for one that thinks longer.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from ..errors import LatentCoTError
from .sampling import uniforms
from .sequence import Request, Sequence, StreamEvent
from .session import CallInputs, PortableSession
from .state import BatchState


class Batch:
    """Runs sequences that were not run yet, all at once: `prefill`, then `advance` until `done`."""

    def __init__(self, session: PortableSession, sequences: Seq[Sequence]) -> None:
        self._session = session
        self._live = list(sequences)  # in the order of the state's rows; finished ones leave it in `_compact`
        requests = [each.request for each in sequences]
        prompts = np.array([len(each.prompt) for each in requests])
        self._last = prompts + [each.max_new_tokens - 1 for each in requests]  # the position that is chosen, never run
        length = int(self._last.max()) + 1
        tokens = np.full((len(requests), length), -1, np.int64)
        for row, each in enumerate(requests):
            tokens[row, : len(each.prompt)] = each.prompt
        manifest = session.manifest
        self._inputs = call_inputs(requests, length, manifest.model.vocab_size)
        self._state = BatchState.new(
            manifest.model, manifest.recurrence, manifest.dtype, tokens, slots=int(prompts.max())
        )
        self._prompts = prompts

    @property
    def done(self) -> bool:
        """True when every sequence has stopped."""
        return all(each.stop is not None for each in self._live)

    @property
    def passes(self) -> int:
        """Passes taken so far."""
        return int(self._state.arrays["passes"])

    @property
    def live_rows(self) -> int:
        """(token, step) pairs run so far."""
        return int(self._state.arrays["live_rows"])

    def prefill(self) -> list[StreamEvent]:
        """Runs all prompts to their end and returns the first new token of each sequence."""
        self._session.feed(self._state, self._inputs, self._prompts)
        return self._collect()

    def advance(self, passes: int) -> list[StreamEvent]:
        """At most `passes` more passes, and the tokens they gave, each sequence's in order."""
        self._compact()
        before = self.passes
        self._session.run(self._state, self._inputs, self._last, passes)
        if self.passes == before:
            raise LatentCoTError("the graph ran a token and chose none after it; export the bundle again")
        return self._collect()

    def _collect(self) -> list[StreamEvent]:
        tokens, depths = self._state.arrays["tokens"], self._state.arrays["depths"]
        events = []
        for row, sequence in enumerate(self._live):
            while sequence.stop is None and tokens[row, at := sequence.length] >= 0:
                events.append(sequence.accept(int(tokens[row, at]), depths[row, sequence.told : at].tolist()))
            if sequence.stop is not None:
                self._state.stop(row)
        return events

    def _compact(self) -> None:
        """Drops finished sequences once they are half of the rows: every pass computes all rows, live or not."""
        live = [row for row, each in enumerate(self._live) if each.stop is None]
        if 2 * len(live) <= len(self._live):
            self._live = [self._live[row] for row in live]
            self._last = self._last[live]
            self._inputs = self._inputs.keep(live)
            self._state.keep(live)


def call_inputs(requests: Seq[Request], length: int, vocab_size: int) -> CallInputs:
    """What the graph is told of B requests during all calls, for T = `length` token positions."""
    inputs = CallInputs.greedy(len(requests), length)
    most = max(1, *(len(each.stop_tokens) for each in requests))
    inputs.stop_tokens = np.full((len(requests), most), -1, np.int64)
    for row, each in enumerate(requests):
        inputs.temperature[row], inputs.top_k[row], inputs.top_p[row] = each.sampling.for_graph(vocab_size)
        inputs.stop_tokens[row, : len(each.stop_tokens)] = each.stop_tokens
        if each.sampling.temperature > 0:
            first, end = len(each.prompt), len(each.prompt) + each.max_new_tokens
            inputs.uniform[row, first:end] = uniforms(each.sampling.seed, first, each.max_new_tokens)
    return inputs
