"""What an engine refuses, what breaks it, what it survives: bounds, threads, failures, the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from latentcot_export import Engine, QueueFull, StreamEvent
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime import RequestHandle
from latentcot_export.runtime.native_state import NativeState
from tests.runtime.engines import check_empty, drain, engine_of, expected, prompt_of, told
from tests.runtime.fake_session import FakeSession, next_of


def test_the_queue_is_bounded() -> None:
    engine, _ = engine_of(places=1, max_queue=3)
    handles = [engine.submit([1], 2) for _ in range(3)]
    with pytest.raises(QueueFull, match="3 requests wait, which is the limit of this engine; try again"):
        engine.submit([1], 2)
    engine.step()
    handles.append(engine.submit([4], 2))
    with pytest.raises(QueueFull):
        engine.submit([1], 2)
    assert [told(handle)["stop"] for handle in handles] == ["length"] * 4
    check_empty(engine)


def test_a_request_that_cannot_fit_fails_alone() -> None:
    engine, _ = engine_of(slots=100, places=3)
    handles = [engine.submit([1, 2], 20), engine.submit([3], 200), engine.submit([4], 15)]
    drain(engine)
    with pytest.raises(LatentCoTError) as refusal:
        handles[1].result()
    said = str(refusal.value)
    assert "request 1" in said and "100 cache slots; ask for fewer tokens or give more cache_slots" in said
    assert handles[1].error is refusal.value and handles[1].done
    assert told(handles[0]) == expected([1, 2], 20) and told(handles[2]) == expected([4], 15)
    events = []
    with pytest.raises(LatentCoTError):
        events.extend(handles[1])
    ids = handles[1].job.sequence.ids
    assert [event.token for event in events] == [] or ids[: len(events)] == [event.token for event in events]
    assert len(ids) > 20 and ids == expected([3], 200)["ids"][: len(ids)]
    check_empty(engine)
    with pytest.raises(InputError, match="a prompt of 98 tokens needs 101 cache slots or more and this engine has 100"):
        engine.submit([1] * 98, 1)
    assert told(engine.submit([1] * 20, 1)) == expected([1] * 20, 1)


def test_cancel_while_waiting_and_in_the_middle_of_a_burst() -> None:
    engine, session = engine_of(places=2)
    handles = [engine.submit([i], 50) for i in range(5)]
    handles[3].cancel()
    assert handles[3].result().stop == ["cancelled"] and handles[3].result().ids == [[]]
    victims = [handles[0], handles[4]]

    def cancel_both(state: NativeState) -> None:
        if state.passes > 10 and victims:
            # as another thread would, while this one is in the burst
            threads = [threading.Thread(target=victim.cancel) for victim in victims]
            victims.clear()
            for thread in threads:
                thread.start()
            while not (handles[0].job.cancelled and handles[4].job.cancelled):
                pass

    session.before = cancel_both
    drain(engine)
    assert [handle.result().stop[0] for handle in handles] == [
        "cancelled",
        "length",
        "length",
        "cancelled",
        "cancelled",
    ]
    assert told(handles[1]) == expected([1], 50) and told(handles[2]) == expected([2], 50)
    check_empty(engine)


def test_several_threads_share_one_engine() -> None:
    engine, _ = engine_of(places=3, slots=300, max_queue=4)
    found: dict[int, dict[str, Any]] = {}
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for i in range(worker, 40, 8):
                while True:
                    try:
                        handle = engine.submit(prompt_of(i, 1 + i), 1 + i % 17)
                        break
                    except QueueFull:
                        engine.step()
                if i % 5 == 4:
                    next(handle)
                    handle.cancel()
                    assert handle.done
                elif i % 2:
                    found[i] = told(handle)
                else:
                    ids = [event.token for event in handle]
                    found[i] = told_after(handle, ids)
        except BaseException as error:
            errors.append(error)

    def told_after(handle: RequestHandle, ids: list[int]) -> dict[str, Any]:
        out = handle.result()
        assert out.ids[0] == ids
        return {"ids": ids, "depths": out.depths[0], "stop": out.stop[0]}

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    assert found == {i: expected(prompt_of(i, 1 + i), 1 + i % 17) for i in range(40) if i % 5 != 4}
    check_empty(engine)


@pytest.mark.parametrize("error", [LatentCoTError("the op said no"), KeyboardInterrupt(), MemoryError()])
def test_a_broken_burst_ends_the_engine_with_a_sentence(error: BaseException) -> None:
    engine, session = engine_of()
    handles = [engine.submit([i], 50) for i in range(6)]
    seen = next(handles[0])

    def fail(_state: NativeState) -> None:
        raise error

    session.before = fail
    with pytest.raises(type(error)):
        engine.step()
    assert not engine.usable and seen.token == next_of([0])
    for use in (engine.step, lambda: engine.submit([1]), handles[1].result, handles[5].result):
        with pytest.raises(LatentCoTError, match=r"the engine was stopped inside a burst .*; make a new one"):
            use()
    assert handles[0].job.sequence.ids, "what was told stays"
    for handle in handles:
        handle.cancel()
    engine.close()


def test_threads_that_wait_for_a_broken_burst_hear_of_it() -> None:
    engine, session = engine_of()
    handle = engine.submit([1], 50)
    inside, heard = threading.Event(), []

    def fail(_state: NativeState) -> None:
        inside.set()
        while len(engine._changed._waiters) < 3:  # type: ignore[attr-defined]
            pass
        raise LatentCoTError("the op said no")

    def wait(use: Callable[[], object]) -> None:
        inside.wait(30)
        try:
            use()
        except LatentCoTError as error:
            heard.append(str(error))

    session.before = fail
    threads = [threading.Thread(target=wait, args=(use,)) for use in (engine.step, handle.result, lambda: next(handle))]
    for thread in threads:
        thread.start()
    with pytest.raises(LatentCoTError, match="the op said no"):
        engine.step()
    for thread in threads:
        thread.join(30)
    assert len(heard) == 3 and all("was stopped inside a burst (the op said no)" in each for each in heard)


def test_errors_outside_a_burst_leave_it_usable() -> None:
    engine, _ = engine_of()
    handle = engine.submit([1], 5)
    for bad in ({"prompt": [99]}, {"prompt": []}, {"prompt": "text"}, {"prompt": [1], "temperature": -1.0}):
        with pytest.raises(InputError):
            engine.submit(**bad)  # type: ignore[arg-type]
    assert told(handle) == expected([1], 5)
    assert engine.step() == [] and engine.usable


def test_a_text_that_cannot_be_read_fails_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = engine_of()
    handles = [engine.submit([i], 9) for i in range(3)]

    def broken(_token: int, _depths: list[int]) -> StreamEvent:
        raise ValueError("no such token")

    monkeypatch.setattr(handles[1].job.sequence, "accept", broken)
    drain(engine)
    with pytest.raises(LatentCoTError, match="request 1 failed: no such token; submit it again"):
        handles[1].result()
    assert told(handles[0]) == expected([0], 9) and told(handles[2]) == expected([2], 9)
    check_empty(engine)


def test_a_graph_that_does_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, session = engine_of()
    monkeypatch.setattr(session, "run", lambda _state, _passes: None)
    with pytest.raises(LatentCoTError, match="returned without taking a pass"):
        engine.submit([1], 2).result()


def test_closing_ends_everything() -> None:
    with engine_of()[0] as engine:
        handles = [engine.submit([i], 50) for i in range(6)]
        next(handles[0])
    assert [handle.result().stop[0] for handle in handles] == ["cancelled"] * 6
    assert engine._scheduler is None, "the cache is free"
    with pytest.raises(LatentCoTError, match="the engine was closed; make a new one"):
        engine.submit([1])
    engine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0},
        {"max_batch": 2.0},
        {"cache_slots": 3},
        {"cache_slots": "many"},
        {"max_queue": 0},
        {"max_batch": True},
    ],
)
def test_options_are_refused_in_a_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*, it must be an integer from"):
        Engine(FakeSession(), None, **options)
