"""Random checkpoints, small and well scaled, whose tokens halt at different depths: for tests and for measuring."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import torch

from latentcot_export.checkpoint.families import family_of, find_family
from latentcot_export.checkpoint.read import Checkpoint, read_checkpoint
from latentcot_export.checkpoint.shapes import EMBEDDING, HEAD, tensor_shapes
from latentcot_export.checkpoint.write import write_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.spec import DTYPE_BYTES, ModelSpec, RecurrenceSpec

# The gate's logit is N(mean, GATE_SPREAD^2) over tokens, wide enough to cross thresholds from 1e-4 to 0.3 both ways.
GATE_SPREAD = 8.0
# P(N(0, 1) <= -0.43) is one third: the share of tokens that halt after step 1.
_HALTING_THIRD = 0.43
_NORM = re.compile(r"norm(_2)?\.weight$")
_LAST_OF_ROUTER = re.compile(r"router(\.\d+)?(\.out)?\.(weight|bias)")


def random_tensors(
    model: ModelSpec,
    recurrence: RecurrenceSpec,
    seed: int,
    dtype: torch.dtype | str = torch.float32,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Every tensor of `tensor_shapes(model, recurrence)`, in its order, drawn from `seed`.

    Linear weights have variance 1/fan-in, norms are near 1, biases near 0. The router is centred so that, for tau
    between 0 and 1, about a third of tokens halt after step 1 and every depth occurs; `scale` multiplies the spread of
    the gate's logit.
    The same seed gives the same values, rounded, in every dtype. Errors: InputError for another dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = _dtype(dtype)
    # At tau 0 and from 1 on no router makes depths differ; centred on 0, the product of gates stays far from underflow.
    tau = recurrence.halt_threshold if 1e-6 <= recurrence.halt_threshold <= 1.0 - 1e-6 else 0.5
    threshold_logit = math.log(tau / (1.0 - tau))
    spread = GATE_SPREAD * scale
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(model, recurrence).items():
        values = torch.randn(shape, generator=generator, dtype=torch.float32)
        last_router_layer = _LAST_OF_ROUTER.fullmatch(name) is not None
        if last_router_layer and name.endswith(".weight"):
            values *= spread / math.sqrt(shape[-1])
        elif last_router_layer:
            values = torch.full(shape, threshold_logit + _HALTING_THIRD * spread)
        elif _NORM.search(name):
            values = 1.0 + 0.1 * values
        elif name.endswith(".bias"):
            values *= 0.1
        elif name == EMBEDDING and not model.tie_word_embeddings:
            pass  # unit variance, like a state after the final norm
        else:
            # Twice the usual scale for the head keeps the best logit apart from the second.
            values *= (2.0 if name in (EMBEDDING, HEAD) else 1.0) / math.sqrt(shape[-1])
        tensors[name] = values.to(kept)
    return tensors


def write_random_checkpoint(
    folder: str | os.PathLike[str],
    model: ModelSpec,
    recurrence: RecurrenceSpec,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    *,
    scale: float = 1.0,
    family: str | None = None,
    extra_config: dict[str, Any] | None = None,
    extra_files: dict[str, bytes] | None = None,
    force: bool = False,
) -> Checkpoint:
    """Write `random_tensors` and a config.json in the newer spelling to `folder`, and read it back.

    The tensors are laid out as `family` publishes them, by default the first that can say both specs (`family_of`). No
    `eos_token_id` is written unless `extra_config` has one. Errors: InputError.
    """
    name = str(_dtype(dtype)).removeprefix("torch.")
    where = "write_random_checkpoint"
    handler = family_of(model, recurrence) if family is None else find_family(family, where)
    config = handler.config(model, recurrence)
    tensors = random_tensors(model, recurrence, seed, dtype, scale)
    write_checkpoint(folder, {**config, "dtype": name, **(extra_config or {})}, tensors, extra_files, force)
    return read_checkpoint(folder)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise InputError(f"dtype is {name}, it must be one of {', '.join(DTYPE_BYTES)}; give one of these")
    found: torch.dtype = getattr(torch, name)
    return found
