"""Ten thousand requests of random length, sampling and cancels through one Engine, each of them checked.

    python benchmarks/soak.py [BUNDLE] [-n 10000] [--places 16] [--cache-slots 1536] [--seed 1]

Every request ends as it was asked to; the results of fixed probe requests, greedy ones whose answers the eager oracle
knows with margins above 1e-3 and sampled ones, stay the same whoever runs beside them; at the end every cache slot is
back, and resident memory has not grown since the warm-up. Writes soak.json and soak.md; exits with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import results
from common.results import ROOT, Check

from latentcot_export import Engine, QueueFull
from latentcot_export.bench.machine import rss_bytes
from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime import Tokenizer
from latentcot_export.runtime.handle import RequestHandle
from latentcot_export.runtime.native_session import NativeSession

MIB = 2**20
PROBES, PROBE_PROMPT, PROBE_NEW = 6, 12, 24
LONG_PROMPT, MOST_NEW = 200, 48
WARM_UP = 0.2  # of the requests
SAMPLES = 100  # readings of resident memory
GROWTH_LIMIT = 0.01  # of resident memory: a page kept per request would be 16 times that on the smallest model
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.4, "top_k": 40, "top_p": 0.5},
)


@dataclasses.dataclass
class Asked:
    """One request and what must come of it."""

    handle: RequestHandle
    prompt: list[int]
    new: int
    cancel_after: int | None  # new tokens after which it is cancelled, None: never
    cancelled: bool = False
    probe: int | None = None


class Soak:
    """The engine, what it was asked and what was wrong with the answers."""

    def __init__(self, engine: Engine, bundle: str, vocab_size: int, max_steps: int, given: argparse.Namespace) -> None:
        self.engine, self.vocab_size, self.max_steps = engine, vocab_size, max_steps
        self.random = random.Random(given.seed)
        self.requests = given.requests
        self.running: list[Asked] = []
        self.probes = _oracle(bundle)
        self.expected: dict[int, tuple[list[int], list[int]]] = {}
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self.submitted = self.answered = self.refused = self.probed = self.tokens = 0
        self.memory: list[tuple[int, int]] = []

    def run(self) -> None:
        """All requests, with a full queue throughout."""
        every = max(1, self.requests // SAMPLES)
        while self.submitted < self.requests or self.running:
            while self.submitted < self.requests and len(self.running) < self.engine.max_batch + self.engine.max_queue:
                if not self._submit():
                    break
            self.engine.step()
            self._cancel()
            self._collect()
            if self.answered // every > len(self.memory):
                self.memory.append((self.answered, rss_bytes()["all"]))

    def _submit(self) -> bool:
        """One more request, every fiftieth a probe; False when the queue is full, which is an answer too."""
        number, cancel_after, probe = self.submitted, None, None
        if number % 50 == 0:
            probe = number // 50 % (len(self.probes) + len(SAMPLINGS))
            known = self.probes[probe % len(self.probes)]
            prompt, new = known["prompt"], len(known["ids"])
            sampling = SAMPLINGS[probe - len(self.probes)] if probe >= len(self.probes) else {}
            arguments: dict[str, Any] = {**sampling, "seed": probe, "ignore_eos": True}
        else:
            # mostly short, a few that take many passes
            length = self.random.randint(1, 32) if self.random.random() < 0.9 else self.random.randint(33, LONG_PROMPT)
            prompt = [self.random.randrange(self.vocab_size) for _ in range(length)]
            new = self.random.randint(1, MOST_NEW)
            arguments = {**self.random.choice(SAMPLINGS), "seed": number, "ignore_eos": self.random.random() < 0.5}
            if self.random.random() < 0.2:
                cancel_after = self.random.randint(0, new)
        try:
            handle = self.engine.submit(prompt, new, **arguments)
        except QueueFull:
            self.refused += 1
            return False
        self.running.append(Asked(handle, prompt, new, cancel_after, probe=probe))
        self.submitted += 1
        return True

    def _cancel(self) -> None:
        for each in self.running:
            if each.cancel_after is None or each.cancelled or each.handle.done:
                continue
            if len(each.handle.job.events) >= each.cancel_after:
                each.cancelled = True
                each.handle.cancel()

    def _collect(self) -> None:
        still = []
        for each in self.running:
            if each.handle.done:
                self.answered += 1
                fault = self._fault(each)
                if fault:
                    self.faults.append(f"request {each.handle.index}: {fault}")
            else:
                still.append(each)
        self.running = still

    def _fault(self, asked: Asked) -> str | None:
        """What is wrong with an answer, None where nothing is."""
        try:
            told = [event.token for event in asked.handle]
            result = asked.handle.result()
        except LatentCoTError as error:
            return f"failed: {error}"
        ids, depths, stop = result.ids[0], result.depths[0], result.stop[0]
        self.ends[stop] += 1
        self.tokens += len(ids)
        if told != ids:
            return f"its events tell {len(told)} tokens and its result {len(ids)}, which differ"
        if (stop == "cancelled") != asked.cancelled:
            return f"it ended with {stop} and was {'' if asked.cancelled else 'not '}cancelled"
        if stop == "length" and len(ids) != asked.new:
            return f"it ended after {len(ids)} of {asked.new} tokens"
        if not all(0 <= token < self.vocab_size for token in ids):
            return "it has ids outside the vocabulary"
        least = 0 if stop == "cancelled" else 1
        if ids and len(depths) != len(asked.prompt) + len(ids) - 1:
            return f"it has {len(depths)} depths for {len(asked.prompt)} + {len(ids)} tokens"
        if not all(least <= depth <= self.max_steps for depth in depths):
            return f"it has depths from {min(depths)} to {max(depths)}"
        return None if asked.probe is None else self._probe_fault(asked.probe, ids, depths)

    def _probe_fault(self, probe: int, ids: list[int], depths: list[int]) -> str | None:
        self.probed += 1
        if probe < len(self.probes):
            wanted = (self.probes[probe]["ids"], self.probes[probe]["depths"])
        else:
            wanted = self.expected.setdefault(probe, (ids, depths))
        return None if wanted == (ids, depths) else f"probe {probe} gave another result than before"


def _oracle(bundle: str) -> list[dict[str, Any]]:
    """Probes from a process of its own, which may hold torch."""
    script = Path(__file__).parent / "common" / "probes.py"
    command = [sys.executable, str(script), bundle, *map(str, (PROBES, PROBE_PROMPT, PROBE_NEW))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LatentCoTError(f"the oracle's probes could not be made ({reason}); install the export extra")
    return json.loads(done.stdout)


def growth(memory: list[tuple[int, int]], requests: int) -> tuple[float, float, float]:
    """Resident bytes after the warm-up and at the end (medians of a quarter of the readings each), and their growth."""
    later = [size for number, size in memory if number >= WARM_UP * requests]
    quarter = max(1, len(later) // 4)
    first, last = statistics.median(later[:quarter]), statistics.median(later[-quarter:])
    return first, last, last / first - 1


def page(report: dict[str, Any]) -> str:
    """soak.md."""
    ends = ", ".join(f"{count} {name}" for name, count in sorted(report["ends"].items()))
    lines = [
        f"- {report['requests']} requests, {report['tokens']} new tokens, {report['passes']} passes, "
        f"{report['seconds']:.0f} s",
        f"- how they ended: {ends}; {report['refused']} submissions were told that the queue is full",
        f"- {report['probed']} probe requests",
        f"- cache slots: {report['slots_free']} of {report['slots']} free at the end",
        f"- resident memory: {report['rss_after_warm_up'] / MIB:.1f} MiB after the warm-up, "
        f"{report['rss_at_end'] / MIB:.1f} MiB at the end",
    ]
    parts = [results.head("Soak", report), "\n".join(lines), results.checks_table(report["checks"])]
    if report["faults"]:
        parts += ["## Faults", "\n".join(f"- {fault}" for fault in report["faults"][:50])]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "build" / "latentcot-tiny-ort")
    parser.add_argument("-n", dest="requests", type=int, default=10_000)
    parser.add_argument("--places", type=int, default=16)
    parser.add_argument("--cache-slots", type=int, default=1536, help="so few that sequences must make room at times")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        passed = run(given)
    except LatentCoTError as error:
        results.refuse(error)
    sys.exit(0 if passed else 1)


def run(given: argparse.Namespace) -> bool:
    """Soaks and publishes; whether everything held."""
    if given.requests < 10 or given.threads < 1:
        raise InputError("-n is at least 10 and --threads at least 1; give larger numbers")
    report = results.begin(given.threads)
    bundle = open_bundle(given.bundle)
    if bundle.manifest.target != "ort":
        raise InputError(f"{bundle.folder} has the target {bundle.manifest.target}; export it with --target ort")
    model, steps = bundle.manifest.model, bundle.manifest.recurrence.max_steps
    if given.cache_slots < (LONG_PROMPT + MOST_NEW) * steps:
        raise InputError(
            f"--cache-slots is {given.cache_slots}, the longest request may need {(LONG_PROMPT + MOST_NEW) * steps}; "
            "give as many or more"
        )
    session = NativeSession(bundle, given.threads)
    engine = Engine(
        session,
        Tokenizer.of(bundle),
        max_batch=given.places,
        cache_slots=given.cache_slots,
        max_queue=2 * given.places,
    )
    soak = Soak(engine, str(given.bundle), model.vocab_size, steps, given)
    began = time.perf_counter()
    soak.run()
    seconds = time.perf_counter() - began
    assert engine._scheduler is not None  # no public way to ask for it: a user has no use for it
    free = engine._scheduler.state.free_slots
    first, last, grown = growth(soak.memory, given.requests)
    report |= {
        "bundle": Path(given.bundle).resolve().name,
        "requests": soak.answered,
        "tokens": soak.tokens,
        "seconds": seconds,
        "passes": engine.passes,
        "ends": dict(soak.ends),
        "refused": soak.refused,
        "probed": soak.probed,
        "slots": engine.cache_slots,
        "slots_free": free,
        "rss_after_warm_up": first,
        "rss_at_end": last,
        "rss": soak.memory,
        "faults": soak.faults,
    }
    checks = [
        Check("requests answered", float(soak.answered), float(given.requests)),
        Check(
            "requests that ended otherwise than asked, or probes that changed", float(len(soak.faults)), 0.0, most=True
        ),
        Check("cache slots that did not come back", float(engine.cache_slots - free), 0.0, most=True),
        Check("growth of resident memory since the warm-up", grown, GROWTH_LIMIT, most=True),
    ]
    report["checks"] = checks
    results.publish("soak", given.out, report, page(report))
    return all(check.passed for check in checks)


if __name__ == "__main__":
    main()
