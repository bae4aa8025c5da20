"""The tensors that a recurrence adds to a layer stack: routers, deciders, adapters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from latentcot_export.errors import InputError
from latentcot_export.spec import AdapterSpec, DeciderSpec, ModelSpec, RecurrenceSpec

Shape = tuple[int, ...]


def router_shapes(model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Shape]:
    """The router tensors: one router, or one per step but the last, which has no gate; none without gates.

    A router has one output, the logit of going on; under the stop rule `tail` one for each step.
    """
    if not recurrence.gated:
        return {}
    if recurrence.decider is not None:
        return decider_shapes(recurrence.decider, model.hidden_size)
    prefixes = ["router"] if recurrence.router_shared else [f"router.{j}" for j in range(recurrence.max_latents)]
    outputs = recurrence.max_steps if recurrence.stop == "tail" else 1
    shapes: dict[str, Shape] = {}
    for prefix in prefixes:
        if recurrence.router_type == "linear":
            shapes |= _linear(prefix, model.hidden_size, outputs)
            continue
        width = recurrence.router_hidden_size
        if width is None:  # RecurrenceSpec refuses this; the check is for the type checker
            raise InputError("router_hidden_size is missing; an mlp router needs it")
        shapes |= _linear(f"{prefix}.in", model.hidden_size, width) | _linear(f"{prefix}.out", width, outputs)
    return shapes


def decider_shapes(decider: DeciderSpec, hidden: int) -> dict[str, Shape]:
    """The tensors of a decider over states of `hidden` elements, see DeciderSpec."""
    states, widths = len(decider.layers) * hidden, (*decider.widths, decider.widths[-1])
    shapes = _norm("router.states_norm", states) if decider.normalize else {}
    shapes |= _linear("router.logits_in", decider.top_k, hidden)
    shapes |= _linear("router.combined", states + hidden, widths[0])
    shapes |= _linear("router.input", widths[0], widths[0])
    for b, (width, after) in enumerate(itertools.pairwise(widths)):
        prefix, inner = f"router.blocks.{b}", decider.expansion * width
        shapes |= _norm(f"{prefix}.norm", width)
        shapes |= _linear(f"{prefix}.in", width, inner) | _linear(f"{prefix}.out", inner, after)
        if width != after:
            shapes |= _linear(f"{prefix}.change", width, after)
    return shapes | _norm("router.norm", widths[-1]) | _linear("router.out", widths[-1], 1)


def adapter_shapes(layers: Mapping[str, Shape], recurrence: RecurrenceSpec) -> dict[str, Shape]:
    """The tensors of an adapter on the linears of `layers` {name: shape}; none without latents, where it is never on."""
    adapter = recurrence.adapter
    if adapter is None or recurrence.max_latents == 0:
        return {}
    shapes: dict[str, Shape] = {}
    for name in adapted(layers, adapter):
        outputs, inputs = layers[f"{name}.weight"]
        shapes[f"{name}.adapter_in.weight"] = (adapter.rank, inputs)
        shapes[f"{name}.adapter_out.weight"] = (outputs, adapter.rank)
    return shapes


def adapted(layers: Mapping[str, Shape], adapter: AdapterSpec) -> list[str]:
    """Names of the linears, without `.weight`, that an adapter adds to."""
    ends = tuple(f".{module}.weight" for module in adapter.modules)
    return [name.removesuffix(".weight") for name in layers if name.endswith(ends)]


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
