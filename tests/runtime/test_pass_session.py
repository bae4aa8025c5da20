"""The fixed form on the processor: what the graph with the Loop gives, whatever the host does between two bursts."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from latentcot_export import Engine
from latentcot_export.bundle import Bundle
from latentcot_export.errors import LatentCoTError
from latentcot_export.export import export
from latentcot_export.runtime import SamplingParams
from latentcot_export.runtime.device_tables import DEVICE_LOCK, DeviceTables
from latentcot_export.runtime.faults import FAULTS
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column, Counter, Status
from latentcot_export.runtime.pass_rows import RowSets, capacity_of, is_over, least_passes, wanted_rows
from latentcot_export.runtime.pass_session import PassSession
from tests.runtime.engines import check_empty, drain, state_of
from tests.runtime.replaying import Replaying

FORMS: dict[str, Callable[[Bundle], PassSession]] = {
    "fixed": lambda bundle: PassSession(bundle, 1, "cpu"),
    "apart": Replaying,
}
PROMPTS = ([1, 2, 3, 4, 5, 6], [7, 8, 9])
ENDS = (30, 20)
SLOTS = 400


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(random_checkpoint, tmp_path_factory.mktemp("pass") / "b", target="ort", validate=False)


@pytest.fixture(scope="module")
def loop(bundle: Bundle) -> NativeSession:
    return NativeSession(bundle, 1)


@pytest.fixture(scope="module", params=FORMS)
def session(bundle: Bundle, request: pytest.FixtureRequest) -> PassSession:
    return FORMS[request.param](bundle)


def state_for(bundle: Bundle, places: int = 3, positions: int = 0) -> NativeState:
    model, recurrence = bundle.manifest.model, bundle.manifest.recurrence
    return NativeState(model, recurrence, places=places, length=40, slots=SLOTS, logit_positions=positions)


def written(session: NativeSession | PassSession, bundle: Bundle, prompt: list[int], end: int) -> list[list[int]]:
    """Tokens and depths of a prompt that runs alone."""
    state = state_for(bundle, 1)
    state.add(prompt, end)
    session.run(state, 1000)
    assert state.sequences[0, Column.STATUS] == Status.DONE
    return facts(state, 0, end)


def facts(state: NativeState, place: int, end: int) -> list[list[int]]:
    return [state.arrays["tokens"][place, : end + 1].tolist(), state.arrays["depths"][place, :end].tolist()]


def check_slots(state: NativeState) -> None:
    """Every slot lies on the stack once, or in one cell of a running place."""
    state.bring("slots", "free_slots")
    free = state.arrays["free_slots"][: state.free_slots].tolist()
    cells = state.arrays["slots"][state.sequences[:, Column.STATUS] == Status.RUNNING]
    taken = cells[..., : state.sequences[:, Column.NEXT_POSITION].max(initial=0)]
    held = taken[taken >= 0].tolist()
    assert sorted(free + held) == list(range(SLOTS))


def test_a_removed_sequence_leaves_nothing_behind_at_any_moment(
    bundle: Bundle, loop: NativeSession, session: PassSession
) -> None:
    wanted = written(loop, bundle, PROMPTS[1], ENDS[1])
    again = written(loop, bundle, [3, 2, 1], 12)
    for passes in (0, 1, 2, 3, 5, 8, 13, 21):
        state = state_for(bundle)
        for prompt, end in zip(PROMPTS, ENDS, strict=True):
            state.add(prompt, end)
        session.run(state, passes)
        before = state.live_rows
        state.remove(0)
        assert state.live_rows <= before and state.live_rows == state.sequences[1, Column.LIVE_ROWS]
        check_slots(state)
        state.add([3, 2, 1], 12)
        session.run(state, 1000)
        assert facts(state, 1, ENDS[1]) == wanted and facts(state, 0, 12) == again
        check_slots(state)
        assert state.free_slots == SLOTS and state.live_rows == 0


def test_a_truncated_sequence_runs_out_and_no_further(
    bundle: Bundle, loop: NativeSession, session: PassSession
) -> None:
    first, second = (written(loop, bundle, prompt, end) for prompt, end in zip(PROMPTS, ENDS, strict=True))
    for passes in (1, 4, 9, 14, 20):
        state = state_for(bundle)
        for prompt, end in zip(PROMPTS, ENDS, strict=True):
            state.add(prompt, end)
        session.run(state, passes)
        length = int(state.sequences[0, Column.LENGTH])
        end = max(len(PROMPTS[0]), length - 2)
        state.truncate(0, end)
        check_slots(state)
        session.run(state, 1000)
        assert (state.sequences[:2, Column.STATUS] == Status.DONE).all() and state.free_slots == SLOTS
        assert state.arrays["depths"][0, :end].tolist() == first[1][:end]
        assert facts(state, 1, ENDS[1]) == second


def test_a_pause_holds_a_sequence_and_lifting_it_goes_on(
    bundle: Bundle, loop: NativeSession, session: PassSession
) -> None:
    wanted = written(loop, bundle, PROMPTS[0], ENDS[0])
    state = state_for(bundle)
    state.add(PROMPTS[0], ENDS[0], pause=6)
    state.add([4], 5)
    for pause in (6, 7, 19, 99):
        state.pause(0, pause)
        session.run(state, 1000)
        assert state.live_rows == 0 and state.sequences[1, Column.STATUS] == Status.DONE
        assert state.sequences[0, Column.NEXT_POSITION] == min(pause, ENDS[0])
    assert facts(state, 0, ENDS[0]) == wanted


def test_what_is_recorded_is_what_the_loop_records(bundle: Bundle, loop: NativeSession, session: PassSession) -> None:
    states = []
    for each in (loop, session):
        state = state_for(bundle, positions=40)
        state.control(9, 5)
        for prompt, end in zip(PROMPTS, ENDS, strict=True):
            state.add(prompt, end, sampling=SamplingParams(1.0, 5, 0.9, seed=3), forced_depth=[2, 1, 5])
        each.run(state, 1000)
        states.append(state)
    for name in ("tokens", "depths", "logits", "sequences"):
        assert np.array_equal(states[0].arrays[name], states[1].arrays[name]), name
    assert states[0].counters[Counter.EXECUTED_ROWS] == states[1].counters[Counter.EXECUTED_ROWS]
    assert states[1].computed_rows > states[1].counters[Counter.EXECUTED_ROWS] > 0


def test_more_stop_tokens_than_there_was_room_for(bundle: Bundle, loop: NativeSession, session: PassSession) -> None:
    wanted = written(loop, bundle, PROMPTS[0], ENDS[0])
    state = state_for(bundle)
    state.add(PROMPTS[0], ENDS[0])
    while state.passes < 7 or not state.live_rows:
        session.run(state, 1)
    others = [token for token in range(96) if token not in wanted[0]][:20]
    state.add(PROMPTS[1], 20, stop_tokens=others)
    assert state.arrays["stop_tokens"].shape[1] == 32 and state.live_rows > 0
    session.run(state, 1000)
    assert facts(state, 0, ENDS[0]) == wanted


def test_a_burst_takes_as_many_passes_as_it_may_and_ends_what_is_over(bundle: Bundle, session: PassSession) -> None:
    state = state_for(bundle, 1)
    state.add([5], 3, forced_depth=[2, 2, 2])
    for taken in (1, 2, 3, 4, 5):
        session.run(state, 1)
        assert state.passes == taken and state.sequences[0, Column.STATUS] == Status.RUNNING
    # the sixth pass is the last, and the seventh finds that it was
    session.run(state, 1)
    assert state.passes == 7 and state.sequences[0, Column.STATUS] == Status.DONE
    passes = state.passes
    session.run(state, 50)
    assert state.passes == passes + 1, "an idle burst ends at once"
    session.run(state, 0)
    assert state.passes == passes + 1


def test_a_burst_yields_when_a_sequence_is_done(bundle: Bundle, session: PassSession) -> None:
    state = state_for(bundle)
    state.add([5], 2)
    state.add([6], 39)
    state.control(9, yield_when_done=True)
    session.run(state, 1000)
    assert state.sequences[:2, Column.STATUS].tolist() == [Status.DONE, Status.RUNNING]
    assert state.counters[Counter.FINISHED] == 1 and state.sequences[1, Column.LENGTH] < 39


def test_few_shapes_for_any_number_of_rows(bundle: Bundle, session: PassSession) -> None:
    assert [capacity_of(rows) for rows in (0, 1, 2, 3, 4, 5, 64, 65, 129)] == [1, 1, 2, 4, 4, 8, 64, 128, 256]
    state = state_for(bundle)
    assert wanted_rows(state) == 0 and least_passes(state) == 1 and not is_over(state)
    state.add(PROMPTS[0], 20)
    assert wanted_rows(state) == 6 and least_passes(state) == 1 + 20 - 6
    state.control(4)
    assert wanted_rows(state) == 5, "as many as control lets start, and one that decodes"
    state.pause(0, 3)
    assert wanted_rows(state) == 3
    state.pause(0, 99)
    seen = set()
    for _ in range(400):
        session.run(state, 1)
        rows = state.carried["rows"]
        seen.add(len(rows))
        alive = rows[:, 0] >= 0
        assert (alive == (np.arange(len(rows)) < state.live_rows)).all(), "live rows come first"
        assert (rows[~alive] == -1).all() and len(rows) <= 8
        assert all(not np.asarray(state.carried[n].numpy())[~alive].any() for n in ("latent", "reach", "mix"))
        if state.sequences[0, Column.STATUS] == Status.DONE:
            break
    assert {1} < seen <= {1, 2, 4, 8}


def test_a_shape_is_recorded_when_it_comes_again_and_once(bundle: Bundle) -> None:
    session = Replaying(bundle)
    state = state_for(bundle)
    state.add([1], 39)
    session.run(state, 4)
    assert not session.recorded
    for _ in range(8):
        session.run(state, 4)
    assert [sets.rows for sets in session.recorded] == [1, 1], "each of the two sets is read once"
    assert len({id(sets) for sets in session.recorded}) == 1
    assert sorted(session.recorded[0].graphs) == [1, 2]
    other = state_for(bundle)
    other.add([1], 39)
    session.run(other, 40)
    session.run(other, 40)
    assert sorted(session.recorded[-1].graphs) == [3, 4], "another state lies elsewhere"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_kernel_is_told(
    bundle: Bundle, session: PassSession, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    state = state_for(bundle)
    state.add([1], 20)
    take, count = type(session)._take, [0]

    def failing(self: PassSession, sets: object, *rest: object) -> None:
        take(self, sets, *rest)  # type: ignore[arg-type]
        count[0] += 1
        sets.tables.values["counters"].numpy()[Counter.STALLED] = fault  # type: ignore[attr-defined]

    monkeypatch.setattr(PassSession, "_take", failing)
    with pytest.raises(LatentCoTError, match=rf"{FAULTS[fault]} found values that do not .* \(fault {fault}\)") as told:
        session.run(state, 1000)
    assert count[0] <= 32, "the host looks now and then"
    engine = Engine(session, None, max_batch=2)
    with pytest.raises(LatentCoTError, match="found values that do not fit"):
        engine.submit([1], 5).result()
    assert not engine.usable and "; " in str(told.value)


def test_values_that_do_not_fit_are_told_by_the_op_on_a_processor(bundle: Bundle, session: PassSession) -> None:
    state = state_for(bundle)
    state.add([1, 2], 20)
    state.arrays["tokens"][0, 1] = 4000
    with pytest.raises(LatentCoTError, match="failed to run the model"):
        session.run(state, 100)


def test_a_state_that_another_session_has_begun(bundle: Bundle, loop: NativeSession, session: PassSession) -> None:
    state = state_for(bundle)
    state.add(PROMPTS[0], 20)
    while not state.passes or not len(state.carried["fresh"].numpy()):
        loop.run(state, 1)
    with pytest.raises(LatentCoTError, match="begun by another session"):
        session.run(state, 3)


def test_stop_texts_cancels_and_a_full_cache(bundle: Bundle, loop: NativeSession, session: PassSession) -> None:
    """Through the engine: requests that come and go while others run."""
    requests = [
        {"prompt": [i, 2 * i % 96, 5], "max_new_tokens": 20 + i, "temperature": float(i % 2), "seed": i}
        for i in range(14)
    ]
    with Engine(loop, None, max_batch=1) as engine:
        alone = [engine.submit(**each).result() for each in requests]  # type: ignore[arg-type]
    engine = Engine(session, None, max_batch=5, cache_slots=150)
    handles = []
    for i, request in enumerate(requests):
        handles.append(engine.submit(**request))  # type: ignore[arg-type]
        for _ in range(i % 3):
            engine.step()
        if i % 5 == 4:
            handles[i - 2].cancel()
    drain(engine)
    for i, (handle, wanted) in enumerate(zip(handles, alone, strict=True)):
        out = handle.result()
        assert out == wanted or (i % 5 == 2 and out.ids[0] == wanted.ids[0][: len(out.ids[0])])
    assert any(handle.job.needs for handle in handles), "somebody had to make room"
    check_empty(engine)
    assert state_of(engine).computed_rows


def test_an_interrupted_burst_ends_soon_and_the_engine_says_so(
    bundle: Bundle, session: PassSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(session, None, max_batch=2)
    handle = engine.submit([1], 400)
    handle.__next__()
    take, taken = PassSession._take, []

    def slow(self: PassSession, sets: RowSets, options: ort.RunOptions) -> None:
        taken.append(sets.rows)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        take(self, sets, options)

    monkeypatch.setattr(PassSession, "_take", slow)
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert len(taken) < 32
    monkeypatch.undo()
    with pytest.raises(LatentCoTError, match="was stopped inside a burst"):
        engine.submit([1], 4)
    assert Engine(session, None, max_batch=2).submit([1], 4).result().ids[0]


def test_a_burst_that_breaks_off_waits_for_the_passes_it_has_begun(
    bundle: Bundle, session: PassSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device they still write to tables that the caller may give back."""
    take, taken, waits = PassSession._take, [], []
    synchronize = ort.IOBinding.synchronize_outputs

    def failing(self: PassSession, sets: RowSets, options: ort.RunOptions) -> None:
        taken.append(sets)
        if len(taken) == 9:  # a capture takes six
            raise RuntimeError("no more")
        take(self, sets, options)

    def waiting(self: ort.IOBinding) -> None:
        waits.append(len(taken))
        synchronize(self)

    monkeypatch.setattr(ort.IOBinding, "synchronize_outputs", waiting)
    state = state_for(bundle)
    state.add([1], 20)
    session.run(state, 8)
    assert not waits, "the last pass of a whole burst waits itself"
    monkeypatch.setattr(PassSession, "_take", failing)
    with pytest.raises(LatentCoTError, match="no more"):
        session.run(state, 20)
    assert waits == [9]


def test_tables_on_a_device_are_made_while_nobody_captures(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session, made = Replaying(bundle), []
    tensor = DeviceTables.tensor

    def watched(self: DeviceTables, array: np.ndarray, name: str = "of rows") -> ort.OrtValue:
        made.append(DEVICE_LOCK._is_owned())  # type: ignore[attr-defined]
        return tensor(self, array, name)

    monkeypatch.setattr(DeviceTables, "tensor", watched)
    state = state_for(bundle)
    state.add([1], 20, stop_tokens=list(range(40)))
    session.run(state, 100)
    assert len(made) > 20 and all(made)


def test_threads_share_one_session(bundle: Bundle, loop: NativeSession, session: PassSession) -> None:
    with Engine(loop, None, max_batch=1) as engine:
        wanted = [engine.submit([i], 15).result() for i in range(6)]
    found = {}

    def work(i: int) -> None:
        with Engine(session, None, max_batch=2) as own:
            found[i] = own.submit([i], 15).result()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == wanted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_cache_type_of_the_bundle_is_the_table_s(random_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    bundle = export(random_checkpoint, tmp_path / "b", target="ort", cache_dtype=dtype, validate=False)
    outputs = []
    for session in (NativeSession(bundle, 1), PassSession(bundle, 1, "cpu"), Replaying(bundle)):
        with Engine(session, None, max_batch=2) as engine:
            outputs.append([dataclasses.asdict(engine.submit([i, 3], 20).result()) for i in range(3)])
    assert outputs[0] == outputs[1] == outputs[2]
