"""`latentcot init`: a stock Llama checkpoint becomes an adaptive one that halts at once."""

from __future__ import annotations

import typer

from latentcot_cli.terminal import stages

EXAMPLE = """\
Example:
  latentcot init my-model my-adaptive-model --max-latents 4
"""


def init(
    base: str = typer.Argument(..., metavar="BASE", help="Folder of a stock Llama checkpoint."),
    checkpoint: str = typer.Argument(..., metavar="CHECKPOINT", help="Folder to write."),
    max_latents: int = typer.Option(..., metavar="K", help="Most latent thoughts of a token."),
    router_type: str = typer.Option("linear", metavar="NAME", help="linear or mlp."),
    router_hidden_size: int | None = typer.Option(None, metavar="N", help="Width of an mlp router."),
    per_step_routers: bool = typer.Option(False, "--per-step-routers", help="One router a step.", show_default=False),
    halt_threshold: float = typer.Option(1e-4, metavar="TAU", help="Halt when the chance to go on is TAU or less."),
    embedding_scale: float = typer.Option(1.0, metavar="X", help="Factor on the embedding that step 1 reads."),
    force: bool = typer.Option(False, "--force", help="Replace an older checkpoint.", show_default=False),
) -> None:
    """Make an adaptive checkpoint of a stock Llama one: same logits, every token halts after step 1, ready to train."""
    with stages() as progress:
        progress("importing torch")
        from latentcot_export.checkpoint import init_checkpoint

        progress("reading, checking and writing the weights")
        written = init_checkpoint(
            base,
            checkpoint,
            max_latents,
            router_type=router_type,
            router_hidden_size=router_hidden_size,
            router_shared=not per_step_routers,
            halt_threshold=halt_threshold,
            embedding_scale=embedding_scale,
            force=force,
        )
    print(f"wrote {written}: up to {max_latents + 1} steps a token, each halts after the first until trained")
