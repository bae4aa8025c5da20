"""One request of an engine, as whoever submitted it sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LatentCoTError
from .output import GenerateOutput
from .scheduler import Job
from .sequence import StreamEvent

if TYPE_CHECKING:
    from .engine import Engine


class RequestHandle:
    """One request of an engine: an iterator over its `StreamEvent`s, whose `sequence` is `index`.

    Asking for the next event, or for the `result`, drives the engine when nobody else does. Errors, from both:
    LatentCoTError when the request failed, after the events it had.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self.job = engine, job  # the job is the engine's

    @property
    def index(self) -> int:
        """Number of this request among those of its engine, from 0."""
        return self.job.sequence.index

    @property
    def done(self) -> bool:
        """True once nothing more will come: ended, cancelled or failed."""
        return self.job.done

    @property
    def error(self) -> LatentCoTError | None:
        """Why it failed, None where it did not."""
        return self.job.error

    def __iter__(self) -> RequestHandle:
        """Itself."""
        return self

    def __next__(self) -> StreamEvent:
        """The next token, as soon as it is there."""
        job, done = self.job, False
        while not done:
            self._engine.drive(lambda: job.done or bool(job.events))
            done = job.done  # looked at first: the last event comes before it
            try:
                return job.events.popleft()
            except IndexError:  # another thread has taken it
                continue
        if job.error is not None:
            raise job.error
        raise StopIteration

    def cancel(self) -> None:
        """See `Engine.cancel`."""
        self._engine.cancel(self)

    def result(self) -> GenerateOutput:
        """Everything at once, in lists of one, when the request has ended; events stay where they are."""
        self._engine.drive(lambda: self.job.done)
        if self.job.error is not None:
            raise self.job.error
        return GenerateOutput.of([self.job.sequence])
