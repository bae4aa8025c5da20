"""A stream tells the tokens of `generate` early, can be left at any time, and Ctrl-C ends it within a call."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from latentcot_export import LatentCoTForCausalLM, StreamEvent
from latentcot_export.runtime.session import CallInputs
from latentcot_export.runtime.state import BatchState

PROMPTS = ["the and", "a", "in the. In", "9"]
OPTIONS = {"temperature": [0.0, 1.0, 2.0, 1.5], "seed": [1, 2, 3, 4], "stop": ["an", "q"]}


def test_events_are_what_generate_returns(text_model: LatentCoTForCausalLM) -> None:
    wanted = text_model.generate(PROMPTS, [30, 1, 50, 30], **OPTIONS)
    stream = text_model.stream(PROMPTS, [30, 1, 50, 30], **OPTIONS)
    events = list(stream)
    assert stream.output() == wanted
    assert len(set(wanted.stop)) > 1, "the sample should have several ends"
    for i in range(len(PROMPTS)):
        own = [event for event in events if event.sequence == i]
        assert [event.token for event in own] == wanted.ids[i]
        assert "".join(event.text or "" for event in own) == wanted.text[i]
        # the depth of a token is that of the position before it, where it was chosen
        assert [event.depth for event in own] == wanted.depths[i][len(wanted.prompt_ids[i]) - 1 :]
        assert [event.stop for event in own] == [None] * (len(own) - 1) + [wanted.stop[i]]


def test_without_a_tokenizer_events_have_no_text(model: LatentCoTForCausalLM) -> None:
    assert all(event.text is None for event in model.stream([1, 2], 5))


def test_the_first_token_comes_as_soon_as_the_prompt_has_run(model: LatentCoTForCausalLM) -> None:
    prompt = list(range(50))
    stream = model.stream([prompt, [1]], 200)
    assert {next(stream).sequence, next(stream).sequence} == {0, 1}
    assert stream.passes <= 5, "50 prompt tokens run together: no more passes than the deepest token has"
    third = next(stream)
    assert isinstance(third, StreamEvent)
    assert stream.passes <= 5 + 1 + 2 + 4, "bursts begin short"


def test_output_in_the_middle_is_the_beginning_of_the_whole(text_model: LatentCoTForCausalLM) -> None:
    whole = text_model.generate("the", 60, ignore_eos=True)
    stream = text_model.stream(["the", "a", "in", "the"], 60, ignore_eos=True)  # the fourth waits for a second group
    for _ in range(10):
        next(stream)
    out = stream.output()
    assert out.stop == ["cancelled"] * 4
    count = len(out.ids[0])
    assert 0 < count < 60
    assert out.ids[0] == whole.ids[0][:count]
    assert out.depths[0] == whole.depths[0][: len(out.prompt_ids[0]) + count - 1]
    assert (out.ids[3], out.depths[3], out.text[3]) == ([], [], "")
    assert stream.output() == out
    with pytest.raises(StopIteration):
        next(stream)


def test_output_before_the_first_event_has_run_nothing(model: LatentCoTForCausalLM) -> None:
    stream = model.stream([1, 2, 3], 10)
    out = stream.output()
    assert (out.ids, out.depths, out.stop, stream.passes) == ([[]], [[]], ["cancelled"], 0)


def states() -> int:
    gc.collect()
    return sum(type(each) is BatchState for each in gc.get_objects())


def test_leaving_a_stream_frees_its_caches(model: LatentCoTForCausalLM) -> None:
    before = states()
    with model.stream([1], 50) as stream:
        next(stream)
        assert states() == before + 1
    assert states() == before
    dropped = model.stream([1], 50)
    next(dropped)
    del dropped
    assert states() == before
    finished = model.stream([1], 5)
    assert len(list(finished)) == 5
    assert states() == before


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Ctrl-C, as a terminal sends it, some time into the block."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def test_ctrl_c_ends_a_call_in_the_middle(model: LatentCoTForCausalLM) -> None:
    length = model.manifest.cache.max_seq_len
    tokens = np.full((8, length), -1, np.int64)
    tokens[:, 0] = range(8)
    state = BatchState.new(model.manifest.model, model.manifest.recurrence, "float32", tokens, slots=8 * length)
    started = time.perf_counter()
    with interrupt_after(0.3), pytest.raises(KeyboardInterrupt):
        # room for all of it, so that this is one call of many seconds
        model.session.run(state, CallInputs.greedy(8, length), np.full(8, length - 1))
    assert state.arrays["passes"] == 0, "the call was ended, not waited for"
    assert time.perf_counter() - started < 5


def test_ctrl_c_leaves_the_model_as_it_was(model: LatentCoTForCausalLM) -> None:
    before, threads = states(), threading.active_count()
    wanted = model.generate([1, 2], 10)
    with interrupt_after(0.2), pytest.raises(KeyboardInterrupt):
        model.generate([[i] for i in range(64)], 400)
    assert states() == before
    assert threading.active_count() <= threads + 1, "the one thread that runs the calls"
    assert model.generate([1, 2], 10) == wanted


def test_a_stream_that_ctrl_c_ended_tells_what_there_is(model: LatentCoTForCausalLM) -> None:
    stream = model.stream([[i] for i in range(32)], 500)
    next(stream)
    with interrupt_after(0.05), pytest.raises(KeyboardInterrupt):
        for _ in stream:
            pass
    out = stream.output()
    assert "cancelled" in out.stop
    for ids, depths, stop in zip(out.ids, out.depths, out.stop, strict=True):
        # a fast sequence may be through by then
        assert (0 < len(ids) < 500) == (stop == "cancelled") and stop in ("cancelled", "length")
        assert len(depths) == len(ids) and min(depths) >= 1
