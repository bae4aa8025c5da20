"""`latentcot inspect`: what a bundle or checkpoint is and holds."""

from __future__ import annotations

import typer

from latentcot_cli.terminal import byte_bar

EXAMPLE = """\
Examples:
  latentcot inspect build/latentcot-tiny
  latentcot inspect examples/checkpoints/latentcot-tiny -o json
"""


def inspect(
    folder: str = typer.Argument(..., metavar="BUNDLE|CHECKPOINT", help="A folder, told apart by what it holds."),
    family: str | None = typer.Option(None, metavar="NAME", help="Read a checkpoint as this family."),
    form: str = typer.Option("table", "-o", "--output", metavar="table|md|csv|json|jsonl", help="Format on stdout."),
) -> None:
    """Show recurrence, sizes, cache, carried tensors, operators, files and hashes of a folder, after verifying it."""
    from latentcot_export import inspection
    from latentcot_export.tables import check_format

    check_format(form)
    with byte_bar("verifying") as progress:
        report = inspection.inspect(folder, progress, family)
    print(inspection.text_of(report, form), end="")
