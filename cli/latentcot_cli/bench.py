"""`latentcot bench`: measures a bundle, beside the eager oracle and transformers where asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import typer

from latentcot_export.errors import InputError

EXAMPLE = """\
Examples:
  latentcot bench build/latentcot-tiny -p 128 -n 64 -b 1,8,16 --baseline torch -o md
  latentcot bench build/latentcot-tiny -p 0 --depth trace:depths.jsonl --schedule lockstep
"""


def bench(
    bundle: str = typer.Argument(..., metavar="BUNDLE", help="Bundle folder."),
    prompt: int = typer.Option(128, "-p", metavar="P", help="Tokens of a prompt; 0 skips the prompt test."),
    new: int = typer.Option(64, "-n", metavar="N", help="Tokens to generate; 0 skips the generation test."),
    batches: str = typer.Option("1,8,16", "-b", metavar="B,B", help="Batch sizes."),
    depth: str = typer.Option("learned", metavar="learned|fixed:K|trace:FILE", help="A trace is one list per line."),
    schedule: str = typer.Option("continuous", metavar="continuous|lockstep", help="When a new token may start."),
    baseline: str = typer.Option(
        "", metavar="torch,torch-lockstep,transformers", help="Measure these too, in turns with the bundle."
    ),
    runs: int = typer.Option(5, "-r", metavar="R", help="Timed runs of each test."),
    warmup: int = typer.Option(1, "-w", metavar="W", help="Runs before them that are not counted."),
    threads: int = typer.Option(0, metavar="T", help="Threads of every engine; 0: OMP_NUM_THREADS, or all cores."),
    device: str = typer.Option(
        "cpu", metavar="cpu|cuda", help="What runs it; cuda: targets ort, tensorrt, tensorrt-rtx."
    ),
    form: str = typer.Option("table", "-o", "--output", metavar="table|md|csv|json|jsonl", help="Format on stdout."),
) -> None:
    """Measure tokens per second, latencies, occupancy and memory; greedy, and no token stops a run.

    Also writes the bundle's bench.json.
    """
    from latentcot_export import bench as library
    from latentcot_export.bundle import open_bundle, write_report
    from latentcot_export.tables import check_format

    check_format(form)
    settings = library.Settings(
        prompt=prompt,
        new=new,
        batches=library.parse_batches(batches),
        depth=depth,
        schedule=schedule,
        baselines=library.parse_baselines(baseline),
        runs=runs,
        warmup=warmup,
        threads=threads,
        device=device,
    )
    opened = open_bundle(bundle)
    with _bar() as progress:
        report = library.bench(opened, settings, progress)
    print(library.text_of(report, form), end="", flush=True)
    print("\n".join(library.summary(report)), file=sys.stderr)
    try:
        write_report(opened, "bench.json", report)
    except InputError as error:  # a read-only bundle can be measured too
        print(f"note: {error}", file=sys.stderr)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, on a terminal only; drawn between runs, else a thread that draws would be measured."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, refresh=True)
