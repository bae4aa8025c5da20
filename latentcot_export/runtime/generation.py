"""A running generation: an iterator over its tokens that can be abandoned or asked for its result at any time."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq

from .batch import Batch
from .engine import Engine
from .output import GenerateOutput
from .scheduler import Job
from .sequence import Request, Sequence, StreamEvent
from .session import PortableSession
from .text import Tokenizer


class Generation(abc.ABC):
    """Iterates over `StreamEvent`s: the first token of every sequence as soon as its prompt has run, then in bursts.

    `output()` gives what there is so far. `close()`, or leaving a `with` block, ends it and frees its memory; so does
    running to the end. Prompts beyond `max_batch` wait. `passes` counts those taken since it began, for whomever.
    Errors: LatentCoTError from `next`.
    """

    def __init__(self, tokenizer: Tokenizer | None, requests: Seq[Request]) -> None:
        self.passes = 0
        self._sequences = [Sequence(index, request, tokenizer) for index, request in enumerate(requests)]
        self._events = self._run()

    def __iter__(self) -> Iterator[StreamEvent]:
        """Itself."""
        return self

    def __next__(self) -> StreamEvent:
        """The next token of any sequence."""
        return next(self._events)

    def __enter__(self) -> Generation:
        """Itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Ends what still runs as `cancelled`."""
        self._events.close()
        for each in self._sequences:
            each.cancel()

    def output(self) -> GenerateOutput:
        """The result. Ends what still runs, as `close` does."""
        self.close()
        return GenerateOutput.of(self._sequences)

    @abc.abstractmethod
    def _run(self) -> Generator[StreamEvent, None, None]:
        """Runs the sequences and gives their events."""


class GroupGeneration(Generation):
    """Runs groups of `max_batch` sequences, one group after the other, over the portable graph."""

    def __init__(
        self,
        session: PortableSession,
        tokenizer: Tokenizer | None,
        requests: Seq[Request],
        max_batch: int,
        bursts: tuple[int, int],
    ) -> None:
        """`bursts`: passes of the first burst and of the longest, each burst being twice the one before."""
        self._session, self._max_batch, self._bursts = session, max_batch, bursts
        super().__init__(tokenizer, requests)

    def _run(self) -> Generator[StreamEvent, None, None]:
        for first in range(0, len(self._sequences), self._max_batch):
            before = self.passes
            batch = Batch(self._session, self._sequences[first : first + self._max_batch])
            burst, longest = self._bursts
            events = batch.prefill()
            while True:
                self.passes = before + batch.passes
                yield from events
                if batch.done:
                    break
                events = batch.advance(burst)
                burst = min(2 * burst, longest)


class EngineGeneration(Generation):
    """Runs its sequences in an engine, beside whatever else that runs; `eager` where somebody waits for each token."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None, requests: Seq[Request], eager: bool) -> None:
        self._engine, self._eager = engine, eager
        self._jobs: list[Job] = []
        super().__init__(tokenizer, requests)

    def close(self) -> None:
        """See Generation. Slots are free when it returns."""
        self._events.close()
        self._engine.cancel_jobs(self._jobs)
        super().close()

    def _run(self) -> Generator[StreamEvent, None, None]:
        engine, backlog = self._engine, deque(self._sequences)
        before = engine.passes
        try:
            while backlog or self._jobs:
                # a full set of places and another that waits; the rest stays here, so that others find the queue open
                while backlog and len(self._jobs) < 2 * engine.max_batch:
                    self._jobs.append(engine.enqueue(backlog.popleft(), self._eager))
                engine.drive(lambda: any(job.done or job.events for job in self._jobs))
                self.passes = engine.passes - before
                for job in [*self._jobs]:
                    done = job.done  # looked at first: its last event comes before it
                    while job.events:
                        yield job.events.popleft()
                    if done:
                        self._jobs.remove(job)
                        if job.error is not None:
                            raise job.error
        finally:
            # this may be the end of a forgotten generator, anywhere in the program: it must not wait for a lock
            engine.cancel_jobs(self._jobs, wait=False)
