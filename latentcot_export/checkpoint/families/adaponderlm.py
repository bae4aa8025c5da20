"""`adaponderlm`: AdaPonderLM (arXiv 2603.01914): pondering with a gate after every round.

No weights are public, so the layout is ours: the backbone's keys and tensors with `model_type` adaponderlm and `backbone`
gpt_neox or llama, and

`num_iterations` (3), `halt_threshold` (1e-4), `scale_embeds`, `mutiply_pondering_steps` [sic] as in PonderLM,
`gate_hidden_size` (four times the model's), `gate_activation` (gelu), `readout`: `halt` (z of the last round run) or
`final` (z of step num_iterations + 1 of every token). Tensors `router.{i}.in` and `.out` `.weight` and `.bias`: the gate
s = sigmoid(out(act(in(z)))) after round i. s >= tau goes on: x' = x + s * softmax(head(z)) @ (c * E); else the token halts
and its last keys and values stand for its later ones (`newest`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.gpt_neox import GPT_NEOX
from latentcot_export.checkpoint.families.llama import LLAMA
from latentcot_export.checkpoint.families.ponderlm import embedding_scales, scale_ways
from latentcot_export.checkpoint.family import Backbone, Family
from latentcot_export.checkpoint.keys import above, below, choice, integer, number
from latentcot_export.spec import (
    MAX_DIMENSION,
    MAX_LATENTS,
    ROUTER_ACTIVATIONS,
    FeedbackSpec,
    ModelSpec,
    RecurrenceSpec,
)

_READOUTS = {"halt": "last", "final": "final"}


@family("adaponderlm")
class AdaPonderLM(Family):
    """Tensors of GPT-NeoX or Llama, and one router per round."""

    backbones = (GPT_NEOX, LLAMA)
    named = True
    marks = ("num_iterations",)

    def backbone(self, config: Mapping[str, Any], where: str) -> Backbone:
        """See Family."""
        kinds = {each.model_type: each for each in self.backbones}
        return kinds[choice(config, "backbone", "gpt_neox", where, tuple(kinds))]

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        rounds = integer(config, "num_iterations", 3, where, 1, MAX_LATENTS)
        first, scale = embedding_scales(config, model, rounds, where)
        width = min(4 * model.hidden_size, MAX_DIMENSION)
        return RecurrenceSpec(
            rounds,
            below(number(config, "halt_threshold", 1e-4, where, 1e-30, 1.0)),
            "mlp",
            integer(config, "gate_hidden_size", width, where, 1, MAX_DIMENSION),
            router_shared=False,
            embedding_scale=first,
            router_activation=choice(config, "gate_activation", "gelu", where, ROUTER_ACTIVATIONS),
            visibility="newest",
            stop="gate",
            readout=_READOUTS[choice(config, "readout", "halt", where, tuple(_READOUTS))],
            feedback=FeedbackSpec(gated=True, scale=scale),
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        kind = next((each.model_type for each in self.backbones if each.fits(model)), "")
        for way in scale_ways():
            yield {
                "model_type": self.name,
                "backbone": kind,
                "num_iterations": recurrence.max_latents,
                "halt_threshold": above(recurrence.halt_threshold),
                "gate_hidden_size": recurrence.router_hidden_size,
                "gate_activation": recurrence.router_activation,
                "readout": "final" if recurrence.readout == "final" else "halt",
                **way,
            }
