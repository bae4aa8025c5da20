"""Who runs when: requests wait in order, enter places between bursts, and leave when they end or must make room.

One thread at a time; engine.py sees to that. The graph shares each pass out among the sequences that have a place. The
host decides who has one, how long a burst is and how many rows prompts may fill. No result depends on any of it, only
when it comes.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from ..errors import LatentCoTError
from .native_session import Session
from .native_state import NativeState
from .native_tables import Column, Counter, Status
from .sequence import Sequence, StreamEvent

# Rows that prompts may fill: alone, enough to keep the matrix products busy; beside sequences that decode, so few that a
# pass does not become much longer for those.
PROMPT_ROWS_ALONE = 128
PROMPT_ROWS_BESIDE = 32
# Rows that prompts which are refined in parallel may fill together, one alone as many as it has: what a pass holds of its
# rows is some ten times their hidden states.
REFINED_ROWS = 4096
# Passes of the longest burst, where somebody watches and where nobody does. A burst begins with one pass where somebody
# watches, so that nobody waits for it to fill, and grows while it is short: the host takes 0.1 to 0.3 ms for each, which
# is little beside BURST_SECONDS. Where nobody watches, a burst may take UNWATCHED_SECONDS: a cancel waits for its end.
WATCHED_BURST = 16
MAX_BURST = 32
BURST_SECONDS = 0.02
UNWATCHED_SECONDS = 0.5


class Job:
    """One request on its way through the engine: waiting, running (with a `place`), then `done`, with or without `error`.

    `eager`: somebody waits for each token. `events` are those that nobody has taken yet.
    """

    def __init__(self, sequence: Sequence, eager: bool) -> None:
        self.sequence, self.eager = sequence, eager
        self.events: deque[StreamEvent] = deque()
        self.cancelled = self.done = False
        self.error: LatentCoTError | None = None
        self.place: int | None = None
        self.last: StreamEvent | None = None  # the last event, held back until every depth is complete
        self.needs = 0  # free slots that there must be before it may run again

    @property
    def tokens(self) -> list[int]:
        """Prompt and new tokens so far."""
        return [*self.sequence.request.prompt, *self.sequence.ids]

    @property
    def end(self) -> int:
        """Positions below it are run: all but the last token's."""
        return len(self.sequence.request.prompt) + self.sequence.request.max_new_tokens - 1


class Scheduler:
    """The queue and the places of one engine."""

    def __init__(self, session: Session, state: NativeState) -> None:
        self.session, self.state = session, state
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}  # by place, in order of admission
        self._burst, self._watched = MAX_BURST, False
        self._read = 0  # tokens that the session was not told of

    @property
    def idle(self) -> bool:
        """True when there is nothing to do."""
        return not self.waiting and not self.running

    def sweep(self) -> None:
        """Ends jobs that were cancelled: their rows leave the batch and their slots are free at once."""
        for job in [*self.running.values()]:
            if job.cancelled:
                self._leave(job)
        for job in [each for each in self.waiting if each.cancelled]:
            self.waiting.remove(job)
            self._end(job)

    def prepare(self) -> int:
        """Admits who fits and says how many passes the next burst may take, 0 when nothing runs."""
        self._admit()
        if not self.running:
            return 0
        pending = self._pending()
        # one known token left to start: it was chosen here, so the sequence decodes
        decoding = sum(1 for place, job in self.running.items() if pending[place] <= 1 and job.sequence.told)
        rows = decoding + PROMPT_ROWS_BESIDE if decoding else PROMPT_ROWS_ALONE
        self.state.control(rows, yield_when_done=bool(self.waiting))
        self.state.counters[Counter.FINISHED] = 0
        watched = [(place, job) for place, job in self.running.items() if job.eager]
        self._watched = bool(watched)
        # the first token of a prompt cannot come before all of it has started
        first = [-(-pending[place] // rows) for place, job in watched if not job.sequence.told]
        return max(1, min([self._burst, WATCHED_BURST if watched else MAX_BURST, *first]))

    def run(self, passes: int) -> None:
        """One burst. Errors: LatentCoTError, after which the state is of no use."""
        started, before = time.perf_counter(), self.state.passes
        self.session.run(self.state, passes)
        seconds, taken = time.perf_counter() - started, self.state.passes - before
        most = BURST_SECONDS if self._watched else UNWATCHED_SECONDS
        if seconds < most:
            self._burst = min(2 * passes, MAX_BURST)
        elif seconds > 2 * most:
            self._burst = max(1, taken // 2)
        if not taken and self.state.live_rows == 0 and not self._ended():
            raise LatentCoTError("the graph returned without taking a pass; export the bundle again")

    def collect(self) -> list[StreamEvent]:
        """What the burst gave: new tokens go to their jobs, ended sequences leave, one makes room where nothing fits."""
        told: list[StreamEvent] = []
        before, rows = len(self.running), self.state.sequences.tolist()
        for place, job in [*self.running.items()]:
            try:
                self._take(place, job, rows[place], told)
            except Exception as error:  # of this request's text alone; everybody else goes on
                self._leave(job, LatentCoTError(f"request {job.sequence.index} failed: {error}; submit it again"))
        if len(self.running) == before and self.state.counters[Counter.STALLED] and not self.state.live_rows:
            self._make_room()
        self.session.has_read(self._read + len(told))
        self._read = 0
        return told

    def _take(self, place: int, job: Job, row: list[int], told: list[StreamEvent]) -> None:
        """New tokens of one sequence; if it has ended and every depth is there, it leaves its place."""
        sequence, arrays = job.sequence, self.state.arrays
        first, known, start = sequence.length, row[Column.LENGTH], sequence.told
        if known > first and sequence.stop is None:
            depths = arrays["depths"][place, start : known - 1].tolist()
            for at, token in enumerate(arrays["tokens"][place, first:known].tolist(), first):
                event = sequence.accept(token, depths[sequence.told - start : at - start])
                if event.stop is not None:
                    job.last = event
                    break
                told.append(event)
                job.events.append(event)
        if sequence.stop is None:
            return
        if row[Column.STATUS] == Status.RUNNING and not row[Column.STOPPED] and row[Column.END] >= sequence.length:
            # the graph knows no stop texts and has gone on: what it did since is dropped
            self.state.truncate(place, sequence.length - 1)
            row = self.state.sequences[place].tolist()
        if row[Column.STATUS] == Status.DONE or not row[Column.LIVE_ROWS]:
            if job.last is not None:
                told.append(job.last)
            self._leave(job)

    def _admit(self) -> None:
        """Those who wait enter places in their order; the first that does not fit holds up the others."""
        while self.waiting and len(self.running) < self.state.places and self._fits(self.waiting[0]):
            job = self.waiting.popleft()
            request, tokens = job.sequence.request, job.tokens
            job.place = self.state.add(
                tokens,
                job.end,
                sampling=request.sampling,
                stop_tokens=request.stop_tokens,
                prompt=len(request.prompt),  # of one that begins anew: what it wrote is run as it was
            )
            self.running[job.place] = job
            self._read += len(tokens)
            if job.eager and not job.sequence.ids:
                self._burst = 1

    def _fits(self, job: Job) -> bool:
        """False while the cache has less room than the job and those before it are known to need."""
        if not self.running:
            return True
        free, prompt = self.state.free_slots - sum(self._pending()), len(job.sequence.request.prompt)
        refining, whole = self.state.refining, self.state.refining.slots(prompt)
        if whole:  # all of its slots are taken, whoever else still asks for some
            if refining and refining.rows + whole > REFINED_ROWS:
                return False
            free -= int(self.state.counters[Counter.RESERVED])
            whole -= prompt
        return free >= max(job.needs, job.sequence.length + whole)

    def _pending(self) -> list[int]:
        """Known tokens of each place that wait for their first step."""
        rows = self.state.sequences
        waiting = rows[:, Column.LENGTH] - rows[:, Column.NEXT_POSITION]
        return np.where(rows[:, Column.STATUS] == Status.RUNNING, waiting, 0).tolist()

    def _ended(self) -> bool:
        done = self.state.sequences[:, Column.STATUS] == Status.DONE
        return bool(done.any() or self.state.counters[Counter.STALLED])

    def _make_room(self) -> None:
        """No running sequence finds a slot: the youngest goes back to the head of the queue, and begins anew later.

        Its tokens and depths come out the same then. The oldest always goes on, so that everybody ends at last.
        """
        place, job = next(reversed(self.running.items()))
        if len(self.running) == 1:
            self._leave(job, self._too_long(job))
            return
        job.sequence.settle(self._depths(job))
        free, positions = self.state.free_slots, int(self.state.sequences[place, Column.NEXT_POSITION])
        self.state.remove(place)
        del self.running[place]
        job.place = None
        # more room than there is now, or the two would take turns for ever; and for all of it, if it goes on as it did
        whole = (self.state.free_slots - free) * job.end // max(1, positions)
        job.needs = max(whole, self.state.free_slots + self.state.max_steps)
        self.waiting.appendleft(job)

    def _too_long(self, job: Job) -> LatentCoTError:
        sequence = job.sequence
        return LatentCoTError(
            f"request {sequence.index} stopped after {len(sequence.request.prompt)} prompt and {len(sequence.ids)} new "
            f"tokens, which take all {self.state.slots} cache slots; ask for fewer tokens or give more cache_slots"
        )

    def _depths(self, job: Job) -> list[int]:
        """Depths of the positions that were run, as far as they are complete."""
        return self.state.arrays["depths"][job.place, : job.sequence.length - 1].tolist()

    def _leave(self, job: Job, error: LatentCoTError | None = None) -> None:
        """Frees the job's place and ends it."""
        assert job.place is not None
        job.sequence.settle(self._depths(job))
        self.state.remove(job.place)
        del self.running[job.place]
        job.place = None
        self._end(job, error)

    def _end(self, job: Job, error: LatentCoTError | None = None) -> None:
        job.sequence.cancel()
        if job.last is not None:
            job.events.append(job.last)
        job.error, job.done = error, True
