"""`generate` and `stream` over an engine of the made-up model: shared with others, left at any time, stop texts."""

from __future__ import annotations

import gc
import threading

import pytest

from latentcot_export import Engine
from latentcot_export.errors import LatentCoTError
from latentcot_export.runtime import Tokenizer
from latentcot_export.runtime.generation import EngineGeneration
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.sequence import Request
from tests.runtime.engines import check_empty, drain, engine_of, expected, prompt_of, state_of, told
from tests.runtime.fake_session import FakeSession
from tests.runtime.sample import byte_tokenizer


def requests_of(count: int, new: int = 9) -> list[Request]:
    return [Request(tuple(prompt_of(i, 1 + i % 7)), new + i % 3) for i in range(count)]


def generation_of(engine: Engine, requests: list[Request], eager: bool = True) -> EngineGeneration:
    return EngineGeneration(engine, None, requests, eager)


@pytest.mark.parametrize("eager", [True, False])
def test_many_prompts_go_through_a_small_queue(eager: bool) -> None:
    engine, session = engine_of(places=2, max_queue=1)
    requests = requests_of(25)
    stream = generation_of(engine, requests, eager)
    events = list(stream)
    out = stream.output()
    for i, request in enumerate(requests):
        wanted = expected(list(request.prompt), request.max_new_tokens)
        assert {"ids": out.ids[i], "depths": out.depths[i], "stop": out.stop[i]} == wanted
        own = [event for event in events if event.sequence == i]
        assert [event.token for event in own] == wanted["ids"] and own[-1].stop == "length"
    assert stream.passes == engine.passes
    assert (session.bursts[0] == 1) == eager, "nobody waits for the first token of `generate`"
    check_empty(engine)


def test_a_long_list_leaves_the_queue_to_others() -> None:
    engine, _ = engine_of(places=2, max_queue=3)
    stream = generation_of(engine, requests_of(50))
    next(stream)
    handle = engine.submit([1], 3)
    while not handle.done:
        next(stream)
    assert told(handle) == expected([1], 3)
    assert sum(1 for _ in stream) > 100, "most of the list was still to come"


def test_leaving_a_stream_frees_its_places_and_slots_at_once() -> None:
    engine, _ = engine_of()
    other = engine.submit([8], 40)
    with generation_of(engine, requests_of(9, 60)) as stream:
        for _ in range(7):
            next(stream)
        held = state_of(engine).slots - state_of(engine).free_slots
    assert state_of(engine).slots - state_of(engine).free_slots < held
    out = stream.output()
    assert out.stop == ["cancelled"] * 9 and sum(map(len, out.ids)) >= 7 and stream.output() == out
    for i, request in enumerate(requests_of(9, 60)):
        wanted = expected(list(request.prompt), 60)
        count = len(out.ids[i])
        assert out.ids[i] == wanted["ids"][:count]
        assert len(out.depths[i]) == (len(request.prompt) + count - 1 if count else 0)
        assert all(a in (0, b) for a, b in zip(out.depths[i], wanted["depths"], strict=False))
    assert told(other) == expected([8], 40)
    check_empty(engine)


def test_a_forgotten_stream_is_cancelled() -> None:
    engine, _ = engine_of()
    stream = generation_of(engine, requests_of(9, 60))
    next(stream)
    del stream
    gc.collect()
    check_empty(engine)
    begun = generation_of(engine, requests_of(2))
    assert begun.output().stop == ["cancelled"] * 2 and engine.passes > 0
    check_empty(engine)


def test_a_stream_forgotten_inside_a_burst_does_not_stop_it() -> None:
    engine, session = engine_of()
    streams = [generation_of(engine, requests_of(9, 60))]
    next(streams[0])
    other = engine.submit([8], 40)

    def forget(_state: NativeState) -> None:
        if streams:
            streams.clear()
            gc.collect()

    session.before = forget
    assert told(other) == expected([8], 40)
    drain(engine)
    check_empty(engine)


def test_a_failed_sequence_ends_its_generation_and_nobody_else() -> None:
    engine, _ = engine_of(slots=100, places=3)
    other = engine.submit([8], 20)
    stream = generation_of(engine, [Request((1,), 5), Request((2,), 200), Request((3,), 30)], eager=False)
    with pytest.raises(LatentCoTError, match="100 cache slots; ask for fewer tokens"):
        list(stream)
    assert told(other) == expected([8], 20)
    assert stream.output().ids[0] == expected([1], 5)["ids"]
    check_empty(engine)


def test_streams_of_several_threads_share_the_passes() -> None:
    engine, _ = engine_of(places=8, slots=4000)
    requests = requests_of(6, 30)
    alone = engine_of(places=8, slots=4000)[0]
    list(generation_of(alone, requests))
    found = {}
    begin = threading.Barrier(4)

    def work(worker: int) -> None:
        begin.wait()
        stream = generation_of(engine, requests)
        assert sum(1 for _ in stream) == sum(each.max_new_tokens for each in requests)
        found[worker] = stream.output()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and all(each == found[0] for each in found.values())
    assert found[0].ids == [expected(list(each.prompt), each.max_new_tokens)["ids"] for each in requests]
    assert engine.passes < 4 * alone.passes
    check_empty(engine)


def test_a_stop_text_ends_a_sequence_where_the_graph_has_gone_on() -> None:
    tokenizer = Tokenizer(byte_tokenizer().to_str().encode(), "sample")
    for prompt in (prompt_of(i, 5) for i in range(6)):
        engine, _ = _with_text(tokenizer)
        free = engine.submit(prompt, 60).result()
        text = free.text[0] or ""
        for place in (3, 8, 20):
            stop = text[place : place + 2]
            neighbour = engine.submit([7, 7], 50)
            handle = engine.submit(prompt, 60, stop=stop)
            out = handle.result()
            count = len(out.ids[0])
            assert out.stop == ["text"] and out.text[0] == text[: text.index(stop)] and count < 60
            assert out.ids[0] == free.ids[0][:count]
            assert out.depths[0] == free.depths[0][: 5 + count - 1], "complete, and none of what was dropped"
            assert "".join(event.text or "" for event in handle) == out.text[0]
            assert neighbour.result().ids[0] == expected([7, 7], 50)["ids"]
            check_empty(engine)


def _with_text(tokenizer: Tokenizer) -> tuple[Engine, FakeSession]:
    session = FakeSession()
    return Engine(session, tokenizer), session
