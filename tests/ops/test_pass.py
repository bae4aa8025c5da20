"""The pass that is exported, run eagerly on many random shapes: depths and tokens of the oracle, in both forms."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.export.layers import Form
from latentcot_export.export.portable_pass import GIVEN, PortablePass
from latentcot_export.model import LatentCoT
from latentcot_export.model import run as truth_of
from latentcot_export.runtime.session import CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from tests.specs import backbones, decided, recurrences, thinking


class EagerSession(GraphSession):
    """GraphSession whose graph is the traced module itself: what the Loop does, one pass after another."""

    def __init__(self, module: PortablePass) -> None:
        self.module = module

    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """As GraphSession.call."""
        fixed = [torch.as_tensor(end if name == "end" else getattr(inputs, name)) for name in GIVEN]
        names = list(self.module.carried())
        values = [
            torch.from_numpy(state.caches[n].numpy().copy()) if n in state.caches else torch.as_tensor(state.arrays[n])
            for n in names
        ]
        for _ in range(max_passes):
            again, *values = self.module(*fixed, *values)
            if not again:
                break
        import onnxruntime as ort

        for name, value in zip(names, values, strict=True):
            if name in state.caches:
                state.caches[name] = ort.OrtValue.ortvalue_from_numpy(value.numpy())
            else:
                state.arrays[name] = value.numpy()


def check(
    spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, opset: int, rows: int, lockstep: bool, near_tie: float
) -> None:
    tensors = random_tensors(spec, recurrence, seed)
    session = EagerSession(PortablePass(spec, recurrence, tensors, torch.float32, Form(opset)))
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, 3)
    new = 6
    tokens = np.full((3, int(lengths.max()) + new), -1)
    for row, length in enumerate(lengths):
        tokens[row, :length] = random.integers(0, spec.vocab_size, length)
    inputs = CallInputs.greedy(*tokens.shape)
    inputs.lockstep = np.asarray(lockstep)  # type: ignore[assignment]
    inputs.forced_depth = random.integers(0, recurrence.max_steps + 1, tokens.shape) * random.integers(0, 2)
    state = BatchState.new(spec, recurrence, "float32", tokens, 1, tokens.shape[1])
    session.feed(state, inputs, lengths, rows)
    session.run(state, inputs, lengths + new - 1)
    found = torch.from_numpy(state.arrays["tokens"])
    run = torch.where(torch.arange(found.shape[1]) < torch.from_numpy(lengths + new - 1).unsqueeze(1), found, -1)
    oracle = LatentCoT.from_tensors(spec, recurrence, tensors, torch.float64)
    truth = truth_of(oracle, run, torch.from_numpy(inputs.forced_depth))
    assume(decided(truth, recurrence.halt_threshold))
    assert torch.equal(torch.from_numpy(state.arrays["depths"]), truth.depths)
    tokens_run = int((run >= 0).sum())
    executed = tokens_run * recurrence.max_steps if recurrence.runs_on else int(truth.depths.sum())
    assert int(state.arrays["live_rows"]) == executed
    logits = oracle.head(truth.mix)
    for row, length in enumerate(lengths):
        last = length + new - 1
        torch.testing.assert_close(
            torch.from_numpy(state.arrays["logits"][row, :last]).double(), logits[row, :last], rtol=2e-3, atol=2e-3
        )
        best = logits[row, length - 1 : last].topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > near_tie
        assert torch.equal(found[row, length : last + 1][clear], best.indices[:, 0][clear])
        assert (found[row, last + 1 :] == -1).all()


# shrinking a failure of this size takes minutes and says little
SETTINGS = {"phases": [Phase.explicit, Phase.reuse, Phase.generate]}
SCHEDULES = (st.integers(0, 1000), st.sampled_from((20, 24)), st.sampled_from((1, 3, 64)), st.booleans())


@settings(max_examples=50, **SETTINGS)
@given(backbones(), recurrences(), *SCHEDULES)
def test_pass_equals_oracle(
    spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, opset: int, rows: int, lockstep: bool
) -> None:
    check(spec, recurrence, seed, opset, rows, lockstep, 0.0)


@settings(max_examples=100, **SETTINGS)
@given(backbones(), st.data(), *SCHEDULES)
def test_pass_of_any_recurrence_equals_oracle(
    spec: ModelSpec, data: st.DataObject, seed: int, opset: int, rows: int, lockstep: bool
) -> None:
    check(spec, data.draw(thinking(spec.num_layers)), seed, opset, rows, lockstep, 4e-3)
