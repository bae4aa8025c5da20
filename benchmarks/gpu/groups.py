"""Parts in processes of their own, some together: one that crashes or hangs leaves the figures of the others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from gpu.report import NAME, Report
from gpu.session import finished

RUN = Path(__file__).with_name("run.py")
Group = tuple[tuple[str, ...], float]
# What is needed first stands first, so that a total that is too short cuts off the end. Seconds until a group is ended;
# guesses, none of them was measured: what parts took is in the report.
GROUPS: tuple[Group, ...] = (
    (("states", "contexts", "rows"), 90.0),
    (("tokens", "baselines"), 60.0),
    (("attention", "pass/1.4B", "waits"), 70.0),
    (("versus/1.4B/3",), 110.0),
    (("continuous",), 60.0),
    (("memcheck",), 150.0),
    (("racecheck",), 150.0),
    (("versus/1.4B/5",), 90.0),
    (("pass/410M", "versus/410M/3", "versus/410M/5"), 140.0),
)
LEAST = 0.5  # of its seconds, with which a group may still begin: its parts are published one by one


def supervise(
    report: Report,
    folder: Path,
    ends: float,
    words: Sequence[str] = (),
    skip: Collection[str] = (),
    groups: Sequence[Group] = GROUPS,
    script: Path = RUN,
) -> Report:
    """Runs the groups one after another, each with `words`; the report with what all of them have found.

    `ends`: of time.monotonic. The report in the folder is whole at any time: each process adds to it after every part.
    """
    report.publish(folder)
    for names, limit in groups:
        names = tuple(name for name in names if name not in skip)
        if not names:
            continue
        left = ends - time.monotonic()
        if left < LEAST * limit:
            told = f"left out, {max(0.0, left):.0f} s were left"
            print(f"{', '.join(names)}: {told}", file=sys.stderr)
            for name in names:
                report.leave_out(name, told)
            report.publish(folder)
            continue
        for name in names:  # of an earlier run: a process that dies at once must not leave them as if it had measured
            report.begin(name)
        report.publish(folder)
        seconds = min(limit, left)
        given = ["--within", "--only", ",".join(names), "--minutes", str(seconds / 60), "-o", str(folder)]
        given += ["--seed", str(report.head["seed"]), *words]
        status = finished([sys.executable, str(script), *given], seconds, stdout=subprocess.DEVNULL)
        report = Report.read(folder / NAME)
        for name in names:
            if name not in report.parts and name not in report.details.get("left_out", {}):
                report.fail(name, _ending(status, seconds))
                print(f"{name}: {report.details['errors'][name]}", file=sys.stderr)
        report.publish(folder)
    return report


def _ending(status: int | None, seconds: float) -> str:
    if status is None:
        return f"not done when its process was ended after {seconds:.0f} s"
    if status < 0:
        return f"its process was ended by signal {-status}"
    return f"its process ended with status {status} before it was done, see what it printed"
