"""`latentcot init`: a stock Llama checkpoint becomes an adaptive one that computes exactly what it did, at depth 1."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from latentcot_export.checkpoint.families import family_of
from latentcot_export.checkpoint.files import companion_files
from latentcot_export.checkpoint.read import Checkpoint, read_checkpoint
from latentcot_export.checkpoint.thinking_shapes import router_shapes
from latentcot_export.checkpoint.write import write_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.spec import RecurrenceSpec, SpecError

# sigmoid(-20) is 2.1e-9: far below any threshold in use (sister papers: 1e-4), exact in float16 and bfloat16.
HALTING_BIAS = -20.0
# Twice the largest gate that the bias can give, so that rounding never lets a token go on.
MIN_HALT_THRESHOLD = 2.0 / (1.0 + math.exp(-HALTING_BIAS))


def init_checkpoint(
    base_folder: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    max_latents: int,
    *,
    router_type: str = "linear",
    router_hidden_size: int | None = None,
    router_shared: bool = True,
    halt_threshold: float = 1e-4,
    embedding_scale: float = 1.0,
    force: bool = False,
) -> Path:
    """Write an adaptive checkpoint of a stock Llama one; returns `out_folder`.

    The router's last layer is zero with bias -20, so the gate is sigmoid(-20) = 2.1e-9 <= tau for every token: all
    halt after step 1 and, with `embedding_scale` 1, logits equal the base's. Training must first raise the bias. An
    mlp's first layer is random (seeded), else no gradient would ever reach it. Weights keep their dtype, the router
    takes the base's main one; tokenizer files, generation_config.json and heldout.txt are copied.
    Errors: InputError; `halt_threshold` must exceed 4.2e-9, and `out_folder` may exist only with `force`.
    """
    base = read_checkpoint(base_folder)
    if base.recurrence != RecurrenceSpec(max_latents=0):
        raise InputError(f"{base.folder} holds a checkpoint of {base.family}; `latentcot init` starts from a stock one")
    _check_apart(base.folder, Path(out_folder))
    try:
        recurrence = RecurrenceSpec(
            max_latents=max_latents,
            halt_threshold=halt_threshold,
            router_type=router_type,
            router_hidden_size=router_hidden_size,
            router_shared=router_shared,
            embedding_scale=embedding_scale,
        )
    except SpecError as error:
        raise InputError(f"{error}; give another value") from None
    if not halt_threshold > MIN_HALT_THRESHOLD:
        raise InputError(
            f"halt_threshold is {halt_threshold:g}, the untrained router halts at once only above "
            f"{MIN_HALT_THRESHOLD:.1e}; give a larger one"
        )
    try:
        ours = family_of(base.model, recurrence).config(base.model, recurrence)
    except InputError:
        raise InputError(
            f"{base.folder} holds a checkpoint of {base.family}, to whose layer stack no family adds a router; "
            "`latentcot init` starts from a stock Llama one"
        ) from None
    added = {key: ours[key] for key in ("model_type", *RecurrenceSpec.__dataclass_fields__) if key in ours}
    # These two name classes to load the folder with; none of them would know the router.
    kept = {key: value for key, value in base.config.items() if key not in ("architectures", "auto_map")}
    tensors = base.tensors | halting_router(base, recurrence)
    extras: dict[str, bytes] = {}
    for name, path in companion_files(base.folder).items():
        try:
            extras[name] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    return write_checkpoint(out_folder, kept | added, tensors, extras, force)


def halting_router(base: Checkpoint, recurrence: RecurrenceSpec) -> dict[str, torch.Tensor]:
    """Router tensors whose gate is sigmoid(HALTING_BIAS) for every input, in the base's main dtype."""
    dtype: torch.dtype = getattr(torch, base.dtype)
    generator = torch.Generator().manual_seed(0)
    router: dict[str, torch.Tensor] = {}
    for name, shape in router_shapes(base.model, recurrence).items():
        if name.endswith(".in.weight"):
            router[name] = (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype)
        else:
            last_bias = name.endswith(".bias") and not name.endswith(".in.bias")
            router[name] = torch.full(shape, HALTING_BIAS if last_bias else 0.0, dtype=dtype)
    return router


def _check_apart(base: Path, out: Path) -> None:
    """Replacing the base, or a folder around it, would delete what is being read."""
    try:
        source, place = base.resolve(), Path(os.path.abspath(out)).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        raise InputError(f"{out} is not usable as a folder; give another name") from None
    if place == source or place in source.parents:
        raise InputError(f"{out} is the base checkpoint or holds it; give another folder")
