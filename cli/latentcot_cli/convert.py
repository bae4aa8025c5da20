"""`latentcot convert`: a decider that was published as a pickle becomes safetensors."""

from __future__ import annotations

import typer

from latentcot_cli.terminal import stages

EXAMPLE = """\
Examples:
  latentcot convert TaH-plus-1.7B
  latentcot convert TaH-plus-1.7B -o elsewhere
"""


def convert(
    checkpoint: str = typer.Argument(..., metavar="CHECKPOINT", help="Folder that holds iter_decider.bin."),
    out: str | None = typer.Option(None, "-o", "--out", metavar="FOLDER", help="Write there instead of beside it."),
    force: bool = typer.Option(False, "--force", help="Replace an older file.", show_default=False),
) -> None:
    """Turn the pickle iter_decider.bin into iter_decider.safetensors, running nothing of it; no other verb opens one."""
    with stages() as progress:
        progress("importing torch")
        from latentcot_export.checkpoint import convert_decider

        progress("reading, checking and writing the decider")
        written = convert_decider(checkpoint, out, force)
    print(f"wrote {written}")
