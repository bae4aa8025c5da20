"""The CUDA kernels on a GPU, in one call of under ten minutes: correctness first, then figures, a short table last.

    python benchmarks/gpu/run.py [--minutes 9] [--skip memcheck,racecheck] [-o FOLDER]
    python benchmarks/gpu/run.py --only memcheck,racecheck [--merge gpu.json]      some parts, in one process
    python benchmarks/gpu/run.py --emulate        the same code with tiny sizes on the CPU; its times mean nothing
    python benchmarks/gpu/run.py --build-only     the library alone, where there is a compiler and no GPU
    python benchmarks/gpu/run.py --table-only     the table with nothing in it

Writes gpu.json and gpu.md to FOLDER, by default $OUT, else benchmarks/results, after every part. Status 1: a comparison
failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where this runs, nothing of ours may be installed. The scripts' own folder goes: it has a `trace`, as Python has.
sys.path[:1] = [str(ROOT), str(ROOT / "benchmarks")]

from common import results  # noqa: E402

from gpu import library, report, table  # noqa: E402
from gpu.report import Report  # noqa: E402
from latentcot_export.errors import InputError, LatentCoTError  # noqa: E402


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--emulate", action="store_true", help="on the CPU, tiny sizes")
    parser.add_argument("--table-only", action="store_true", help="write the table with every cell not measured")
    parser.add_argument("--build-only", action="store_true", help="build the library and print where it lies")
    parser.add_argument("--small", action="store_true", help="few comparisons")
    parser.add_argument("--unpublished", action="store_true", help="write no files")
    parser.add_argument("--only", default="", help="parts, with commas between; they run in one process")
    parser.add_argument("--skip", default="", help="parts to leave out, with commas between")
    parser.add_argument("--merge", type=Path, default=None, help="gpu.json of an earlier call to add to, with its seed")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing begins")
    parser.add_argument("--seed", type=int, default=None, help="of all random states; default: a new one")
    parser.add_argument(
        "-o",
        dest="out",
        type=Path,
        default=Path(os.environ.get("OUT") or results.RESULTS),
        help="folder of the results",
    )
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)  # a group: adds to what lies in -o
    return parser.parse_args(words)


def check_device(emulate: bool) -> None:
    """Errors: InputError without a GPU that PyTorch can use."""
    import torch

    if not emulate and not torch.cuda.is_available():
        raise InputError(
            f"PyTorch {torch.__version__} finds no CUDA device; run this where there is one, or with --emulate on the CPU"
        )


def named(given: argparse.Namespace, option: str) -> set[str]:
    """The parts that an option names. Errors: InputError."""
    from gpu import parts

    names = [name for name, _, _ in parts.PARTS]
    found = {name for name in getattr(given, option).split(",") if name}
    for name in sorted(found.difference(names)):
        raise InputError(f"--{option} names {name!r}, the parts are {', '.join(names)}; give some of these")
    return found


def begun(given: argparse.Namespace) -> Report:
    """The report to add to: a new one or, where it is of the same seed, kernels and machine, that of an earlier call."""
    if given.within:
        return Report.read(given.out / report.NAME)
    earlier = None if given.merge is None else Report.read(given.merge)
    seed = given.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(3)) if earlier is None else earlier.head["seed"]
    new = Report.new(seed, given.emulate)
    if earlier is None:
        return new
    why = earlier.other(new)
    if not why:
        earlier.head["command"] += f" && {new.head['command']}"
        return earlier
    if given.merge.resolve() == (given.out / report.NAME).resolve():
        raise InputError(f"--merge names a report of another run ({why}); leave it out, or give another folder with -o")
    # what is measured now is not lost for it
    print(f"{given.merge} is of another run and stays alone: {why}", file=sys.stderr)
    return new


def run(given: argparse.Namespace) -> int:
    """Measures and publishes; the status."""
    if given.table_only:
        told = {"schema_version": 1, "checks": table.checks({}, {})}
        results.publish("gpu", given.out, told, table.page(told, {}, {}))
        return 0
    if given.build_only:
        with contextlib.closing(library.Build(given.emulate)) as build:
            build.library()
        print(build.path.relative_to(ROOT))
        return 0
    check_device(given.emulate)
    from gpu import groups, parts, sanitizer

    only, skip = named(given, "only"), named(given, "skip")
    if not 0 < given.minutes < 1e6:
        raise InputError(f"--minutes is {given.minutes:g}, it must be above 0; give 9 to stay below ten minutes")
    ends = time.monotonic() + 60 * given.minutes
    made = begun(given)
    if only:
        folder = None if given.unpublished else given.out
        course = parts.Run(made, given.emulate, given.small, ends, folder)
        try:
            parts.take(course, only - skip)
        finally:
            course.build.close()
    else:
        with contextlib.closing(library.Build(given.emulate)) as build:
            build.library()  # once, before processes that would all wait for it
        made.details["build_seconds"] = build.seconds
        words = [f"--{name}" for name in ("emulate", "small") if getattr(given, name)]
        if given.emulate:
            skip |= set(sanitizer.TOOLS)
        with contextlib.ExitStack() as stack:
            folder = given.out
            if given.unpublished:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = groups.supervise(made, folder, ends, words, skip)
    if not given.within:
        print(made.page())
    return made.status


def main() -> None:
    given = parsed()
    # figures of the emulation are none: they go where somebody asks for them, and never among the published ones
    if given.emulate and given.out.resolve() == results.RESULTS.resolve():
        given.unpublished = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes of other sessions end with this one
    try:
        sys.exit(run(given))
    except LatentCoTError as error:
        results.refuse(error)


if __name__ == "__main__":
    main()
