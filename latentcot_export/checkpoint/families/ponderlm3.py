"""`ponderlm3`: PonderLM-3 (arXiv 2603.02023): PonderLM-2 whose depth is known after the first step.

No weights are public and much is not settled, so the layout is ours: Llama's keys and tensors with `model_type` ponderlm3,
and

`num_latent_thoughts` (K), `halt_threshold` (1e-4), `scale_embeds` (sqrt(2.5 D) on the embedding), `router_type`
(`linear` | `mlp`), `router_hidden_size`, `router_activation`, `renormalise` (false) and `residual_to_last` (false).
The router reads z_1 and gives s = softmax over the K + 1 steps; w_k = s_k + s_(k+1) + ...; step k runs while w_k >= tau;
its keys and values enter every attention with log w_k added to their score; the head reads the sum of s_k z_k, whose
missing share goes to the last step with `residual_to_last`. Tensors: Llama's and `router.*` with K + 1 outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.llama import LLAMA
from latentcot_export.checkpoint.family import Family
from latentcot_export.checkpoint.keys import above, below, boolean, choice, integer, number
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_DIMENSION, MAX_LATENTS, ROUTER_ACTIVATIONS, ModelSpec, RecurrenceSpec


@family("ponderlm3")
class PonderLM3(Family):
    """Tensors of Llama and one router with as many outputs as there are steps."""

    backbones = (LLAMA,)
    named = True
    marks = ("num_latent_thoughts",)

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        if boolean(config, "renormalise", False, where):
            raise InputError(f"{where}: renormalise is True; the shares of the steps that ran are read out as they are")
        if not boolean(config, "mixture_includes_first", True, where):
            raise InputError(
                f"{where}: mixture_includes_first is False; the router is read with one share for each step"
            )
        kind = choice(config, "router_type", "linear", where, ("linear", "mlp"))
        width = integer(config, "router_hidden_size", model.hidden_size, where, 1, MAX_DIMENSION)
        return RecurrenceSpec(
            integer(config, "num_latent_thoughts", 3, where, 0, MAX_LATENTS),
            below(number(config, "halt_threshold", 1e-4, where, 1e-30, 1.0)),
            kind,
            width if kind == "mlp" else None,
            embedding_scale=math.sqrt(2.5 * model.hidden_size)
            if boolean(config, "scale_embeds", False, where)
            else 1.0,
            router_activation=choice(config, "router_activation", "gelu", where, ROUTER_ACTIVATIONS),
            visibility="all",
            stop="tail",
            readout="mixture" if boolean(config, "residual_to_last", False, where) else "shares",
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        width = recurrence.router_hidden_size
        for scaled in (True, False):
            yield {
                "model_type": self.name,
                "num_latent_thoughts": recurrence.max_latents,
                "halt_threshold": above(recurrence.halt_threshold),
                "scale_embeds": scaled,
                "router_type": recurrence.router_type,
                **({} if width is None else {"router_hidden_size": width}),
                "router_activation": recurrence.router_activation,
                "residual_to_last": recurrence.readout == "mixture",
            }
