"""What a batch carries: ending a sequence, leaving some out, growing the caches."""

from __future__ import annotations

import numpy as np

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.runtime.session import CallInputs
from latentcot_export.runtime.state import SLOT_BLOCK, BatchState

PROMPTS = [[1, 2, 3], [40, 5, 6], [7, 80, 9]]
LENGTH = 60


def thinking(model: LatentCoTForCausalLM) -> BatchState:
    """Three sequences in the middle of a thought, some tokens after their prompts."""
    tokens = np.full((3, LENGTH), -1, np.int64)
    tokens[:, :3] = PROMPTS
    state = BatchState.new(model.manifest.model, model.manifest.recurrence, "float32", tokens, slots=3)
    inputs = CallInputs.greedy(3, LENGTH)
    model.session.feed(state, inputs, np.full(3, 3))
    model.session.run(state, inputs, np.full(3, LENGTH - 1), 20)
    while not state.arrays["row_step"].all():
        model.session.run(state, inputs, np.full(3, LENGTH - 1), 1)
    return state


def test_a_sequence_is_ended_in_the_middle_of_a_thought(model: LatentCoTForCausalLM) -> None:
    state, end = thinking(model), np.full(3, LENGTH - 1)
    before = state.arrays["used_slots"].copy()
    state.stop(1)
    model.session.run(state, CallInputs.greedy(3, LENGTH), end, 10)
    assert (state.arrays["used_slots"] - before).tolist() == [10, 0, 10]
    state.stop(0)
    state.stop(2)
    assert not state.has_work(end)


def test_leaving_sequences_out_does_not_change_the_others(model: LatentCoTForCausalLM) -> None:
    whole, part = thinking(model), thinking(model)
    inputs, end = CallInputs.greedy(3, LENGTH), np.full(3, LENGTH - 1)
    part.keep([2, 0])
    model.session.run(whole, inputs, end)
    model.session.run(part, inputs.keep([2, 0]), end[:2])
    for name in ("tokens", "depths", "used_slots"):
        assert (part.arrays[name] == whole.arrays[name][[2, 0]]).all(), name


def test_growing_keeps_what_is_there(model: LatentCoTForCausalLM) -> None:
    state, end = thinking(model), np.full(3, LENGTH - 1)
    before, tables = state.slots, state.arrays["slot_step"].copy()
    caches = {name: value.numpy().copy() for name, value in state.caches.items()}
    state.reserve(before + 1)
    assert state.slots == before + SLOT_BLOCK
    assert (state.arrays["slot_step"][:, :before] == tables).all() and not state.arrays["slot_step"][:, before:].any()
    for name, old in caches.items():
        assert (state.caches[name].numpy()[:, :, :before] == old).all()
    model.session.run(state, CallInputs.greedy(3, LENGTH), end)
    alone = model.generate(PROMPTS, LENGTH - 3)
    assert state.arrays["tokens"].tolist() == alone.sequences
