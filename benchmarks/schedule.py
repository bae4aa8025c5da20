"""Depth-continuous batching against lockstep, fixed depth and the ideal, on synthetic depths.

    python benchmarks/schedule.py BUNDLE [--trace 2:6 --trace 3.4:4] [-b 16] [--backlog 128] [--lengths 16:112]

The engine's own scheduler runs a backlog of requests whose depths are given. Measured is the time in which requests wait,
so that every place is live. The ideal is (rows executed / batch) x the time of a full pass, whose head runs on
batch / mean depth rows: one burst of sequences with depths of the same distribution and the same mean context, in which
nobody comes or goes. Both, lockstep, and every token at the greatest depth take turns within seconds of each other.
Writes schedule.json and schedule.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import results
from common.native import DecodeBurst
from common.results import Check, Spread
from common.traces import SEED, Backlog, Course, Trace

from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime.native_session import NativeSession

SEGMENT_SECONDS = 1.0
FULL_PASSES = 32
EFFICIENCY, OCCUPANCY = 0.97, 0.99
DEFAULT_TRACES = ("2:6", "3.4:4")


def compare(session: NativeSession, trace: Trace, given: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: three courses and the full pass, in turns."""
    vocab = session.manifest.model.vocab_size
    low, high = given.lengths
    learned = Backlog.of(vocab, trace.depths(given.backlog, high), low, high)
    fixed = Backlog.of(vocab, np.full((given.backlog, high), trace.most, np.int32), low, high)
    courses = {
        "continuous": Course(session, learned, given.batch, lockstep=False),
        "lockstep": Course(session, learned, given.batch, lockstep=True),
        "fixed": Course(session, fixed, given.batch, lockstep=False),
    }
    # more depths than a burst can use, of which each sequence takes its own
    depths = trace.depths(given.batch, round(learned.mean_context) + FULL_PASSES + 2, SEED + 1)
    full = DecodeBurst(session, given.batch, round(learned.mean_context), FULL_PASSES, depths, trace.mean)
    for _ in range(2):
        full.seconds()
    main, passes, efficiencies, ideal = courses["continuous"], [], [], 0.0
    while not main.over:
        before = full.seconds()
        took, rows = main.advance(SEGMENT_SECONDS)
        after = full.seconds()
        passes += [before, after]
        if rows:
            share = rows / given.batch * (before + after) / 2
            efficiencies.append(share / took)
            ideal += share
        for name in ("lockstep", "fixed"):
            courses[name].advance(SEGMENT_SECONDS)
        print(f"{trace.name}: {len(main.scheduler.waiting)} of {given.backlog} wait", file=sys.stderr)
    if not efficiencies:
        raise InputError(f"--backlog {given.backlog} leaves no time in which requests wait; give at least 8 x -b")
    return {
        "trace": trace.name,
        "shares": trace.shares().tolist(),
        "mean_depth": main.rows / main.tokens,
        "mean_context": learned.mean_context,
        "batch": given.batch,
        "passes": main.passes,
        "rows": main.rows,
        "tokens": main.tokens,
        "seconds": main.seconds,
        "full_pass_ms": Spread.of([1e3 * each for each in passes]),
        "pass_ms": 1e3 * main.seconds / main.passes,
        "efficiency": ideal / main.seconds,
        "efficiency_by_segment": Spread.of(efficiencies),
        "occupancy": main.occupancy,
        "tokens_per_s": {name: course.tokens_per_s for name, course in courses.items()},
        "occupancy_lockstep": courses["lockstep"].occupancy,
        "over_lockstep": main.tokens_per_s / courses["lockstep"].tokens_per_s,
        "over_fixed": main.tokens_per_s / courses["fixed"].tokens_per_s,
        "possible_over_lockstep": courses["lockstep"].passes / courses["lockstep"].tokens / (main.passes / main.tokens),
    }


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    return {
        "depths": row["trace"],
        "mean": row["mean_depth"],
        "batch": row["batch"],
        "passes": row["passes"],
        "pass ms": row["pass_ms"],
        "full pass ms": f"{row['full_pass_ms']:.2f}",
        "of the ideal": f"{row['efficiency']:.3f} ({row['efficiency_by_segment'].low:.3f} to "
        f"{row['efficiency_by_segment'].high:.3f})",
        "occupancy": row["occupancy"],
        "t/s": row["tokens_per_s"]["continuous"],
        "t/s lockstep": row["tokens_per_s"]["lockstep"],
        "t/s fixed depth": row["tokens_per_s"]["fixed"],
        "over lockstep": row["over_lockstep"],
        "over fixed depth": row["over_fixed"],
    }


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """What the project asks of itself."""
    found = []
    for row in rows:
        found.append(Check(f"{row['trace']}: share of the ideal", row["efficiency"], EFFICIENCY))
        found.append(Check(f"{row['trace']}: occupancy", row["occupancy"], OCCUPANCY))
        found.append(Check(f"{row['trace']}: speed over fixed depth", row["over_fixed"], 1.0))
    return found


def page(report: dict[str, Any]) -> str:
    """schedule.md."""
    parts = [
        results.head("Schedule: depth-continuous batching", report),
        f"{report['backlog']} requests of 1 prompt token and {report['lengths'][0]} to {report['lengths'][1]} new ones "
        f"(uniform), mean context {report['rows'][0]['mean_context']:.0f}. Depths are independent, P(k) proportional to "
        f"q^k; seed {SEED}.",
        results.table([shown(row) for row in report["rows"]]),
        "of the ideal: rows / batch x full pass over the time that it took, in brackets by segments of about a second. "
        "lockstep: every token waits for the deepest of its batch. fixed depth: every token runs the greatest depth, "
        "continuously.",
        "\n".join(
            f"- {row['trace']}: P = {', '.join(f'{share:.3f}' for share in row['shares'])}; passes allow "
            f"{row['possible_over_lockstep']:.2f} x over lockstep"
            for row in report["rows"]
        ),
        results.checks_table(report["checks"]),
    ]
    return "\n\n".join(parts)


def parse_trace(text: str, most: int) -> Trace:
    """`2:6` as a trace. Errors: InputError."""
    mean, _, deepest = text.partition(":")
    try:
        trace = Trace(float(mean), int(deepest))
    except ValueError:
        raise InputError(f"--trace is {text!r}; give a mean and the most with a colon between, such as 2:6") from None
    if not 1 < trace.most <= most or not 1 < trace.mean < trace.most:
        raise InputError(f"--trace {text} needs 1 < mean < most <= {most}, the most steps of this model; give another")
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trace", dest="traces", action="append", help="MEAN:MOST, may repeat; default 2:6 and 3.4:4")
    parser.add_argument("-b", dest="batch", type=int, default=16)
    parser.add_argument("--backlog", type=int, default=128, help="requests, at least 8 x the batch")
    parser.add_argument("--lengths", default="16:112", help="least and most new tokens of a request")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", dest="out", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    try:
        run(given)
    except LatentCoTError as error:
        results.refuse(error)


def run(given: argparse.Namespace) -> None:
    """Measures and publishes."""
    low, _, high = given.lengths.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise InputError(f"--lengths is {given.lengths!r}; give least and most with a colon between, such as 16:112")
    given.lengths = (int(low), int(high))
    if given.batch < 1 or given.threads < 1 or given.backlog < 2 * given.batch:
        raise InputError("-b and --threads are at least 1, --backlog is at least twice the batch; give larger numbers")
    bundle = open_bundle(given.bundle)
    if bundle.manifest.target != "ort":
        raise InputError(f"{bundle.folder} has the target {bundle.manifest.target}; export it with --target ort")
    most = bundle.manifest.recurrence.max_steps
    # the usual ones only as far as this model is deep
    usual = [text for text in DEFAULT_TRACES if int(text.partition(":")[2]) <= most]
    traces = [parse_trace(text, most) for text in given.traces or usual]
    if not traces:
        raise InputError(f"this model runs {most} steps, too few for the usual traces; give --trace MEAN:MOST")
    session = NativeSession(bundle, given.threads)
    report = results.begin(given.threads)
    report |= {
        "bundle": bundle.folder.resolve().name,
        "quantize": bundle.manifest.quantize,
        "backlog": given.backlog,
        "lengths": given.lengths,
        "rows": [compare(session, trace, given) for trace in traces],
    }
    report["checks"] = checks(report["rows"])
    results.publish("schedule", given.out, report, page(report))


if __name__ == "__main__":
    main()
