"""Tables of the native engine from the host's side: admission, removal, truncation, and what they cost."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from latentcot_export.errors import LatentCoTError
from latentcot_export.runtime import SamplingParams, uniforms
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column, Control, Counter, Status
from tests.runtime.fake_session import FakeSession, depth_of, next_of

SESSION = FakeSession()
MODEL, RECURRENCE = SESSION.manifest.model, SESSION.manifest.recurrence
STEPS = RECURRENCE.max_steps


def state_of(places: int = 3, length: int = 40, slots: int = 200, logit_positions: int = 0) -> NativeState:
    return NativeState(MODEL, RECURRENCE, places=places, length=length, slots=slots, logit_positions=logit_positions)


def written(prompt: list[int], end: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) <= end:
        tokens.append(next_of(tokens))
    return tokens


def test_tables_have_the_shapes_and_types_of_the_graph() -> None:
    state = state_of(places=2, length=9, slots=30, logit_positions=4)
    shapes = {name: (str(value.dtype), value.shape) for name, value in (state.arrays | state.carried).items()}
    assert shapes == {
        "max_passes": ("int64", ()),
        "control": ("int32", (4,)),
        "order": ("int32", (2,)),
        "sequences": ("int32", (2, 8)),
        "sampling": ("float32", (2, 2)),
        "tokens": ("int32", (2, 9)),
        "depths": ("int32", (2, 9)),
        "forced_depth": ("int32", (2, 9)),
        "uniform": ("float32", (2, 9)),
        "stop_tokens": ("int32", (2, 1)),
        "slots": ("int32", (2, 4, 9)),
        "free_slots": ("int32", (30,)),
        "counters": ("int64", (8,)),
        "cache": ("float32", (1, 2, 30, 1, 16)),
        "logits": ("float32", (2, 4, 50)),
        "rows": ("int32", (0, 4)),
        "fresh": ("int32", (0,)),
        "latent": ("float32", (0, 4)),
        "reach": ("float32", (0,)),
        "mix": ("float32", (0, 4)),
    }
    for value in state.arrays.values():
        assert value.flags.c_contiguous and value.flags.writeable
    assert state.arrays["cache"].ctypes.data % 64 == 0


def test_an_admission_fills_its_place_and_no_other() -> None:
    state = state_of()
    state.add([9] * 39, 39)
    place = state.add(
        [4, 5],
        6,
        forced_depth=[2, 0, 3],
        pause=5,
        sampling=SamplingParams(0.5, 7, 0.9, seed=11),
        stop_tokens=[1, 2, 3],
    )
    a = state.arrays
    assert place == 1 and a["order"].tolist() == [0, 1, -1]
    assert a["tokens"][1, :7].tolist() == [4, 5, -1, -1, -1, -1, -1]
    assert state.sequences[1].tolist() == [Status.RUNNING, 0, 5, 6, 0, 0, 7, 2]
    assert a["forced_depth"][1, :7].tolist() == [2, 0, 3, 0, 0, 0, 0]
    assert a["sampling"][1].tolist() == [0.5, np.float32(0.9)]
    assert a["uniform"][1, 2:7].tolist() == uniforms(11, 2, 5).tolist()
    assert a["stop_tokens"].tolist() == [[-1] * 4, [1, 2, 3, -1], [-1] * 4] and state.layout == 1
    assert (a["slots"][1, :, :7] == -1).all()
    assert not a["tokens"][2].any() and not a["slots"][2].any(), "nobody is there yet"
    state.add([1], 1)
    with pytest.raises(LatentCoTError, match="all 3 places of the engine are taken"):
        state.add([1], 1)
    state.remove(0)
    assert a["order"].tolist() == [1, 2, -1] and state.add([1], 1) == 0 and a["order"].tolist() == [1, 2, 0]


def test_a_forced_depth_of_the_one_before_does_not_stay() -> None:
    state = state_of()
    state.add([1, 2], 10, forced_depth=[3] * 10)
    state.remove(0)
    state.add([1, 2], 10)
    assert not state.arrays["forced_depth"][0].any()


def test_a_pause_holds_a_sequence_and_lifting_it_goes_on() -> None:
    state = state_of()
    state.add([1, 2, 3], 20, pause=3)
    state.add([4], 5)
    SESSION.run(state, 1000)
    assert state.sequences[:, Column.STATUS].tolist() == [Status.RUNNING, Status.DONE, Status.EMPTY]
    assert state.sequences[0, Column.LENGTH] == 4 and state.live_rows == 0
    state.pause(0, 12)
    SESSION.run(state, 1000)
    assert state.sequences[0, Column.NEXT_POSITION] == 12
    state.pause(0, 99)
    SESSION.run(state, 1000)
    tokens = written([1, 2, 3], 20)
    assert state.arrays["tokens"][0, :21].tolist() == tokens
    assert state.arrays["depths"][0, :20].tolist() == [depth_of(tokens[: i + 1]) for i in range(20)]
    assert state.free_slots == state.slots


def test_a_removed_sequence_leaves_nothing_behind_at_any_moment() -> None:
    for passes in range(12):
        state = state_of()
        state.add([1, 2, 3, 4, 5, 6], 30)
        state.add([7, 8, 9], 20)
        SESSION.run(state, passes)
        state.remove(0)
        held = state.arrays["slots"][1, :, :21]
        taken = set(held[held >= 0].tolist())
        free = state.arrays["free_slots"][: state.free_slots].tolist()
        assert len(free) == len(set(free)) and set(free) | taken == set(range(200)) and not set(free) & taken
        rows = state.carried["rows"]
        assert (rows[:, 0] == 1).all()
        assert len(state.carried["latent"]) == (rows[:, 2] > 1).sum() == len(rows) - len(state.carried["fresh"])
        # its place may be taken at once, and its neighbour does not notice
        state.add([3, 2, 1], 12)
        SESSION.run(state, 1000)
        assert state.arrays["tokens"][1, :21].tolist() == written([7, 8, 9], 20)
        assert state.arrays["tokens"][0, :13].tolist() == written([3, 2, 1], 12)
        assert state.free_slots == 200


@pytest.mark.parametrize("passes", range(1, 14))
def test_a_truncated_sequence_runs_out_and_no_further(passes: int) -> None:
    state = state_of()
    prompt = list(range(8))
    state.add(prompt, 30)
    state.add([9], 20)
    SESSION.run(state, passes)
    length = int(state.sequences[0, Column.LENGTH])
    if length <= 8:
        return
    end = max(8, length - 3)
    state.truncate(0, end)
    assert state.sequences[0, Column.LIVE_ROWS] == (state.carried["rows"][:, 0] == 0).sum()
    SESSION.run(state, 1000)
    assert state.sequences[0, Column.STATUS] == Status.DONE and state.free_slots == 200
    tokens = written(prompt, 30)
    assert state.arrays["depths"][0, :end].tolist() == [depth_of(tokens[: i + 1]) for i in range(end)]
    assert state.arrays["tokens"][1, :21].tolist() == written([9], 20)


def test_lockstep_takes_more_passes_and_gives_the_same() -> None:
    taken = []
    for lockstep in (False, True):
        state = state_of(slots=400)
        for seed in range(3):
            state.add([seed], 30)
        state.control(100, lockstep=lockstep)
        assert state.arrays["control"].tolist() == [100, 100, lockstep, 0]
        SESSION.run(state, 1000)
        taken.append(state.passes)
        assert [row[:31].tolist() for row in state.arrays["tokens"]] == [written([seed], 30) for seed in range(3)]
    assert taken[0] < taken[1]


def test_empty_tables_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = NativeState(MODEL, RECURRENCE, places=256, length=65536, slots=1 << 22)
    size = sum(value.nbytes for value in state.arrays.values())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert size > 1 << 30
    # the stack of free slots is written, nothing else is
    assert grown < state.arrays["free_slots"].nbytes + (16 << 20)
    assert state.counters[Counter.FREE_SLOTS] == 1 << 22 and state.arrays["control"][Control.LOCKSTEP] == 0
