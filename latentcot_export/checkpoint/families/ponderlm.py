"""`ponderlm`: PonderLM (arXiv 2505.20674, `zeng123/PonderingPythia-*`): a fixed number of rounds over the embedding.

x_1 = c * E[token], times `pondering_steps` with `mutiply_pondering_steps` [sic];
x_(k+1) = x_k + softmax(head(z_k)) @ (c * E) over the full vocabulary; logits = head(z) of step `pondering_steps` + 1.
c = sqrt(D) with `scale_embeds`, else 1. Every step reads its own plane alone. Such a checkpoint calls itself llama or
gpt_neox and adds no tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.gpt_neox import GPT_NEOX
from latentcot_export.checkpoint.families.llama import LLAMA
from latentcot_export.checkpoint.family import Family
from latentcot_export.checkpoint.keys import boolean, integer, number
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_LATENTS, FeedbackSpec, ModelSpec, RecurrenceSpec


def embedding_scales(config: Mapping[str, Any], model: ModelSpec, rounds: int, where: str) -> tuple[float, float]:
    """(what step 1 multiplies its embedding with, what the table is multiplied with in the expected embedding)."""
    scale = math.sqrt(model.hidden_size) if boolean(config, "scale_embeds", False, where) else 1.0
    return scale * (rounds if boolean(config, "mutiply_pondering_steps", False, where) else 1), scale


def scale_ways() -> Iterable[dict[str, Any]]:
    """The keys that `embedding_scales` reads, in every combination."""
    for scaled, multiplied in itertools.product((True, False), (False, True)):
        yield {"scale_embeds": scaled, "mutiply_pondering_steps": multiplied}


@family("ponderlm")
class PonderLM(Family):
    """Stock tensors of Llama or GPT-NeoX, nothing added."""

    backbones = (LLAMA, GPT_NEOX)
    marks = ("ponderinglm", "pondering_steps")

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        if not boolean(config, "ponderinglm", False, where):
            raise InputError(
                f"{where}: ponderinglm is false or missing beside pondering_steps; set it to true for a pondering model, "
                "or remove pondering_steps for a stock one"
            )
        rounds = integer(config, "pondering_steps", 1, where, 0, MAX_LATENTS)
        if number(config, "softmax_temperature", 1.0, where, 0.0, 1e9) != 1.0:
            raise InputError(f"{where}: softmax_temperature is not 1.0; only an untempered mixture is supported")
        first, scale = embedding_scales(config, model, rounds, where)
        return RecurrenceSpec(
            rounds,
            embedding_scale=first,
            visibility="same",
            stop="count",
            readout="last",
            feedback=FeedbackSpec(scale=scale),
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        return ({"ponderinglm": True, "pondering_steps": recurrence.max_latents, **way} for way in scale_ways())
