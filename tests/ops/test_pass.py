"""The pass that is exported, run eagerly on many random shapes: depths and tokens of the oracle, in both forms."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.export.layers import Form
from latentcot_export.export.portable_pass import GIVEN, PortablePass
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.runtime.session import CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from tests.specs import backbones, decided, recurrences


class EagerSession(GraphSession):
    """GraphSession whose graph is the traced module itself: what the Loop does, one pass after another."""

    def __init__(self, module: PortablePass) -> None:
        self.module = module

    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """As GraphSession.call."""
        fixed = [torch.as_tensor(end if name == "end" else getattr(inputs, name)) for name in GIVEN]
        names = self.module.carried_names()
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


# shrinking a failure of this size takes minutes and says little
@settings(max_examples=50, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    backbones(),
    recurrences(),
    st.integers(0, 1000),
    st.sampled_from((20, 24)),
    st.sampled_from((1, 3, 64)),
    st.booleans(),
)
def test_pass_equals_oracle(
    spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, opset: int, rows: int, lockstep: bool
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
    state = BatchState.new(spec, "float32", tokens, 1, tokens.shape[1])
    session.feed(state, inputs, lengths, rows)
    session.run(state, inputs, lengths + new - 1)
    found = torch.from_numpy(state.arrays["tokens"])
    run = torch.where(torch.arange(found.shape[1]) < torch.from_numpy(lengths + new - 1).unsqueeze(1), found, -1)
    oracle = LatentCoT.from_tensors(spec, recurrence, tensors, torch.float64)
    truth = step_major(oracle, run, torch.from_numpy(inputs.forced_depth))
    assume(decided(truth, recurrence.halt_threshold))
    assert torch.equal(torch.from_numpy(state.arrays["depths"]), truth.depths)
    assert int(state.arrays["live_rows"]) == int(truth.depths.sum())
    logits = oracle.head(truth.mix)
    for row, length in enumerate(lengths):
        last = length + new - 1
        torch.testing.assert_close(
            torch.from_numpy(state.arrays["logits"][row, :last]).double(), logits[row, :last], rtol=2e-3, atol=2e-3
        )
        assert torch.equal(found[row, length : last + 1], logits[row, length - 1 : last].argmax(-1))
        assert (found[row, last + 1 :] == -1).all()
