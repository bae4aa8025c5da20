"""The engine on a backlog beside the eager oracle, which takes the same requests in whole batches, step by step.

    python benchmarks/eager.py BUNDLE [-b 16] [--backlog 128] [-n 48] [-r 2] [--threads 2]

Depth is learned. Every request is one prompt token and `-n` new ones. The oracle (`bench/eager.py`, schedule lockstep)
runs a batch to its end: step 1 of a token for all, then step 2 of those that go on, packed, and so on. The engine admits
a request when another has ended. Each of `-r` rounds times the whole backlog in the engine and a share of it in the
oracle, so that after all rounds both have run every request once or more. Writes eager.json and eager.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import results
from common.results import Check, Spread

from latentcot_export import Engine
from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.workload import Batch
from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError, LatentCoTError

SEED = 20260208
SWITCH_SECONDS = 0.2  # threads of the other engine spin for less than this
WARM = 16  # requests, and tokens of a batch, that are run before and not counted


def drain(engine: Engine, prompts: np.ndarray, new: int) -> tuple[float, list[list[int]], list[list[int]]]:
    """Seconds for all requests; new ids and depths of each."""
    started = time.perf_counter()
    handles = [engine.submit([int(token)], new, ignore_eos=True) for token in prompts]
    made = [handle.result() for handle in handles]
    took = time.perf_counter() - started
    return took, [each.ids[0] for each in made], [each.depths[0] for each in made]


def in_batches(
    oracle: TorchEngine, prompts: np.ndarray, new: int, batch: int
) -> tuple[float, list[list[int]], list[list[int]]]:
    """As `drain`, `batch` requests at a time."""
    ids: list[list[int]] = []
    depths: list[list[int]] = []
    started = time.perf_counter()
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch, None]
        oracle.start(Batch(some, np.zeros((len(some), new + 2), np.int64)))
        oracle.decode(new - 1)
        ids += oracle.tokens[:, 1 : new + 1].tolist()
        depths += oracle.depths[:, :new].tolist()
    return time.perf_counter() - started, ids, depths


def run(given: argparse.Namespace) -> None:
    """Measures and publishes."""
    if min(given.batch, given.new - 1, given.runs, given.threads) < 1 or given.backlog % (given.batch * given.runs):
        raise InputError(
            "--backlog must be a multiple of the batch times the rounds, -n at least 2; give other numbers"
        )
    bundle = open_bundle(given.bundle)
    torch.set_num_threads(given.threads)
    engine = Engine.from_pretrained(given.bundle, given.threads, max_batch=given.batch, max_queue=given.backlog)
    oracle = TorchEngine.of(bundle, "lockstep")
    prompts = np.random.default_rng(SEED).integers(0, bundle.manifest.model.vocab_size, given.backlog)
    report: dict[str, Any] = results.begin(given.threads)
    drain(engine, prompts[:WARM], WARM)
    in_batches(oracle, prompts[: given.batch], 4, given.batch)
    ours: list[float] = []
    theirs: list[float] = []
    same, mean_depths = 0, []
    for part in np.split(prompts, given.runs):
        time.sleep(SWITCH_SECONDS)
        seconds, ids, depths = drain(engine, prompts, given.new)
        ours.append(given.backlog * given.new / seconds)
        time.sleep(SWITCH_SECONDS)
        seconds, wanted, _ = in_batches(oracle, part, given.new, given.batch)
        theirs.append(len(part) * given.new / seconds)
        first = len(part) * (len(theirs) - 1)
        same += sum(a == b for a, b in zip(ids[first : first + len(part)], wanted, strict=True))
        mean_depths.append(float(np.mean([depth for line in depths for depth in line])))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        {"engine": "latentcot, backlog", "t/s": f"{Spread.of(ours):.1f}"},
        {"engine": "eager oracle, step by step", "t/s": f"{Spread.of(theirs):.1f}"},
        {"engine": "ratio, round by round", "t/s": f"{Spread.of(ratios):.2f}"},
    ]
    checks = [Check(f"batch {given.batch}, learned depth: over the eager oracle", Spread.of(ratios).median, 5.0)]
    report |= {"bundle": bundle.folder.resolve().name, "ours": ours, "eager": theirs, "checks": checks}
    report |= {"mean_depth": mean_depths, "same_tokens": same, "requests": given.backlog}
    page = "\n\n".join(
        [
            results.head("Eager: a backlog in the engine and in the oracle", report),
            f"{given.backlog} requests of 1 prompt token and {given.new} new ones, batch {given.batch}, learned depth, "
            f"mean {np.mean(mean_depths):.2f}; {same} of {given.backlog} requests have the same tokens in both.",
            results.table(rows),
            results.checks_table(checks),
        ]
    )
    results.publish("eager", given.out, report, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-b", dest="batch", type=int, default=16)
    parser.add_argument("--backlog", type=int, default=128, help="requests")
    parser.add_argument("-n", dest="new", type=int, default=48, help="new tokens of each")
    parser.add_argument("-r", dest="runs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        run(given)
    except LatentCoTError as error:
        results.refuse(error)


if __name__ == "__main__":
    main()
