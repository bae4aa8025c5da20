"""`latentcot validate`: holds a bundle against the PyTorch model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import typer

from latentcot_export.errors import CheckFailed, InputError

EXAMPLE = """\
Examples:
  latentcot validate build/latentcot-tiny --level full
  latentcot validate build/my-model --against my-model --text book.txt -o json
"""


def validate(
    bundle: str = typer.Argument(..., metavar="BUNDLE", help="Bundle folder."),
    against: str | None = typer.Option(
        None, metavar="CHECKPOINT", help="Take the truth from this checkpoint, not from the bundle's own weights."
    ),
    text: str | None = typer.Option(None, metavar="FILE", help="Read this UTF-8 text; default: heldout.txt, if any."),
    tokens: int | None = typer.Option(None, metavar="N", help="Tokens to read; default: 512, or 2048 at level full."),
    level: str = typer.Option("quick", metavar="quick|full", help="quick takes seconds, full checks every invariant."),
    device: str = typer.Option("cpu", metavar="cpu|cuda", help="What runs it; cuda: targets ort, tensorrt."),
    form: str = typer.Option("table", "-o", "--output", metavar="table|md|csv|json|jsonl", help="Format on stdout."),
) -> None:
    """Hold a bundle against the float64 oracle: depths, best logits, greedy tokens, logits, perplexity, invariants.

    Also writes its validation.json. The exit status is 1 when a gate failed.
    """
    from latentcot_export.bundle import open_bundle
    from latentcot_export.tables import check_format
    from latentcot_export.validate import validate as run_gates  # imports torch

    check_format(form)
    with _bar() as progress:
        if progress is not None:
            progress("verifying the bundle", 0, 1)
        opened = open_bundle(bundle)
        report = run_gates(opened, against, text, tokens, level, progress, device)
    print(report.text(form), end="", flush=True)
    try:
        report.save(opened)
    except InputError as error:  # a read-only bundle can be validated too
        print(f"note: {error}", file=sys.stderr)
    failure = report.failure()
    if failure is not None:
        raise CheckFailed(failure)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar of the present stage on standard error when that is a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
