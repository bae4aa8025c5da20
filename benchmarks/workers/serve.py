"""The protocol of the workers of peers.py: one JSON object a line, requests on stdin and answers on stdout.

    {"do": "load", "model": PATH, "threads": N}            -> {"versions": {...}, "note": TEXT}
    {"do": "open", "batch": B, "length": T}                -> {}      room for B sequences of T tokens
    {"do": "run", "prompts": [[id, ...], ...], "new": N}   -> {"prompt_seconds": s, "burst_seconds": s, "tokens": [[id]]}

`run` has two clocks: one for the prompts up to the first new token of every sequence, one for N more passes, each of which
runs one token of every sequence and chooses the next. So `tokens` has N + 1 ids a sequence. What goes wrong is answered
as {"error": TEXT}. A worker runs in the environment of its engine: this folder needs the standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """One engine with one model. All of it is greedy; no token stops it."""

    note: str

    def open(self, batch: int, length: int) -> None:
        """Room for `batch` sequences of `length` tokens; what was before is gone."""

    def start(self, prompts: list[list[int]]) -> None:
        """Forgets the batch before, runs prompts of one length and chooses a token for each."""

    def decode(self, count: int) -> None:
        """`count` more tokens of every sequence."""

    def tokens(self) -> list[list[int]]:
        """The new tokens of every sequence since `start`."""


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def timed(engine: Engine, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """One run, see the module."""
    began = time.perf_counter()
    engine.start(prompts)
    prompted = time.perf_counter()
    began_burst = time.perf_counter()
    if new:
        engine.decode(new)
    ended = time.perf_counter()
    return {
        "prompt_seconds": prompted - began,
        "burst_seconds": ended - began_burst,
        "tokens": [[int(each) for each in line] for line in engine.tokens()],
    }


def serve(load: Callable[..., Engine], packages: tuple[str, ...]) -> None:
    """Answers requests until stdin ends. `load(model, threads)` makes the engine."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    engine: Engine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                engine = load(request["model"], request["threads"])
                answer: dict[str, Any] = {"versions": versions(packages), "note": engine.note}
            elif engine is None:
                answer = {"error": "nothing is loaded"}
            elif request["do"] == "open":
                engine.open(request["batch"], request["length"])
                answer = {}
            else:
                answer = timed(engine, request["prompts"], request["new"])
        except Exception as error:  # the other side decides what to do about it
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
