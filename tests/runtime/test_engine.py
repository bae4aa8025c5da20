"""The engine over a made-up model: order, fairness, bursts, cancels, a full cache; and every slot comes back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export import StreamEvent
from latentcot_export.runtime import RequestHandle, scheduler
from latentcot_export.runtime.generation import EngineGeneration
from latentcot_export.runtime.native_tables import Column
from latentcot_export.runtime.sequence import Request
from tests.runtime.engines import check_empty, drain, engine_of, expected, prompt_of, state_of, told
from tests.runtime.fake_session import depth_of, next_of


def test_many_requests_give_what_each_gives_alone() -> None:
    engine, session = engine_of()
    wanted, handles = [], []
    for i in range(30):
        prompt, new, stop = prompt_of(i, 1 + i * 7 % 60), 1 + i * 5 % 40, (3, i)
        seed = None if i % 2 else i
        handles.append(
            engine.submit(prompt, new, stop_token_ids=stop, seed=seed or 0, temperature=0.0 if seed is None else 1.0)
        )
        wanted.append(expected(prompt, new, stop, seed))
    events = drain(engine)
    assert [told(handle) for handle in handles] == wanted
    assert {each["stop"] for each in wanted} == {"length", "eos"}, "the sample should have both ends"
    assert len(events) == sum(len(each["ids"]) for each in wanted)
    check_empty(engine)
    assert session.manifest.cache.max_batch == 4 and max(session.bursts) <= 16


def test_places_are_given_in_order_and_at_once() -> None:
    engine, session = engine_of(places=2)
    handles = [engine.submit([i + 1], 3 + 10 * (i == 0)) for i in range(6)]
    first_seen: list[int] = []
    for event in drain(engine):
        if event.sequence not in first_seen:
            first_seen.append(event.sequence)
    assert first_seen == sorted(first_seen), "first come, first served"
    yielding = [control[3] for control in session.controls]
    assert yielding[0] == 1 and yielding[-1] == 0, "bursts end early while somebody waits, and only then"
    assert yielding == sorted(yielding, reverse=True)
    # the first request had a place for long; the others went through the second one, one after the other
    assert handles[0].done and engine.passes < sum(sum(told(handle)["depths"]) for handle in handles)


@pytest.mark.parametrize("beside", [0, 3])
def test_a_short_prompt_behind_a_long_one_does_not_wait_for_it(beside: int) -> None:
    engine, _ = engine_of(slots=4000, length=1024, places=5)
    running = [engine.submit([i], 300) for i in range(beside)]
    for handle in running:
        next(handle)
    long = engine.submit(prompt_of(1, 700), 5)
    short = engine.submit([1, 2, 3], 5)
    events = [(event.sequence, event.stop) for event in drain(engine)]
    first = {index: events.index(next(e for e in events if e[0] == index)) for index in (long.index, short.index)}
    assert first[short.index] < first[long.index]
    assert events.index((short.index, "length")) < first[long.index], "it even ends before"
    if beside:
        rest = [index for index, _ in events[: first[long.index]] if index < beside]
        assert len(rest) > 20, "those that decode go on meanwhile"


def test_prompts_fill_fewer_rows_beside_decoding() -> None:
    engine, session = engine_of(slots=4000, length=1024)
    decoding = engine.submit([1], 200)
    next(decoding)
    alone, session.widest = session.widest, 0
    engine.submit(prompt_of(2, 700), 1)
    next(decoding)
    beside, session.widest = session.widest, 0
    decoding.cancel()
    drain(engine)
    assert alone == 1 < beside < session.widest <= 128


def test_the_first_token_comes_as_early_as_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BURST_SECONDS", 1e6)  # a busy machine makes bursts long, and long ones do not grow
    engine, session = engine_of()
    prompt = prompt_of(5, 100)
    handle = engine.submit(prompt, 100)
    first = next(handle)
    # the pass in which the last prompt token halts, behind those that think on before it
    assert engine.passes <= 1 + max(depth_of(prompt[: i + 1]) for i in range(100))
    assert first.token == next_of(prompt)
    begun = len(session.bursts)
    list(handle)
    assert session.bursts[begun] <= 2 and session.bursts[begun : begun + 5] == sorted(session.bursts[begun : begun + 5])
    assert max(session.bursts) == 16


def test_long_bursts_become_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BURST_SECONDS", 0.0)
    engine, session = engine_of()
    handle = engine.submit([1], 60)
    generation = EngineGeneration(engine, None, [Request((2,), 60)], eager=False)
    assert len(list(generation)) == 60 and told(handle) == expected([1], 60)
    assert set(session.bursts[5:]) == {1}


def test_a_full_cache_makes_the_youngest_wait_and_loses_nothing() -> None:
    engine, session = engine_of(slots=150, places=6)
    seen: list[int] = []
    session.before = lambda state: seen.append(int((state.sequences[:, Column.STATUS] == 1).sum()))
    prompts = [prompt_of(i, 10) for i in range(8)]
    handles = [engine.submit(prompt, 40, temperature=1.0, seed=i) for i, prompt in enumerate(prompts)]
    events = drain(engine)
    assert any(after < before for before, after in itertools.pairwise(seen)), "somebody should make room"
    for i, handle in enumerate(handles):
        wanted = expected(prompts[i], 40, seed=i)
        assert told(handle) == wanted
        assert [event.token for event in events if event.sequence == i] == wanted["ids"], "each is told once, in order"
    assert state_of(engine).counters[6] <= 150
    check_empty(engine)


def test_a_cancelled_request_keeps_what_was_told_and_frees_its_slots() -> None:
    engine, session = engine_of()
    prompt = prompt_of(3, 30)
    handles = [engine.submit(prompt, 200), engine.submit([5], 60), engine.submit([6], 5)]
    for _ in range(6):
        next(handles[0])
    free = state_of(engine).free_slots
    engine.cancel(handles[0])
    assert handles[0].done and state_of(engine).free_slots > free + 30
    out, wanted = handles[0].result(), expected(prompt, 200)
    count = len(out.ids[0])
    assert out.stop == ["cancelled"] and 6 <= count < 200 and out.ids[0] == wanted["ids"][:count]
    assert len(list(handles[0])) == count - 6, "what was told stays"
    assert out.depths[0] == wanted["depths"][: 29 + count]
    assert told(handles[1]) == expected([5], 60) and told(handles[2]) == expected([6], 5)
    handles[1].cancel()
    assert handles[1].result().stop == ["length"], "what has ended stays as it is"
    check_empty(engine)
    assert len(session.bursts) > 3


def test_depths_of_prompt_tokens_that_still_think_come_with_the_end() -> None:
    prompt = next(
        prompt
        for prompt in (prompt_of(i, 12) for i in range(1000))
        if depth_of(prompt) == 1 and max(depth_of(prompt[: i + 1]) for i in range(12)) == 4
    )
    engine, _ = engine_of()
    handle = engine.submit(prompt, 5)
    first = next(handle)
    assert first.depth == 1 and engine.passes == 1
    assert 0 in state_of(engine).arrays["depths"][0, :12]
    handle.cancel()
    out = handle.result()
    known = expected(prompt, 1)["depths"]
    assert out.depths[0] == [each if each == 1 else 0 for each in known], "those that were cut off are 0"
    again = engine.submit(prompt, 1)
    engine.step()
    assert not again.job.events, "the last token waits until every depth is known"
    assert told(again) == expected(prompt, 1)
    check_empty(engine)


@settings(max_examples=60)
@given(st.data())
def test_anything_at_any_time(data: st.DataObject) -> None:
    slots = data.draw(st.sampled_from([60, 120, 1000]), "slots")
    engine, _ = engine_of(slots=slots, places=data.draw(st.integers(1, 4), "places"))
    handles: list[RequestHandle] = []
    wanted: list[dict[str, Any]] = []
    events: list[StreamEvent] = []
    cancelled: set[int] = set()
    for _ in range(data.draw(st.integers(1, 30), "actions")):
        match data.draw(st.sampled_from(["submit", "submit", "step", "step", "cancel"])):
            case "submit":
                length, new = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
                prompt, seed, stop = prompt_of(len(handles), length), len(handles), (1, 2)
                handles.append(engine.submit(prompt, new, temperature=1.0, seed=seed, stop_token_ids=stop))
                wanted.append(expected(prompt, new, stop, seed))
            case "step":
                events += engine.step()
            case "cancel" if handles:
                handle = data.draw(st.sampled_from(handles))
                if not handle.done:
                    cancelled.add(handle.index)
                handle.cancel()
                assert handle.done
    events += drain(engine)
    check_empty(engine)
    for i, handle in enumerate(handles):
        ids = handle.job.sequence.ids
        assert ids == wanted[i]["ids"][: len(ids)]
        if handle.error is not None:
            assert sum(wanted[i]["depths"]) + 3 > slots, "only what cannot fit may fail"
        elif i in cancelled:
            shown = handle.job.sequence.depths
            assert all(a in (0, b) for a, b in zip(shown, wanted[i]["depths"], strict=False))
        else:
            assert told(handle) == wanted[i]
            assert [event.token for event in events if event.sequence == i] == ids


def test_the_session_is_told_what_was_read() -> None:
    engine, session = engine_of(length=512, slots=4000)
    for i in range(8):
        engine.submit(prompt_of(i, 100), 100)
    drain(engine)
    assert session.read == 8 * (100 + 100)
