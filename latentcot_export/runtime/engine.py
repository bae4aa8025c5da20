"""`Engine`: requests come and go while others run. For `--target ort` bundles.

Nothing runs in the background: whoever waits for a token drives the engine, for everybody. A burst of passes is the
smallest unit; requests are admitted, and cancelled ones dropped, between two of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..bundle import open_bundle
from ..bundle.manifest import POOLED
from ..errors import InputError, LatentCoTError
from ..spec import MAX_SLOTS
from ..strict_json import shown
from .handle import RequestHandle
from .native_session import Session
from .native_state import NativeState
from .pass_session import packed_session
from .requests import Prompt, RequestReader
from .sampling import is_whole
from .scheduler import Job, Scheduler
from .sequence import Sequence as TokenSequence
from .sequence import StreamEvent
from .text import Tokenizer

DEFAULT_QUEUE = 1024
MAX_BATCH = 1 << 16  # as a manifest's
MAX_QUEUE = 1 << 20


class QueueFull(LatentCoTError):
    """As many requests wait as may: try again once some have ended."""


class Engine:
    """Runs up to `max_batch` requests at a time; `max_queue` more may wait. Several threads may use it.

    Short and long prompts share the passes fairly, and a request gives the same tokens whoever runs beside it. Where the
    cache is full, the youngest request makes room and begins anew later, unseen from outside. Close it, or leave a
    `with` block, to free the cache. After Ctrl-C or an error inside a burst it is of no use and says so.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        *,
        max_batch: int | None = None,
        cache_slots: int | None = None,
        max_queue: int = DEFAULT_QUEUE,
    ) -> None:
        """An engine for a loaded session; None: as the bundle's manifest says. Errors: InputError."""
        manifest = session.manifest
        cache, steps = manifest.cache, manifest.recurrence.max_steps
        places = _limit("max_batch", max_batch, cache.max_batch, 1, MAX_BATCH)
        slots = _limit("cache_slots", cache_slots, cache.slots or steps, steps, MAX_SLOTS)
        self.max_queue = _limit("max_queue", max_queue, DEFAULT_QUEUE, 1, MAX_QUEUE)
        try:
            state = NativeState(
                manifest.model,
                manifest.recurrence,
                places=places,
                length=cache.max_seq_len,
                slots=slots,
                dtype=cache.dtype,
                rounds=manifest.rounds,
            )
        except MemoryError:
            raise InputError(
                f"a cache of {slots} slots and {places} places does not fit in memory; give fewer cache_slots"
            ) from None
        self.max_batch, self.cache_slots = places, slots
        self._tokenizer = tokenizer
        self._reader = RequestReader(manifest, tokenizer)
        self._scheduler: Scheduler | None = Scheduler(session, state)
        self._changed = threading.Condition()  # guards all below; the lock is given up during a burst
        self._driving = False
        self._bursts = self._submitted = self._passes = 0
        self._told: list[StreamEvent] = []
        self._unusable = ""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        threads: int = 0,
        *,
        max_batch: int | None = None,
        cache_slots: int | None = None,
        max_queue: int = DEFAULT_QUEUE,
        device: str = "cpu",
    ) -> Engine:
        """Open a `--target ort` bundle, verify every byte of it, and load it on a device, "cpu" or "cuda".

        Errors: InputError, one sentence.
        """
        bundle = open_bundle(folder)
        if bundle.manifest.target not in POOLED:
            raise InputError(
                f"bundle {bundle.folder} has the target {bundle.manifest.target}, an engine runs ort; export it with "
                "--target ort"
            )
        session = packed_session(bundle, threads, device)
        return cls(session, Tokenizer.of(bundle), max_batch=max_batch, cache_slots=cache_slots, max_queue=max_queue)

    @property
    def usable(self) -> bool:
        """False once it was closed, or a burst was broken off."""
        return not self._unusable

    @property
    def passes(self) -> int:
        """Passes taken so far."""
        return self._passes

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int | None = None,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
    ) -> RequestHandle:
        """Puts one request behind those that wait, and returns at once; arguments are those of `generate`.

        Errors: InputError for arguments; QueueFull when `max_queue` requests wait; LatentCoTError when it is closed.
        """
        arguments = (max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids, ignore_eos)
        (request,) = self._reader.read([prompt], *arguments)
        with self._changed:
            self._check()
            assert self._scheduler is not None
            if len(self._scheduler.waiting) >= self.max_queue:
                raise QueueFull(
                    f"{self.max_queue} requests wait, which is the limit of this engine; try again when some have ended"
                )
            job = self.enqueue(TokenSequence(self._submitted, request, self._tokenizer), eager=True)
            self._submitted += 1
            return RequestHandle(self, job)

    def cancel(self, handle: RequestHandle) -> None:
        """Ends a request after the burst that runs, or at once: its slots are free and its result is what was told.

        A request that has ended stays as it is.
        """
        self.cancel_jobs([handle.job])

    def step(self) -> list[StreamEvent]:
        """One burst, or the end of the one that another thread runs: its new tokens, of any request; none when idle.

        The same events wait at their handles, for whoever iterates over those. Errors: LatentCoTError.
        """
        with self._changed:
            burst = self._bursts
            if self._driving:
                self._changed.wait_for(lambda: self._bursts != burst or not self._driving)
                self._check()
            else:
                self._step()
            return list(self._told) if self._bursts != burst else []

    def close(self) -> None:
        """Cancels what waits and runs, and frees the cache."""
        with self._changed:
            self._changed.wait_for(lambda: not self._driving)
            if self._scheduler is not None:
                for job in self._jobs():
                    job.cancelled = True
                self._scheduler.sweep()
            self._retire("the engine was closed; make a new one")

    def __enter__(self) -> Engine:
        """Itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def enqueue(self, sequence: TokenSequence, eager: bool) -> Job:
        """Puts a sequence behind those that wait, whatever their number: for generations, which keep few waiting.

        Errors: InputError when it cannot fit; LatentCoTError when the engine is of no use.
        """
        with self._changed:
            self._check()
            assert self._scheduler is not None
            state, prompt = self._scheduler.state, len(sequence.request.prompt)
            # a slot for each position before the last, and room for all steps of that one, or it does not start
            least = max(prompt - 1 + state.max_steps, state.refining.slots(prompt))
            if least > state.slots:
                raise InputError(
                    f"a prompt of {prompt} tokens needs {least} cache slots or more and this engine has {state.slots}; "
                    "shorten it or give more cache_slots"
                )
            job = Job(sequence, eager)
            self._scheduler.waiting.append(job)
            return job

    def cancel_jobs(self, jobs: Iterable[Job], wait: bool = True) -> None:
        """Cancels jobs; without `wait` it never blocks, as the end of a forgotten generator demands."""
        jobs = list(jobs)
        for job in jobs:
            job.cancelled = not job.done
        if not self._changed.acquire(blocking=wait):
            return  # whoever holds the lock sweeps at the next burst
        try:
            if not self._driving and self._scheduler is not None:
                self._scheduler.sweep()
                self._changed.notify_all()
            elif wait:
                self._changed.wait_for(lambda: all(job.done for job in jobs))
        finally:
            self._changed.release()

    def drive(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready`, running bursts while no other thread does. Errors: LatentCoTError from a burst.

        `ready` is asked after every burst; something must be running or waiting that makes it true.
        """
        with self._changed:
            while not ready():
                if self._driving:
                    self._changed.wait()
                    continue
                self._step()

    def _step(self) -> None:
        """One burst, by this thread, which holds the lock; it is given up while the graph runs."""
        self._check()
        scheduler = self._scheduler
        assert scheduler is not None
        try:
            self._driving = True
            scheduler.sweep()
            passes = scheduler.prepare()
            if passes:
                try:
                    self._changed.release()
                    scheduler.run(passes)
                finally:
                    self._changed.acquire()
                scheduler.sweep()
                self._told = scheduler.collect()
                self._passes = scheduler.state.passes
                self._bursts += 1
        except BaseException as error:
            reason = str(error) if isinstance(error, LatentCoTError) else type(error).__name__
            self._retire(f"the engine was stopped inside a burst ({reason}) and lost its requests; make a new one")
            raise
        finally:
            self._driving = False
            self._changed.notify_all()

    def _jobs(self) -> list[Job]:
        return [] if self._scheduler is None else [*self._scheduler.running.values(), *self._scheduler.waiting]

    def _retire(self, reason: str) -> None:
        """Makes the engine unusable: its jobs fail, its memory is free."""
        self._unusable = self._unusable or reason
        for job in self._jobs():
            job.error, job.done = LatentCoTError(reason), True
        self._scheduler = None
        self._changed.notify_all()

    def _check(self) -> None:
        if self._unusable:
            raise LatentCoTError(self._unusable)


def _limit(name: str, given: Any, default: int, low: int, high: int) -> int:
    """A given number or the default. Errors: InputError."""
    if given is None:
        return default
    if not is_whole(given) or not low <= given <= high:
        raise InputError(
            f"{name} is {shown(given)}, it must be an integer from {low} to {high}; give none for the default"
        )
    return int(given)
