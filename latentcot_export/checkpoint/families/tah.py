"""`tah`: Think-at-Hard (arXiv 2511.08577, `nics-efc/TaH-plus-1.7B`): a Qwen3 that iterates on hard tokens.

x_1 = E[token]; step k: logits l_k (with `AdditiveLogitsUpdater` their sum so far), a decider on hidden states and the
largest logits gives the probability of going on, which must exceed its `threshold`; x_(k+1) = the mixture of embeddings
by the softmax over the `topk` largest logits. A LoRA is on from step 2. Mask `duo`. `tah_config.json` beside config.json
says all this; the decider is published as a pickle, which is not opened: `latentcot convert` makes
`iter_decider.safetensors` of it. Thresholds are taken as the decimal number written, not rounded to bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint import lora
from latentcot_export.checkpoint.decider import CLASS, DECIDER
from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.qwen3 import QWEN3
from latentcot_export.checkpoint.family import Family
from latentcot_export.checkpoint.keys import boolean, integer, number, section
from latentcot_export.checkpoint.layout import Layout, Stored
from latentcot_export.checkpoint.thinking_shapes import router_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_LATENTS, DeciderSpec, FeedbackSpec, ModelSpec, RecurrenceSpec
from latentcot_export.strict_json import shown

SIDE = "tah_config.json"
ADDITIVE = "AdditiveLogitsUpdater"
# key: values that mean what is computed here
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "embedding_key": (None, "model.embed_tokens"),
    "iter_decider": (CLASS,),
    "input_updater": (None, "TrivialUpdater"),
    "output_updater": (None, "NoneUpdater", ADDITIVE),
    "output_updater_kwargs": (None, {}),
    "eval_iter_decider_kwargs": (None, {}),
    "iter_attention_mode": (None, "duo"),
    "adapter": (None, "none", "lora"),
    "weighted_hidden_method": (None,),
}
# canonical name -> that of the decider's state_dict
_NAMES = (
    *((r"^router\.states_norm\.", "layer_norm_hidden_states."), (r"^router\.logits_in\.", "logits_projection.")),
    *((r"^router\.combined\.", "combined_projection."), (r"^router\.input\.", "backbone.input_projection.")),
    *((r"^router\.norm\.", "backbone.output_layer.0."), (r"^router\.out\.", "backbone.output_layer.1.")),
    (r"^router\.(blocks\.\d+)\.norm\.", r"backbone.\1.layer_norm."),
    (r"^router\.(blocks\.\d+)\.in\.", r"backbone.\1.mlp.0."),
    (r"^router\.(blocks\.\d+)\.out\.", r"backbone.\1.mlp.3."),
    (r"^router\.(blocks\.\d+)\.change\.", r"backbone.\1.dim_change."),
)


@family("tah")
class ThinkAtHard(Family):
    """Stock Qwen3 tensors, a LoRA and a decider in files of their own."""

    backbones = (QWEN3,)
    marks = (SIDE,)
    side_files = (SIDE, lora.CONFIG)
    weight_files = (lora.WEIGHTS, DECIDER)

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        where = f"{where.removesuffix('config.json')}{SIDE}"
        facts = section(config, SIDE, where)
        for key, accepted in _SUPPORTED.items():
            if facts.get(key) not in accepted and not (key == "iter_decider" and facts.get("max_iter") == 1):
                raise InputError(
                    f"{where}: {key} is {shown(facts.get(key))}, which is not supported; {_advice(accepted)}"
                )
        trained = facts.get("eval_iter_decider")
        if trained is not None and not str(trained).startswith("iter_decider"):
            raise InputError(
                f"{where}: eval_iter_decider is {shown(trained)}, only the trained decider is run; remove it"
            )
        most = integer(facts, "max_iter", 2, where, 1, MAX_LATENTS + 1)
        kwargs, updater = section(facts, "iter_decider_kwargs", where), section(facts, "input_updater_kwargs", where)
        # the decider stops at its own max_iter, 3 where that is missing
        steps = min(most, integer(kwargs, "max_iter", 3, where, 1, MAX_LATENTS + 1))
        if steps == 1:
            return RecurrenceSpec(max_latents=0)
        if boolean(updater, "use_hidden_states", False, where):
            raise InputError(f"{where}: use_hidden_states is True; only mixtures of embeddings are fed back")
        integer(kwargs, "hidden_states_size", model.hidden_size, where, model.hidden_size, model.hidden_size)
        decider = DeciderSpec(
            layers=kwargs.get("hidden_states_layer_nums"),  # type: ignore[arg-type]  # DeciderSpec judges these two
            top_k=integer(kwargs, "topk", 100, where, 1, model.vocab_size),
            widths=kwargs.get("hidden_dims"),  # type: ignore[arg-type]
            expansion=integer(kwargs, "expansion_factor", 4, where, 1, 1024),
            normalize=boolean(kwargs, "normalize_input", False, where),
        )
        if max(decider.layers) > model.num_layers:
            raise InputError(
                f"{where}: hidden_states_layer_nums has {max(decider.layers)}, of {model.num_layers} layers"
            )
        if kwargs.get("threshold") is None:
            raise InputError(f"{where}: iter_decider_kwargs has no threshold; add the one the model is evaluated with")
        last = facts.get("output_updater", ADDITIVE) != ADDITIVE  # new saves leave the key out and add
        return RecurrenceSpec(
            steps - 1,
            number(kwargs, "threshold", 0.9, where, 0.0, 1.0),
            "decider",
            stop="gate",
            readout="last" if last else "sum",
            feedback=FeedbackSpec(integer(updater, "topk", 100, where, 1, model.vocab_size), residual=False),
            decider=decider,
            adapter=lora.lora_spec(_lora(config, where), where) if facts.get("adapter") == "lora" else None,
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        facts: dict[str, Any] = {"max_iter": recurrence.max_steps, "embedding_key": "model.embed_tokens"}
        decider, feedback = recurrence.decider, recurrence.feedback
        if decider is None or feedback is None:
            return ({SIDE: facts},)
        facts |= {"iter_decider": CLASS, "input_updater_kwargs": {"topk": feedback.top_k}}
        facts["iter_decider_kwargs"] = {
            **{"topk": decider.top_k, "hidden_states_size": model.hidden_size, "max_iter": recurrence.max_steps},
            **{"hidden_states_layer_nums": list(decider.layers), "hidden_dims": list(decider.widths)},
            **{"expansion_factor": decider.expansion, "normalize_input": decider.normalize},
            "threshold": recurrence.halt_threshold,
        }
        facts["output_updater"] = ADDITIVE if recurrence.readout == "sum" else "NoneUpdater"
        if recurrence.adapter is None:
            return ({SIDE: facts},)
        return ({SIDE: facts | {"adapter": "lora"}, lora.CONFIG: lora.lora_config(recurrence.adapter)},)

    def published(self, model: ModelSpec, recurrence: RecurrenceSpec, config: Mapping[str, Any]) -> Layout:
        """See Family."""
        layout = QWEN3.layout(model)
        if recurrence.max_latents == 0:  # nothing of the other files is asked
            return Layout(layout.stored, re.compile(rf"({re.escape(lora.WEIGHTS)}|{re.escape(DECIDER)}):.*"))
        stored = lora.lora_layout(model, recurrence, lora.lora_scaling(_lora(config, lora.CONFIG), lora.CONFIG))
        for canonical, shape in router_shapes(model, recurrence).items():
            name = canonical
            for pattern, theirs in _NAMES:
                name = re.sub(pattern, theirs, name)
            stored.append(Stored(f"{DECIDER}:{name}", shape, (canonical,)))
        threshold = re.compile(rf"{re.escape(DECIDER)}:threshold")  # the config's counts, whatever is stored
        return Layout((*layout.stored, *stored), threshold)


def _lora(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What peft saved, or else what the trainer asked it for."""
    return config.get(lora.CONFIG) or section(config[SIDE], "adapter_kwargs", where)


def _advice(accepted: tuple[Any, ...]) -> str:
    return "supported: " + ", ".join("its absence" if each in (None, {}) else str(each) for each in accepted)
