"""`latentcot export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import typer

from latentcot_cli.terminal import stages

EXAMPLE = """\
Examples:
  latentcot export examples/checkpoints/latentcot-tiny build/latentcot-tiny
  latentcot export my-model build/my-model --dtype float16 --max-seq-len 4096
  latentcot export my-model build/my-model-int8 --target ort --quantize int8
  latentcot export my-model build/my-model-gpu --target ort --dtype bfloat16
"""


def export(
    checkpoint: str = typer.Argument(..., metavar="CHECKPOINT", help="Folder with config.json and safetensors."),
    bundle: str = typer.Argument(..., metavar="BUNDLE", help="Folder to write."),
    target: str = typer.Option(
        "onnx",
        metavar="NAME",
        help="onnx: standard operators; ort: own ones, faster; tensorrt: plugins; tensorrt-rtx: an engine as well.",
    ),
    dtype: str = typer.Option(
        "float32", metavar="NAME", help="Of weights and products: float32, float16; ort, tensorrt: also bfloat16."
    ),
    quantize: str = typer.Option("none", metavar="NAME", help="Matrices of target ort: none, int8 or int4."),
    max_seq_len: int | None = typer.Option(None, metavar="N", help="Longest sequence; default: the checkpoint's own."),
    max_batch: int = typer.Option(64, metavar="N", help="Most sequences at once."),
    cache_dtype: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Cache of target ort: float32, float16 or bfloat16; default: as --dtype, float16 for int8, int4 in float32.",
    ),
    cache_slots: int | None = typer.Option(
        None, metavar="N", help="Size of the cache of target ort: executed (token, step) pairs of all sequences."
    ),
    prefill: str = typer.Option(
        "exact", metavar="HOW", help="Prompts of PonderLM-2 on target ort: exact, or jacobi:R, refined in parallel."
    ),
    opset: int | None = typer.Option(
        None,
        metavar="N",
        help="20 to 24; default: 24, tensorrt, tensorrt-rtx: 20, which older parsers take.",
    ),
    family: str | None = typer.Option(None, metavar="NAME", help="Read it as this family, not as the one recognised."),
    no_validate: bool = typer.Option(False, "--no-validate", help="Skip the quick validation.", show_default=False),
    force: bool = typer.Option(False, "--force", help="Replace an older bundle.", show_default=False),
) -> None:
    """Write a bundle of a checkpoint, ending with a quick validation; an older bundle stays until that has passed."""
    with stages() as progress:
        progress("importing the exporter")
        from latentcot_export.export import export as write  # imports torch
        from latentcot_export.inspection import summary

        written = write(
            checkpoint,
            bundle,
            target=target,
            dtype=dtype,
            quantize=quantize,
            opset=opset,
            max_seq_len=max_seq_len,
            max_batch=max_batch,
            cache_dtype=cache_dtype,
            cache_slots=cache_slots,
            prefill=prefill,
            family=family,
            validate=not no_validate,
            force=force,
            progress=progress,
        )
    print(summary(written), end="")
