"""`adaptive_latent_cot`: a Llama whose tokens think until a router stops them (arXiv 2602.08220); the layout is ours.

config.json has every Llama key and `max_latents` (required), `halt_threshold` (tau), `router_type` (`linear` | `mlp`),
`router_hidden_size` (mlp), `router_shared`, `embedding_scale`; absent ones take RecurrenceSpec's defaults.
Tensors: Llama's and `router.*`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.llama import LLAMA
from latentcot_export.checkpoint.family import Family
from latentcot_export.checkpoint.keys import choice
from latentcot_export.checkpoint.layout import Layout, dropped
from latentcot_export.checkpoint.thinking_shapes import router_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_LATENTS, ModelSpec, RecurrenceSpec

# The switches that this layout has keys for; every other one keeps RecurrenceSpec's default.
_FIELDS = (*("max_latents", "halt_threshold", "router_type", "router_hidden_size", "router_shared", "embedding_scale"),)


@family("adaptive_latent_cot")
class AdaptiveLatentCot(Family):
    """Stock Llama tensors plus `router.*`."""

    backbones = (LLAMA,)
    named = True
    marks = ("max_latents",)

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        if "max_latents" not in config:
            raise InputError(
                f"{where}: max_latents is missing, an adaptive_latent_cot checkpoint needs it; add it, or make a "
                "checkpoint of a stock one with `latentcot init`"
            )
        values = {name: config[name] for name in _FIELDS if name in config}
        for name in ("halt_threshold", "embedding_scale"):
            if type(values.get(name)) is int:
                values[name] = float(values[name])
        if "router_type" in values:
            choice(config, "router_type", "linear", where, ("linear", "mlp"))
        return RecurrenceSpec(**values)

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        fields = {name: getattr(recurrence, name) for name in _FIELDS}
        present = {name: value for name, value in fields.items() if value is not None}
        return ({"model_type": self.name, **present},)

    def published(self, model: ModelSpec, recurrence: RecurrenceSpec, config: Mapping[str, Any]) -> Layout:
        """See Family. Without latents the routers of a deeper model may stay: setting `max_latents` to 0 is allowed."""
        layout = super().published(model, recurrence, config)
        if recurrence.max_latents == 0:
            layout = layout.plus(
                dropped(router_shapes(model, dataclasses.replace(recurrence, max_latents=MAX_LATENTS)))
            )
        return layout
