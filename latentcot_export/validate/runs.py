"""The two sides of every comparison: the graph that ships, and the float64 oracle.

Both take lists of sequences of unequal length and give one result per sequence, so that a comparison needs no padding.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from latentcot_export.bundle import Bundle
from latentcot_export.errors import CheckFailed
from latentcot_export.model import LatentCoT
from latentcot_export.model import run as think
from latentcot_export.model.jacobi import refined
from latentcot_export.runtime.session import PROMPT_ROWS, CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec, refinable

# Elements of an MLP matrix. Measured on two cores that were busy otherwise, at 1e5: 2.4 s of oracle with one thread, 14
# to 30 s with two.
_THREADS_PAY_FROM = 1 << 19

Ids = np.ndarray
"""Token ids int64 `[n]` of one sequence; also depths."""


@dataclasses.dataclass
class Run:
    """What the graph did with one sequence.

    tokens int64 `[n]`, or `[n + 1]` when the last one was chosen and not run; depths int64 `[n]`, 0 where it did not
    run; logits float32 `[n, V]`.
    """

    tokens: Ids
    depths: Ids
    logits: np.ndarray


@dataclasses.dataclass
class Truth:
    """What the oracle says of one sequence: depths int64 `[n]`, next_reach float64 `[n, max_steps]`, logits `[n, V]`.

    next_reach is what the stop rule compares with tau after each step, NaN where that was not executed or has no gate.
    """

    depths: Ids
    next_reach: np.ndarray
    logits: np.ndarray


class Engine:
    """Runs the bundle's graph through the same session as every host."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.session = GraphSession(bundle)

    def read(self, sequences: Sequence[Ids], forced: Sequence[Ids] | None = None, rows: int = PROMPT_ROWS) -> list[Run]:
        """Teacher-forced: runs all tokens of every sequence with up to `rows` rows each and records the logits.

        forced: depths int64 `[n]` per sequence, 0 = learned.
        Errors: CheckFailed when the graph does not come to an end.
        """
        lengths = np.array([len(each) for each in sequences])
        state, inputs = self._start(sequences, int(lengths.max()), int(lengths.max()))
        if forced is not None:
            inputs.forced_depth = _padded(forced, int(lengths.max()), 0)
        state.set_rows(min(rows, int(lengths.max())))
        self._finish(state, inputs, lengths)
        return self._results(state, lengths, lengths)

    def write(self, prompts: Sequence[Ids], new: int, lockstep: bool = False) -> list[Run]:
        """Free-running: appends `new` greedily chosen tokens to each prompt; stop tokens are ignored.

        Errors: CheckFailed when the graph does not come to an end.
        """
        lengths = np.array([len(each) for each in prompts])
        longest = int(lengths.max()) + new
        state, inputs = self._start(prompts, longest, longest - 1, lockstep)
        state.set_rows(min(PROMPT_ROWS, int(lengths.max())))
        self._finish(state, inputs, lengths)
        state.set_rows(1)
        self._finish(state, inputs, lengths + new - 1)
        return self._results(state, lengths + new, lengths + new - 1)

    def _start(
        self, sequences: Sequence[Ids], length: int, logit_positions: int, lockstep: bool = False
    ) -> tuple[BatchState, CallInputs]:
        model, dtype = self.manifest.model, self.manifest.cache.dtype
        tokens = _padded(sequences, length, -1)
        state = BatchState.new(model, self.manifest.recurrence, dtype, tokens, 2 * length, logit_positions)
        inputs = CallInputs.greedy(len(sequences), length)
        inputs.lockstep = lockstep
        return state, inputs

    def _finish(self, state: BatchState, inputs: CallInputs, end: np.ndarray) -> None:
        """Runs all work below end. One token at a time is the slowest schedule there is, so more passes are a fault."""
        most = int(end.max()) * self.manifest.recurrence.max_steps
        self.session.run(state, inputs, end, most)
        if state.has_work(end):
            raise CheckFailed(
                f"the graph was not done after {most} passes, which is enough for {int(end.max())} tokens in any "
                "schedule; export the bundle again and, if that is no help, file an issue with `latentcot env`"
            )

    def _results(self, state: BatchState, lengths: np.ndarray, run: np.ndarray) -> list[Run]:
        arrays = state.arrays
        return [
            Run(arrays["tokens"][b, :length], arrays["depths"][b, :n], arrays["logits"][b, :n])
            for b, (length, n) in enumerate(zip(lengths, run, strict=True))
        ]


class Oracle:
    """The model of `latentcot_export.model` in float64 with the given weights, whatever dtype these are rounded to.

    With `rounds` it refines prompts in parallel, if tokens of the recurrence can be.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, torch.Tensor],
        rounds: int | None = None,
    ) -> None:
        self.recurrence, self.rounds = recurrence, rounds if refinable(recurrence) else None
        self._model = LatentCoT.from_tensors(model, recurrence, tensors, torch.float64)

    @torch.no_grad()
    def read(
        self,
        sequences: Sequence[Ids],
        forced: Sequence[Ids] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> list[Truth]:
        """Teacher-forced, all sequences in one batch. forced: depths int64 `[n]` per sequence, 0 = learned.

        prompts: how many tokens of each are its prompt, all of them by default.
        """
        with threads_that_pay(self._model.spec):
            return self._read(sequences, forced, prompts or [len(each) for each in sequences])

    def _read(self, sequences: Sequence[Ids], forced: Sequence[Ids] | None, prompts: Sequence[int]) -> list[Truth]:
        length = max(len(each) for each in sequences)
        tokens = torch.from_numpy(_padded(sequences, length, -1))
        depth = None if forced is None else torch.from_numpy(_padded(forced, length, 0))
        if self.rounds is None:
            thoughts = think(self._model, tokens, depth)
        else:
            thoughts = refined(self._model, tokens, self.rounds, torch.tensor(prompts), depth)
        return [
            Truth(
                thoughts.depths[b, : len(each)].numpy(),
                thoughts.next_reach[b, : len(each)].numpy(),
                self._model.head(thoughts.mix[b, : len(each)]).numpy(),
            )
            for b, each in enumerate(sequences)
        ]

    def follow(
        self, sequences: Sequence[Ids], depths: Sequence[Ids], prompts: Sequence[int] | None = None
    ) -> list[Truth]:
        """What the oracle thinks, and where that differs from `depths`, what it thinks while it replays these.

        One flipped decision changes every later key, so only a replay can judge what comes after it. Its next_reach
        still tells what it would have decided. A depth below 1 is no depth: the oracle decides there. See `read`.
        """
        prompts = prompts or [len(each) for each in sequences]
        truths = self.read(sequences, None, prompts)
        other = [b for b, truth in enumerate(truths) if not np.array_equal(truth.depths, depths[b])]
        if other:
            replayed = self.read([sequences[b] for b in other], [depths[b] for b in other], [prompts[b] for b in other])
            for b, truth in zip(other, replayed, strict=True):
                truths[b] = truth
        return truths


@contextlib.contextmanager
def threads_that_pay(model: ModelSpec) -> Iterator[None]:
    """One thread for a small model: torch's threads wait for each other after every operation, busily."""
    before = torch.get_num_threads()
    if model.hidden_size * model.intermediate_size < _THREADS_PAY_FROM:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _padded(rows: Sequence[Ids], length: int, padding: int) -> np.ndarray:
    """int64 `[B, length]`."""
    table = np.full((len(rows), length), padding, np.int64)
    for b, row in enumerate(rows):
        table[b, : len(row)] = row
    return table
