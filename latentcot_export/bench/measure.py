"""Timing: warm-up, runs of all engines interleaved, and the rows that `latentcot bench` reports.

One run gives each engine a fresh batch: the prompts with each sequence's first new token, then, for `tg`, a burst of
new tokens. Engines take turns run by run (A B A B), because two measurements an hour apart differ by more than what is
to be measured. After every switch come 30 ms of sleep and one short run that is discarded: idle thread pools of the
other engine spin for a while, which inflated medians up to 2.8 times.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .engines import Engine, Work
from .machine import peak_rss_mib, reset_peak
from .workload import Batch, Settings, Workload

SWITCH_SECONDS = 0.03  # ONNX Runtime's threads spin for less than this after a call


@dataclasses.dataclass(frozen=True)
class Test:
    """One line of the table: `pp128` runs prompts, `tg64` decodes after prompts that are not counted."""

    prompt: int
    new: int
    batch: int

    @property
    def name(self) -> str:
        """`pp{P}` or `tg{N}`."""
        return f"tg{self.new}" if self.new else f"pp{self.prompt}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed run: seconds of the prompts and of the burst (0 without one), and totals after each."""

    prompt_seconds: float
    burst_seconds: float
    after_prompt: Work
    after_burst: Work


def tests_of(settings: Settings) -> list[Test]:
    """Per batch size `pp`, then `tg`; a length of 0 skips its test."""
    tests = []
    for batch in settings.batches:
        if settings.prompt:
            tests.append(Test(settings.prompt, 0, batch))
        if settings.new:
            tests.append(Test(settings.prompt, settings.new, batch))
    return tests


def run_once(engine: Engine, batch: Batch, new: int) -> Sample:
    """One run of a fresh batch."""
    began = time.perf_counter()
    engine.start(batch)
    prompted = time.perf_counter()
    after_prompt = engine.work()
    if not new:
        return Sample(prompted - began, 0.0, after_prompt, after_prompt)
    began_burst = time.perf_counter()
    engine.decode(new)
    ended = time.perf_counter()
    return Sample(prompted - began, ended - began_burst, after_prompt, engine.work())


def settle(engine: Engine, batch: Batch) -> None:
    """What follows a switch to `engine`: let the other one's threads go to sleep, and wake this one's."""
    time.sleep(SWITCH_SECONDS)
    short = batch.short()
    run_once(engine, short, short.new)


def peak_of(engine: Engine, batch: Batch, new: int) -> float:
    """Peak resident memory of the process, MiB, over one run that is not timed."""
    reset_peak()
    run_once(engine, batch, new)
    return peak_rss_mib()


def interleave(
    engines: Sequence[Engine], batch: Batch, test: Test, runs: int, warmup: int, tick: Callable[[], None]
) -> list[list[Sample]]:
    """`runs` samples of each engine, taken in turn, after `warmup` runs of each that are not counted."""
    samples: list[list[Sample]] = [[] for _ in engines]
    for turn in range(warmup + runs):
        for engine, taken in zip(engines, samples, strict=True):
            if len(engines) > 1:
                settle(engine, batch)
            sample = run_once(engine, batch, test.new)
            if turn >= warmup:
                taken.append(sample)
            tick()
    return samples


def row_of(engine: Engine, test: Test, samples: Sequence[Sample], peak_mib: float) -> dict[str, Any]:
    """One row of `bench -o json`. Mean and deviation (n - 1) are over runs.

    ttft_ms: from the start of a batch to every sequence's first new token, over runs. tpot_ms: over the new tokens of
    all runs, what each took: the passes from its start to its halt, at the run's mean time of a pass. The host does not
    see single tokens of a burst, but the depths tell their passes exactly. NaN where a test has no such thing.
    """
    first, new = samples[0], bool(test.new)
    seconds = np.array([s.burst_seconds if new else s.prompt_seconds for s in samples])
    span = slice(max(test.prompt, 1), max(test.prompt, 1) + test.new) if new else slice(0, test.prompt)
    depths = first.after_burst.depths[:, span]
    before = first.after_prompt if new else Work(0, 0, 0, 0, depths)
    after = first.after_burst
    passes = after.passes - before.passes
    rates = test.batch * (test.new or test.prompt) / seconds
    taken = np.maximum(depths, after.least_passes)
    token_passes = np.broadcast_to(taken.max(0), taken.shape) if engine.schedule == "lockstep" else taken
    token_ms = np.outer(1e3 * seconds / passes, token_passes.ravel()) if new else np.empty(0)
    return {
        "engine": engine.name,
        "schedule": engine.schedule,
        "target": engine.target,
        "dtype": engine.dtype,
        "quantize": engine.quantize,
        "batch": test.batch,
        "test": test.name,
        "tokens_per_s": {"mean": float(rates.mean()), "std": float(rates.std(ddof=1)) if len(rates) > 1 else np.nan},
        "passes_per_s": float((passes / seconds).mean()),
        "ttft_ms": percentiles(1e3 * np.array([s.prompt_seconds for s in samples])),
        "tpot_ms": percentiles(token_ms),
        "mean_depth": float(depths.mean()),
        "max_depth": int(depths.max()),
        "occupancy": (after.live_rows - before.live_rows) / (after.computed_rows - before.computed_rows),
        "kv_bytes_in_use": engine.bytes_per_slot * after.cache_slots,
        "kv_bytes_ideal": engine.bytes_per_slot * (after.live_rows - after.repeats),
        "peak_rss_mib": peak_mib,
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """p50 and p99, interpolated; NaN without values."""
    found = np.percentile(values, [50, 99]) if values.size else (float("nan"), float("nan"))
    return {"p50": float(found[0]), "p99": float(found[1])}


def measure(
    engine: Engine,
    build_baselines: Callable[[], Sequence[Engine]],
    workload: Workload,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of every test: `engine` first, then the baselines, which are built after the engine's memory is measured.

    Only so does `engine`'s peak_rss_mib not include their weights and torch; theirs include everything.
    progress gets (runs done, runs in all).
    """
    tests = tests_of(settings)
    batches = [workload.batch(test.batch, test.prompt, test.new) for test in tests]
    total = len(tests) * (settings.runs + settings.warmup + 1) * (1 + len(settings.baselines))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def peaks(one: Engine) -> list[float]:
        found = []
        for test, batch in zip(tests, batches, strict=True):
            found.append(peak_of(one, batch, test.new))
            tick()
        return found

    memory = [peaks(engine)]
    engines = [engine, *build_baselines()]
    memory += [peaks(baseline) for baseline in engines[1:]]
    rows = []
    for place, (test, batch) in enumerate(zip(tests, batches, strict=True)):
        samples = interleave(engines, batch, test, settings.runs, settings.warmup, tick)
        for one, taken, peak in zip(engines, samples, memory, strict=True):
            rows.append(row_of(one, test, taken, peak[place]))
    return rows
