"""The real engine: a `--target ort` bundle gives what its portable twin gives, in any company, and survives Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from latentcot_export import Engine, LatentCoTForCausalLM
from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime import GenerateOutput, SamplingParams
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column, Status
from tests.runtime.engines import check_empty, drain
from tests.runtime.sample import Oracle, byte_tokenizer, rebundle

PROMPTS = ["the and in", "a", "in the. In", [9], "th" * 40]
OPTIONS = {"temperature": [0.0, 1.0, 2.0, 1.5, 0.0], "top_k": [0, 0, 20, 3, 0], "seed": [1, 2, 3, 4, 5], "top_p": 0.95}


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, 1 to 5 steps a token, 96 tokens, at most 512 in a sequence, 3 sequences at a time, a tokenizer."""
    from latentcot_export.export import export

    folder = tmp_path_factory.mktemp("ort")
    plain = export(random_checkpoint, folder / "plain", target="ort", validate=False)
    small = dataclasses.replace(plain.manifest.cache, max_batch=3)
    data = {"tokenizer.json": byte_tokenizer().to_str().encode()}
    return rebundle(plain.folder, folder / "text", data, eos_token_ids=(0,), cache=small)


@pytest.fixture(scope="module")
def native(bundle: Path) -> LatentCoTForCausalLM:
    return LatentCoTForCausalLM.from_pretrained(bundle)


def test_it_gives_what_the_portable_graph_gives(native: LatentCoTForCausalLM, text_model: LatentCoTForCausalLM) -> None:
    assert native.manifest.target == "ort" and text_model.manifest.target == "onnx"
    for more in ({}, {"stop": ["an", "q"]}, {"ignore_eos": True, "stop_token_ids": [5, 6]}):
        wanted = text_model.generate(PROMPTS, [60, 1, 50, 60, 200], **OPTIONS, **more)
        assert native.generate(PROMPTS, [60, 1, 50, 60, 200], **OPTIONS, **more) == wanted
        stream = native.stream(PROMPTS, [60, 1, 50, 60, 200], **OPTIONS, **more)
        events = list(stream)
        assert stream.output() == wanted
        for i in range(len(PROMPTS)):
            own = [event for event in events if event.sequence == i]
            assert [event.token for event in own] == wanted.ids[i]
            assert "".join(event.text or "" for event in own) == wanted.text[i]
            assert [event.depth for event in own] == wanted.depths[i][len(wanted.prompt_ids[i]) - 1 :]
    check_empty(native.engine)


def test_greedy_tokens_and_depths_are_the_oracles(native: LatentCoTForCausalLM, oracle: Oracle) -> None:
    prompts = [random.Random(i).choices(range(96), k=n) for i, n in enumerate((1, 7, 64, 300))]
    out = native.generate(prompts, 80, ignore_eos=True)
    for sequence, prompt, depths in zip(out.sequences, prompts, out.depths, strict=True):
        oracle.check_greedy(sequence, len(prompt), depths)
    assert {*range(1, 6)} == {depth for depths in out.depths for depth in depths}


@pytest.fixture(scope="module")
def requests() -> list[dict[str, object]]:
    draw = random.Random(6)
    return [
        {
            "prompt": draw.choices(range(96), k=draw.choice((1, 3, 10, 60, 200))),
            "max_new_tokens": draw.randint(1, 60),
            "temperature": draw.choice((0.0, 1.5)),
            "seed": i,
            "stop_token_ids": [3, 4],
        }
        for i in range(64)
    ]


@pytest.fixture(scope="module")
def alone(bundle: Path, requests: list[dict[str, object]]) -> list[GenerateOutput]:
    engine = Engine.from_pretrained(bundle, max_batch=1)
    return [engine.submit(**each).result() for each in requests]  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [None, 1500])
def test_neighbours_order_and_cancels_change_nothing(
    native: LatentCoTForCausalLM, requests: list[dict[str, object]], alone: list[GenerateOutput], slots: int | None
) -> None:
    """64 requests in random order, some cancelled, in a large cache and in one where sequences must make room."""
    engine = Engine(native.session, native.tokenizer, max_batch=12, cache_slots=slots)  # type: ignore[arg-type]
    draw, handles, cancelled = random.Random(slots), {}, set()
    for i in draw.sample(range(64), 64):
        handles[i] = engine.submit(**requests[i])  # type: ignore[arg-type]
        for _ in range(draw.randint(0, 3)):
            engine.step()
        if draw.random() < 0.2:
            victim = draw.choice([*handles])
            if not handles[victim].done:
                cancelled.add(victim)
            handles[victim].cancel()
    drain(engine)
    for i, handle in handles.items():
        out = handle.result()
        if i in cancelled:
            assert out.ids[0] == alone[i].ids[0][: len(out.ids[0])]
            assert all(a in (0, b) for a, b in zip(out.depths[0], alone[i].depths[0], strict=False))
        else:
            assert out == alone[i]
    assert len(cancelled) > 3
    check_empty(engine)


def test_several_threads_share_one_model(native: LatentCoTForCausalLM) -> None:
    wanted = [native.generate([PROMPTS[i], PROMPTS[3]], 40, seed=i, temperature=1.5) for i in range(4)]
    found: dict[int, GenerateOutput] = {}

    def work(i: int) -> None:
        found[i] = native.generate([PROMPTS[i], PROMPTS[3]], 40, seed=i, temperature=1.5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(4)] == wanted
    check_empty(native.engine)


def test_what_an_op_writes_is_there_without_a_copy(native: LatentCoTForCausalLM) -> None:
    assert isinstance(native.session, NativeSession)
    manifest = native.manifest
    state = NativeState(manifest.model, manifest.recurrence, places=2, length=64, slots=640, logit_positions=3)
    place = state.add([5, 6, 7], 40, sampling=SamplingParams(1.5, seed=1), stop_tokens=[200])
    cache = state.arrays["cache"]
    native.session.run(state, 4)
    assert state.passes == 4 and state.live_rows > 0
    held = state.arrays["slots"][place][state.arrays["slots"][place] > 0]
    assert cache[:, :, held, :, : manifest.model.head_dim].any() and not cache[..., manifest.model.head_dim :].any()
    bound = state.binding
    # more stop ids than there is room for: a new table, bound before the next call
    state.add([1], 30, stop_tokens=range(90))
    native.session.run(state, 1000)
    assert state.binding is not bound and (state.sequences[:, Column.STATUS] == Status.DONE).all()
    assert state.arrays["logits"][place].any(axis=-1).all() and state.arrays["logits"][1, 0].any()
    assert state.sequences[1, Column.STOPPED] and state.free_slots == 640
    again = NativeState(manifest.model, manifest.recurrence, places=1, length=64, slots=320)
    again.add([5, 6, 7], 40, sampling=SamplingParams(1.5, seed=1))
    native.session.run(again, 1000)
    assert again.arrays["tokens"][0, :41].tolist() == state.arrays["tokens"][place, :41].tolist()


def test_a_table_that_lies_is_told_in_one_sentence(native: LatentCoTForCausalLM) -> None:
    assert isinstance(native.session, NativeSession)
    state = NativeState(native.manifest.model, native.manifest.recurrence, places=1, length=64, slots=320)
    state.add([5], 40)
    state.sequences[0, Column.NEXT_POSITION] = 77
    with pytest.raises(LatentCoTError, match="failed to run the model"):
        native.session.run(state, 1)


def interrupt(seconds: float) -> threading.Timer:
    """Ctrl-C, as a terminal sends it, some time from now."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_a_burst_and_the_next_call_has_a_new_engine(native: LatentCoTForCausalLM) -> None:
    engine, wanted = native.engine, native.generate([1, 2], 10)
    stream = native.stream([[i] for i in range(3)], 500, ignore_eos=True)
    next(stream)
    other = engine.submit([7], 400)
    timer = interrupt(0.05)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):  # whatever this machine's speed
            for _ in stream:
                pass
            stream = native.stream([[i] for i in range(3)], 500, ignore_eos=True)
    timer.join()
    out = stream.output()
    for ids, depths in zip(out.ids, out.depths, strict=True):
        assert len(depths) == len(ids)
    if not engine.usable:  # the interrupt may have come between two bursts
        with pytest.raises(LatentCoTError, match="was stopped inside a burst"):
            other.result()
        assert native.engine is not engine
    assert native.generate([1, 2], 10) == wanted


def test_ctrl_c_inside_one_long_call(native: LatentCoTForCausalLM) -> None:
    assert isinstance(native.session, NativeSession)
    state = NativeState(native.manifest.model, native.manifest.recurrence, places=64, length=512, slots=64 * 512 * 5)
    for i in range(64):
        state.add([i], 511, forced_depth=[5] * 511)
    started = time.perf_counter()
    timer = interrupt(0.3)
    with pytest.raises(KeyboardInterrupt):
        native.session.run(state, 1 << 30)
    timer.join()
    assert time.perf_counter() - started < 5
    assert not (state.sequences[:, Column.STATUS] == Status.DONE).any(), "the call was ended, not waited for"


def test_options_of_the_model(bundle: Path, random_bundle: Path) -> None:
    model = LatentCoTForCausalLM.from_pretrained(bundle, max_batch=2, cache_slots=300)
    assert (model.engine.max_batch, model.engine.cache_slots) == (2, 300)
    assert len(model.generate([[1], [2], [3]], 20, ignore_eos=True).ids[2]) == 20
    with pytest.raises(
        InputError, match="a prompt of 300 tokens needs 304 cache slots or more and this engine has 300"
    ):
        model.generate([1] * 300, 2)
    with pytest.raises(LatentCoTError, match="take all 300 cache slots; ask for fewer tokens or give more cache_slots"):
        model.generate([1], 400, ignore_eos=True)
    check_empty(model.engine)
    with pytest.raises(InputError, match="cache_slots is 4, it must be an integer from 5"):
        LatentCoTForCausalLM.from_pretrained(bundle, cache_slots=4)
    with pytest.raises(InputError, match="cache_slots is for bundles of the target ort and this one is onnx"):
        LatentCoTForCausalLM.from_pretrained(random_bundle, cache_slots=400)
    with pytest.raises(InputError, match="max_batch is 0"):
        LatentCoTForCausalLM.from_pretrained(random_bundle, max_batch=0)
    with pytest.raises(InputError, match="has the target onnx, an engine runs ort; export it with --target ort"):
        Engine.from_pretrained(random_bundle)
    with pytest.raises(InputError, match="has no engine; export it with --target ort"):
        _ = LatentCoTForCausalLM.from_pretrained(random_bundle).engine


def test_a_closed_engine_of_a_model_is_made_anew(bundle: Path) -> None:
    model = LatentCoTForCausalLM.from_pretrained(bundle)
    wanted = model.generate("the", 9)
    model.engine.close()
    assert model.generate("the", 9) == wanted


def test_a_bundle_that_says_ort_and_is_not(random_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    portable = (random_bundle / "model.onnx").read_bytes()
    weights = (random_bundle / "model.onnx.data").read_bytes()
    lie = rebundle(bundle, tmp_path / "b", {"model.onnx": portable, "model.onnx.data": weights})
    with pytest.raises(InputError, match="its inputs and outputs are not those of a bundle of this version"):
        NativeSession(open_bundle(lie))


def test_memory_of_the_cache_is_taken_as_it_is_used(native: LatentCoTForCausalLM) -> None:
    engine = native.engine
    state = engine._scheduler.state  # type: ignore[union-attr]
    first = int(np.flatnonzero(state.arrays["cache"].any(axis=(0, 1, 3, 4)))[-1])
    for i in range(5):
        engine.submit([i] * 40, 20).result()
    assert np.flatnonzero(state.arrays["cache"].any(axis=(0, 1, 3, 4)))[-1] <= max(first, 5 * 60)
