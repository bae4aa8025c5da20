"""`ouro`: Ouro / LoopLM (arXiv 2510.25741, `ByteDance/Ouro-*`): the whole stack in a loop with a learned exit.

z_u = norm(layers(z_(u-1))), z_0 = E[token]; lambda_u = sigmoid(early_exit_gate(z_u)) is the probability of stopping, so
our gate is 1 - lambda_u = sigmoid of the negated logit, and a token exits once 1 - prod(1 - lambda) >= the threshold.
Two keys of ours may stand beside the published ones: `latentcot_exit`, `skip` (later loops of an exited token are not run;
the default) or `as_released` (every loop runs, the exit chooses what is read out), and `latentcot_readout`, `last` or
`mixture` (logits weighted by the exit probabilities). At a threshold of 1.0 the last loop is read out and no gate asked.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.llama import gated_rms, llama_config, llama_layout, llama_model
from latentcot_export.checkpoint.family import Backbone, Family
from latentcot_export.checkpoint.keys import boolean, choice, integer, number
from latentcot_export.checkpoint.layout import Layout, negated, zeros
from latentcot_export.checkpoint.thinking_shapes import router_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_LATENTS, ModelSpec, RecurrenceSpec

EXITS = ("skip", "as_released")
_GATE = "model.early_exit_gate"
_DEFAULTS = {
    **{"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "use_sliding_window": False},
}


def ouro_model(config: Mapping[str, Any], where: str) -> ModelSpec:
    """The layer stack of an Ouro config; absent keys take OuroConfig's defaults. Errors: InputError, SpecError."""
    for key in ("attention_bias", "mlp_bias"):
        if boolean(config, key, False, where):
            raise InputError(f"{where}: {key} is True, this kind of model has no biases; remove that key")
    model = llama_model(ChainMap(config, _DEFAULTS), where)  # type: ignore[arg-type]
    return dataclasses.replace(model, block="sandwich")


def ouro_config(model: ModelSpec) -> dict[str, Any]:
    """The inverse of `ouro_model`, in the newer spelling, without dtype."""
    keys = {name: value for name, value in llama_config(model).items() if not name.endswith("_bias")}
    return {"model_type": "ouro", **keys, "use_sliding_window": False}


OURO = Backbone(
    "ouro",
    ouro_model,
    ouro_config,
    lambda model: gated_rms(model) and model.block == "sandwich" and not model.qk_norm,
    llama_layout,
)


@family("ouro")
class Ouro(Family):
    """Sandwich norms, the final norm after every loop, one exit gate."""

    backbones = (OURO,)
    named = True
    marks = ("total_ut_steps",)

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        steps = integer(config, "total_ut_steps", 4, where, 1, MAX_LATENTS + 1)
        skipping = choice(config, "latentcot_exit", "skip", where, EXITS) == "skip"
        readout = choice(config, "latentcot_readout", "last", where, ("last", "mixture"))
        threshold = number(config, "early_exit_threshold", 1.0, where, 0.0, 1e9)
        if config.get("early_exit_step") is not None:  # counted from 0, before any threshold
            steps = integer(config, "early_exit_step", 0, where, 0, steps - 1) + 1
            threshold, readout = 1.0, "last"
        if threshold >= 1.0 and readout == "last":
            return RecurrenceSpec(steps - 1, visibility="same", stop="count", readout="last")
        # every loop counts in the mixture of all of them, so nothing is skipped and no token stops
        skipping = skipping and threshold < 1.0
        return RecurrenceSpec(
            steps - 1,
            max(0.0, 1.0 - threshold),
            visibility="newest" if skipping else "same",
            stop="reach",
            readout=readout,
            skip_halted=skipping,
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        loops: dict[str, Any] = {"total_ut_steps": recurrence.max_steps}
        if recurrence.stop == "count":
            return ({**loops, "early_exit_threshold": 1.0},)
        loops["early_exit_threshold"] = 1.0 - recurrence.halt_threshold
        exits = EXITS if recurrence.skip_halted else EXITS[::-1]
        return [{**loops, "latentcot_exit": exits[0], "latentcot_readout": recurrence.readout}]

    def published(self, model: ModelSpec, recurrence: RecurrenceSpec, config: Mapping[str, Any]) -> Layout:
        """See Family. The gate is always there, whether it is asked or not."""
        asked = router_shapes(model, recurrence)
        shapes = {"weight": (1, model.hidden_size), "bias": (1,)}
        return llama_layout(model).plus(
            negated(f"{_GATE}.{part}", f"router.{part}", shape) if asked else zeros(f"{_GATE}.{part}", shape)
            for part, shape in shapes.items()
        )
