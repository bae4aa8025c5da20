"""`latentcot export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import typer

from latentcot_cli.terminal import stages
from latentcot_export.errors import InputError

EXAMPLE = """\
Examples:
  latentcot export examples/checkpoints/latentcot-tiny build/latentcot-tiny
  latentcot export my-model build/my-model --dtype float16 --max-seq-len 4096
"""


def export(
    checkpoint: str = typer.Argument(..., metavar="CHECKPOINT", help="Folder with config.json and safetensors."),
    bundle: str = typer.Argument(..., metavar="BUNDLE", help="Folder to write."),
    target: str = typer.Option("onnx", metavar="NAME", help="onnx: standard operators, runs anywhere; others later."),
    dtype: str = typer.Option("float32", metavar="NAME", help="Of weights, cache and products: float32 or float16."),
    quantize: str = typer.Option("none", metavar="NAME", help="none; int8 and int4 later."),
    max_seq_len: int | None = typer.Option(None, metavar="N", help="Longest sequence; default: the checkpoint's own."),
    max_batch: int = typer.Option(64, metavar="N", help="Most sequences at once."),
    cache_slots: int | None = typer.Option(None, metavar="N", help="Slots of a fixed cache: target ort, later."),
    opset: int = typer.Option(24, metavar="N", help="20 to 24; 20 is the decomposed form that older parsers take."),
    family: str | None = typer.Option(None, metavar="NAME", help="Read it as this model_type, not config.json's."),
    no_validate: bool = typer.Option(False, "--no-validate", help="Skip the quick validation.", show_default=False),
    force: bool = typer.Option(False, "--force", help="Replace an older bundle.", show_default=False),
) -> None:
    """Write a bundle of a checkpoint, ending with a quick validation; an older bundle stays until that has passed."""
    if quantize != "none":
        raise InputError(f"--quantize {quantize} is not in this version, which writes none; leave it out")
    if target == "onnx" and cache_slots is not None:
        raise InputError("--cache-slots is for the target ort, the cache of onnx grows by itself; leave it out")
    with stages() as progress:
        progress("importing the exporter")
        from latentcot_export.export import export as write  # imports torch
        from latentcot_export.inspection import summary

        written = write(
            checkpoint,
            bundle,
            target=target,
            dtype=dtype,
            opset=opset,
            max_seq_len=max_seq_len,
            max_batch=max_batch,
            family=family,
            validate=not no_validate,
            force=force,
            progress=progress,
        )
    print(summary(written), end="")
