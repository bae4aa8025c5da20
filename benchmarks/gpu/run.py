"""The CUDA kernels on a GPU, in one call of under ten minutes: correctness first, then figures, a short table last.

    python benchmarks/gpu/run.py [--minutes 9] [--only states,attention] [-o FOLDER]
    python benchmarks/gpu/run.py --emulate        the same code with tiny sizes on the CPU; its times mean nothing
    python benchmarks/gpu/run.py --table-only     the table with nothing in it

Writes gpu.json and gpu.md to FOLDER, by default $OUT, else benchmarks/results. Status 1: a comparison failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # where this runs, nothing of ours may be installed

from common import results  # noqa: E402

from gpu import table  # noqa: E402
from latentcot_export.errors import InputError, LatentCoTError  # noqa: E402


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--emulate", action="store_true", help="on the CPU, tiny sizes")
    parser.add_argument("--table-only", action="store_true", help="write the table with every cell not measured")
    parser.add_argument("--small", action="store_true", help="few comparisons")
    parser.add_argument("--unpublished", action="store_true", help="write no files")
    parser.add_argument("--only", default="", help="parts, with commas between")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    parser.add_argument("--seed", type=int, default=None, help="of all random states; default: a new one")
    parser.add_argument("-o", dest="out", type=Path, default=Path(os.environ.get("OUT") or results.RESULTS))
    return parser.parse_args(words)


def check_device(emulate: bool) -> None:
    """Errors: InputError without a GPU that PyTorch can use."""
    import torch

    if not emulate and not torch.cuda.is_available():
        raise InputError(
            f"PyTorch {torch.__version__} finds no CUDA device; run this where there is one, or with --emulate on the CPU"
        )


def gpu_words(emulate: bool) -> str:
    import torch

    if emulate:
        return "The emulation of CUDA on the CPU, tiny sizes; the times of this page mean nothing"
    told: Any = torch.cuda.get_device_properties(0)
    memory = told.total_memory / 2**30
    return f"{told.name}, {told.multi_processor_count} multiprocessors, {memory:.0f} GiB, CUDA {torch.version.cuda}"


def run(given: argparse.Namespace) -> int:
    """Measures and publishes; the status."""
    if given.table_only:
        given.out.mkdir(parents=True, exist_ok=True)
        report = {"schema_version": 1, "checks": table.checks({}, {})}
        results.publish("gpu", given.out, report, table.page(report, {}, {}))
        return 0
    check_device(given.emulate)
    from gpu import parts

    names = [name for name, _, _ in parts.PARTS]
    only = {name for name in given.only.split(",") if name}
    for name in only.difference(names):
        raise InputError(f"--only names {name!r}, the parts are {', '.join(names)}; give some of these")
    if not 0 < given.minutes < 1e6:
        raise InputError(f"--minutes is {given.minutes:g}, it must be above 0; give 9 to stay below ten minutes")
    seed = int.from_bytes(os.urandom(3)) if given.seed is None else given.seed
    made = parts.Run(given.emulate, given.small, given.minutes, seed)
    report = results.begin(os.cpu_count() or 1)
    report["command"] = report["command"].replace("benchmarks/run.py", "benchmarks/gpu/run.py")
    report |= {"gpu": gpu_words(given.emulate), "seed": seed, "emulated": given.emulate}
    try:
        parts.take(made, only)
    finally:
        made.build.close()
    figures = sorted(made.measured) if given.emulate else made.measured
    details = {name: made.details[name] for name in ("errors",) if name in made.details}
    report |= {"lines": made.lines, "figures": figures, "details": details if given.emulate else made.details}
    report["checks"] = table.checks(made.lines, {} if given.emulate else made.measured)
    page = table.page(report, made.lines, made.measured)
    failed = sum(table.failures(made.lines, group.key) or 0 for group in table.GROUPS)
    if given.unpublished:
        print(page)
    else:
        results.publish("gpu", given.out, report, page)
    return 1 if failed or made.details.get("errors") else 0


def main() -> None:
    given = parsed()
    # figures of the emulation are none: they go where somebody asks for them, and never among the published ones
    if given.emulate and given.out.resolve() == results.RESULTS.resolve():
        given.unpublished = True
    try:
        sys.exit(run(given))
    except LatentCoTError as error:
        results.refuse(error)


if __name__ == "__main__":
    main()
