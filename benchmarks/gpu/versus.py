"""Tokens a second of this engine beside those of peers.py, in turns, on the same weights, context and depths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common.results import Spread
from common.traces import Trace

from gpu.decoding import Decoding
from gpu.kernel_checks import Ops
from gpu.peers import EagerOracle, MaskedSteps, layer_step
from gpu.sizes import Weights
from gpu.timing import Clock
from latentcot_export.errors import CheckFailed
from latentcot_export.spec import ModelSpec, RecurrenceSpec

NAMES = ("ours", "compiled", "static eager", "oracle")


def compiled_layer(device: torch.device) -> Any:
    """layer_step through torch.compile, for shapes that are known; where there is no GPU, as it is."""
    if device.type != "cuda":
        return layer_step
    from torch import _dynamo

    # six planes of two sizes: more than PyTorch compiles of one function unless it is told
    _dynamo.config.recompile_limit = 64
    return torch.compile(layer_step, dynamic=False, fullgraph=True)


class Contest:
    """The engines for one model and depth; `passes` of ours and `tokens` of the others are one timed run.

    The compiled one comes with `add_compiled`.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, torch.Tensor],
        weights: Weights,
        ops: Ops,
        trace: Trace,
        batch: int,
        context: int,
        tokens: int,
        passes: int | None = None,
    ) -> None:
        self.tokens, self.batch = tokens, batch
        self.passes = passes or int(np.ceil(tokens * trace.mean))
        depths = trace.depths(batch, context + self.passes + 2)
        dtype = weights.table.dtype
        self.clock = Clock(ops.device)
        self.ours = Decoding(model, recurrence, weights, ops, context, depths)
        first = self.ours.state.host.arrays["tokens"][:, context - 1].astype(np.int64)
        given = depths[:, : context + tokens + 2]

        def masked(layer: Any, graph: bool) -> MaskedSteps:
            return MaskedSteps(model, recurrence, weights, context, given, layer, graph, first)

        self._masked = masked
        self.others: dict[str, MaskedSteps | EagerOracle] = {"static eager": masked(layer_step, False)}
        self.others["oracle"] = EagerOracle(model, recurrence, tensors, context, given, dtype, first)

    def add_compiled(self, layer: Any) -> None:
        """The masked step with this layer, captured. Errors: whatever a compiler raises; the others stand."""
        self.others["compiled"] = self._masked(layer, True)

    @property
    def names(self) -> tuple[str, ...]:
        """The engines that are there, in the order of their turns."""
        return tuple(name for name in NAMES if name == "ours" or name in self.others)

    def once(self, name: str) -> float:
        """Tokens a second of one run of one engine."""
        if name == "ours":
            took, tokens = self.ours.burst(self.passes)
            return 1e3 * tokens / took
        engine = self.others[name]
        # an eager run is a tenth as fast, and each of its tokens is like the others
        count = self.tokens if name == "compiled" else max(1, self.tokens // 8)
        engine.rewind()
        (took,) = self.clock.milliseconds(lambda: engine.run(count), 1, warm=0)
        return 1e3 * self.batch * count / took

    def rounds(self, count: int) -> dict[str, Any]:
        """Every engine once before, then in turns: tokens a second, and the ratios of each round."""
        names = self.names
        for name in names:
            self.once(name)
        found = [{name: self.once(name) for name in names} for _ in range(count)]
        told: dict[str, Any] = {"tokens_per_s": {name: Spread.of([each[name] for each in found]) for name in names}}
        for name in names[1:]:
            told[f"over {name}"] = Spread.of([each["ours"] / each[name] for each in found])
        return told


def check_same_tokens(
    model: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor], ops: Ops, tokens: int
) -> tuple[int, float, str]:
    """From one token on, in float32, all four choose the same: they are the same model. Errors: CheckFailed."""
    weights = Weights.of(model, recurrence, tensors, ops.device, torch.float32)
    there = {name: value.to(ops.device) for name, value in tensors.items()}
    trace = Trace(1 + 0.7 * recurrence.max_latents, recurrence.max_steps)
    passes = tokens * recurrence.max_steps
    made = Contest(model, recurrence, there, weights, ops, trace, 3, 1, tokens, passes)
    made.add_compiled(layer_step)
    found = {}
    made.ours.rewind()
    made.ours.passes.burst(passes)
    made.ours.state.pull()
    host = made.ours.state.host.arrays["tokens"]
    found["ours"] = host[:, 1 : 1 + tokens].tolist()
    for name, engine in made.others.items():
        engine.rewind()
        steps = []
        for _ in range(tokens):
            engine.run(1)
            steps.append(engine.token.tolist())
        found[name] = np.transpose(steps).tolist()
    for name in NAMES[1:]:
        if found[name] != found["ours"]:
            raise CheckFailed(f"the baseline {name} chooses {found[name]}, this engine {found['ours']}")
    return 3 * tokens, 0.0, "tokens"
