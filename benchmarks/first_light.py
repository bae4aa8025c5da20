"""The table of the README: latentcot-tiny beside the eager oracle and transformers, and one schedule beside the other.

    python benchmarks/first_light.py [--bundle build/latentcot-tiny] [-p 128] [-n 64] [-b 1,8,16] [-r 5] [-o FOLDER]

Makes the bundle from `--checkpoint` when it is not there. Writes first_light.json and first_light.md to FOLDER
(default: benchmarks/results), with the command, versions, hardware, load and deviations. Run it on an idle machine:
the files say how loaded it was. Every ratio is of one interleaved run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from latentcot_export.bench import Settings, bench, parse_baselines, parse_batches, summary, text_of
from latentcot_export.bench.engines import BundleEngine
from latentcot_export.bench.measure import measure
from latentcot_export.bench.workload import Depths, Workload
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import LatentCoTError
from latentcot_export.strict_json import finite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def opened(folder: Path, checkpoint: Path) -> Bundle:
    if not folder.exists():
        from latentcot_export.export import export

        folder.parent.mkdir(parents=True, exist_ok=True)
        export(checkpoint, folder, progress=lambda stage: print(f"{stage} ...", file=sys.stderr))
    return open_bundle(folder)


def schedules(bundle: Bundle, settings: Settings) -> list[dict[str, Any]]:
    """Rows of the bundle under both schedules, in turns, at learned depth.

    Their peak of memory is left out: torch and the baselines of the table before are still loaded.
    """
    engines = [BundleEngine(bundle, name, settings.thread_count()) for name in ("continuous", "lockstep")]
    decoding = Settings(settings.prompt, settings.new, settings.batches, runs=settings.runs, threads=settings.threads)
    rows = measure(engines[0], lambda: engines[1:], Workload(bundle, Depths()), decoding)
    return finite([{**row, "peak_rss_mib": None} for row in rows])


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """How many times the first engine of each test is as fast as the others, out of their mean tokens per second."""
    lines = []
    for first in rows:
        for other in rows:
            same = (first["batch"], first["test"]) == (other["batch"], other["test"])
            ours = first["engine"] == "bundle" and first["schedule"] == rows[0]["schedule"]
            if same and ours and other is not first:
                label = other["engine"] if other["engine"] != "bundle" else other["schedule"]
                ratio = first["tokens_per_s"]["mean"] / other["tokens_per_s"]["mean"]
                lines.append(f"- batch {first['batch']}, {first['test']}: {ratio:.2f} x {label}")
    return lines


def page(report: dict[str, Any]) -> str:
    """first_light.md."""
    again = {**report, "rows": report["schedules"]}
    parts = [
        "# First light",
        *summary(report),
        f"{report['date']}, load before the run {report['load']}.",
        text_of(report, "md"),
    ]
    parts += ["Speed of the bundle as a multiple, each out of one interleaved run:", "\n".join(ratios(report["rows"]))]
    parts += ["## Schedules", text_of(again, "md"), "\n".join(ratios(report["schedules"]))]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "latentcot-tiny")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples" / "checkpoints" / "latentcot-tiny")
    parser.add_argument("-p", dest="prompt", type=int, default=128)
    parser.add_argument("-n", dest="new", type=int, default=64)
    parser.add_argument("-b", dest="batches", default="1,8,16")
    parser.add_argument("-r", dest="runs", type=int, default=5)
    parser.add_argument("--baseline", default="torch,transformers")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-o", dest="out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    load = [round(each, 2) for each in os.getloadavg()]
    try:
        settings = Settings(
            prompt=given.prompt,
            new=given.new,
            batches=parse_batches(given.batches),
            baselines=parse_baselines(given.baseline),
            runs=given.runs,
            threads=given.threads,
        )
        bundle = opened(given.bundle, given.checkpoint)
        report = bench(bundle, settings)
        report["schedules"] = schedules(bundle, settings)
    except LatentCoTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    report["date"] = datetime.date.today().isoformat()
    report["load"] = load
    report["bundle"] = {"digest": bundle.manifest.digest(), "built_with": bundle.manifest.built_with}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "first_light.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (given.out / "first_light.md").write_text(page(report), encoding="utf-8")
    print(page(report), end="")


if __name__ == "__main__":
    main()
