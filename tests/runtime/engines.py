"""Engines over the made-up model of fake_session.py, what they must give, and that nothing is left behind."""

from __future__ import annotations

import random
from typing import Any

from latentcot_export import Engine, StreamEvent
from latentcot_export.runtime import RequestHandle, uniforms
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column
from tests.runtime.fake_session import VOCAB, FakeCache, FakeManifest, FakeSession, depth_of, next_of


def engine_of(slots: int = 2000, places: int = 4, length: int = 256, **options: Any) -> tuple[Engine, FakeSession]:
    session = FakeSession(FakeManifest(cache=FakeCache(length, places, slots)))
    return Engine(session, None, **options), session


def state_of(engine: Engine) -> NativeState:
    assert engine._scheduler is not None
    return engine._scheduler.state


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def expected(prompt: list[int], new: int, stop: tuple[int, ...] = (), seed: int | None = None) -> dict[str, Any]:
    """What the made-up model gives, token by token."""
    tokens, ids, ended = list(prompt), [], "length"
    for _ in range(new):
        u = 0.0 if seed is None else float(uniforms(seed, len(tokens), 1)[0])
        ids.append(next_of(tokens, 0.0 if seed is None else 1.0, u))
        tokens.append(ids[-1])
        if ids[-1] in stop:
            ended = "eos"
            break
    depths = [depth_of(tokens[: i + 1]) for i in range(len(tokens) - 1)]
    return {"ids": ids, "depths": depths, "stop": ended}


def told(handle: RequestHandle) -> dict[str, Any]:
    """The result of a handle, and that its events agree with it."""
    out = handle.result()
    events = list(handle)
    assert [event.token for event in events] == out.ids[0]
    assert [event.depth for event in events] == out.depths[0][len(out.prompt_ids[0]) - 1 :]
    assert [event.stop for event in events] == [None] * (len(events) - 1) + [out.stop[0]]
    assert {event.sequence for event in events} == {handle.index}
    return {"ids": out.ids[0], "depths": out.depths[0], "stop": out.stop[0]}


def check_empty(engine: Engine) -> None:
    """Nothing runs and every slot is on the stack once."""
    state = state_of(engine)
    assert engine._scheduler is not None and engine._scheduler.idle
    assert state.free_slots == state.slots
    state.bring("free_slots")
    assert sorted(state.arrays["free_slots"]) == list(range(state.slots))
    assert not state.sequences[:, Column.STATUS].any() and (state.arrays["order"] == -1).all()
    assert state.live_rows == 0


def drain(engine: Engine) -> list[StreamEvent]:
    events = []
    while not engine._scheduler.idle:  # type: ignore[union-attr]
        events += engine.step()
    return events
