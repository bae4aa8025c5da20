"""What `bench` times of a `--target ort` bundle: the work that was asked for, in packed rows and a cache without waste."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from latentcot_export.bench import Settings, bench
from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.engines import BundleEngine
from latentcot_export.bench.measure import Test, row_of, run_once
from latentcot_export.bench.packed import PackedEngine
from latentcot_export.bench.report import engine_of
from latentcot_export.bench.workload import Batch, Depths, Workload
from latentcot_export.bundle import Bundle, open_bundle, read_report
from latentcot_export.export import export
from latentcot_export.runtime import ort_session
from tests.bench.test_measure import KEYS
from tests.cli.terminal import latentcot

Test.__test__ = False  # type: ignore[attr-defined]  # a name of the library, not a test class
SLOT = 2 * 2 * 2 * 16 * 4  # keys and values, layers, kv heads, lanes of head_dim 12, float32


@pytest.fixture(scope="module")
def native(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bench") / "native"
    return open_bundle(export(random_checkpoint, folder, target="ort", validate=False).folder)


def forced_batch(bundle: Bundle, lines: list[list[int]], prompt: int, new: int) -> Batch:
    depths = Depths("trace:x", tuple(map(tuple, lines)))
    return Workload(bundle, depths).batch(len(lines), prompt, new)


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_a_trace_is_replayed_exactly(native: Bundle, schedule: str) -> None:
    lines = np.random.default_rng(4).integers(1, 6, (7, 60)).tolist()
    batch = forced_batch(native, lines, 52, 8)  # more prompt tokens than rows of a pass
    engine = PackedEngine(native, schedule, 1)
    engine.start(batch)
    assert engine.work().depths[:, :52].tolist() == [line[:52] for line in lines]
    assert (engine.work().depths[:, 52:] == 0).all()
    engine.decode(8)
    work = engine.work()
    assert work.depths[:, :-1].tolist() == lines
    assert work.live_rows == work.computed_rows == work.cache_slots == np.sum(lines)


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_rows_against_a_hand_count(native: Bundle, schedule: str) -> None:
    # prompts of 2 tokens at depths 1 1 / 3 1 / 2 2, then two tokens at 5 1 / 1 4 / 1 1
    batch = forced_batch(native, [[1, 1, 5, 1], [3, 1, 1, 4], [2, 2, 1, 1]], 2, 2)
    engine = PackedEngine(native, schedule, 1)
    sample = run_once(engine, batch, 2)
    prompt, burst = sample.after_prompt, sample.after_burst
    assert (prompt.passes, prompt.live_rows) == (3, 10)
    # continuous: the longest sequence has 5 + 1 passes; lockstep: 5 for the first tokens and 4 for the second
    passes = 6 if schedule == "continuous" else 9
    assert burst.passes - prompt.passes == passes and burst.live_rows - prompt.live_rows == 6 + 5 + 2
    row = row_of(engine, Test(2, 2, 3), [sample], 1.0)
    assert row["occupancy"] == 1 and row["schedule"] == schedule
    assert row["kv_bytes_in_use"] == row["kv_bytes_ideal"] == SLOT * (10 + 13)
    assert row["mean_depth"] == pytest.approx(13 / 6) and row["max_depth"] == 5
    row = row_of(engine, Test(2, 0, 3), [run_once(engine, forced_batch(native, [[1], [3], [2]], 2, 0), 0)], 1.0)
    assert (row["test"], row["occupancy"], row["kv_bytes_in_use"]) == ("pp2", 1, SLOT * 12)


def test_lockstep_takes_more_passes_for_the_same_work(native: Bundle) -> None:
    batch = forced_batch(native, np.random.default_rng(5).integers(1, 6, (8, 40)).tolist(), 10, 30)
    samples = {kind: run_once(PackedEngine(native, kind, 1), batch, 30) for kind in ("continuous", "lockstep")}
    works = {kind: (sample.after_prompt, sample.after_burst) for kind, sample in samples.items()}
    assert np.array_equal(works["continuous"][1].depths, works["lockstep"][1].depths)
    assert works["continuous"][1].live_rows == works["lockstep"][1].live_rows
    passes = {kind: after.passes - before.passes for kind, (before, after) in works.items()}
    depths = works["continuous"][1].depths[:, 10:40]
    assert passes == {"continuous": depths.sum(axis=1).max(), "lockstep": depths.max(axis=0).sum()}
    assert passes["lockstep"] > 1.3 * passes["continuous"]


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_it_does_the_work_of_the_portable_graph_and_of_torch(native: Bundle, bundle: Bundle, schedule: str) -> None:
    batch = Workload(native, Depths()).batch(4, 20, 24)
    ours, portable = PackedEngine(native, schedule, 1), BundleEngine(bundle, schedule, 1)
    eager = TorchEngine.of(native, schedule)
    for engine in (ours, portable, eager):
        engine.start(batch)
        engine.decode(24)
    assert np.array_equal(ours.state.arrays["tokens"], portable.state.arrays["tokens"])
    assert np.array_equal(ours.state.arrays["tokens"], eager.tokens)
    assert np.array_equal(ours.work().depths, eager.work().depths)
    assert len(set(ours.work().depths[:, :-1].ravel())) > 2
    assert ours.work().live_rows == portable.work().live_rows == eager.work().live_rows
    assert ours.bytes_per_slot == SLOT == eager.bytes_per_slot * 16 // 12  # whole vectors of lanes
    assert ours.work().cache_slots < portable.work().cache_slots


def test_a_batch_can_begin_with_one_token_and_be_started_again(native: Bundle) -> None:
    engine = engine_of(native, "continuous", 1)
    assert isinstance(engine, PackedEngine)
    batch = Workload(native, Depths("fixed:2", ((2,),))).batch(2, 0, 3)
    for _ in range(2):
        sample = run_once(engine, batch, 3)
        assert (sample.after_prompt.live_rows, sample.after_burst.live_rows) == (4, 16)


def test_pages_of_the_table_are_given_back_now_and_then(native: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, now, released = PackedEngine(native, "continuous", 1), [0.0], []
    monkeypatch.setattr(ort_session.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(engine.session, "release", lambda: released.append(now[0]))
    engine.session._released = 0.0
    batch = Workload(native, Depths()).batch(1, 40, 2)
    for at in (1.0, 1.1, 1.2, 1.3, 3.0):
        now[0] = at
        engine.start(batch)
    # 40 prompt tokens a time: too few at 1.0 and 1.2, too soon at 1.3
    assert released == [1.1, 3.0]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_report_of_an_ort_bundle(random_checkpoint: Path, tmp_path: Path, quantize: str) -> None:
    folder = tmp_path / "bundle"
    made = export(random_checkpoint, folder, target="ort", quantize=quantize, cache_dtype="float16", validate=False)
    settings = Settings(6, 3, (1, 4), "learned", "continuous", ("torch",), 2, 0, 1)
    report = bench(made, settings)
    assert [(row["engine"], row["test"], row["batch"]) for row in report["rows"]] == [
        (engine, test, batch) for batch in (1, 4) for test in ("pp6", "tg3") for engine in ("bundle", "torch")
    ]
    for row in report["rows"][::2]:
        assert list(row) == KEYS
        assert (row["target"], row["dtype"], row["quantize"]) == ("ort", "float32", quantize)
        assert row["occupancy"] == 1 and row["kv_bytes_in_use"] == row["kv_bytes_ideal"] > 0
        assert row["kv_bytes_ideal"] % (SLOT // 2) == 0, "float16 slots are half as large"
        assert row["tokens_per_s"]["mean"] > 0 and row["passes_per_s"] > 0
    assert [row["quantize"] for row in report["rows"][1::2]] == ["none"] * 4


def test_the_command_on_an_ort_bundle(native: Bundle, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(native.folder, tmp_path / "bundle"))
    for schedule in ("continuous", "lockstep"):
        options = f"-p 4 -n 2 -b 1,3 -r 1 -w 0 --threads 1 --depth fixed:3 --schedule {schedule} -o json"
        result = latentcot("bench", bundle.folder, *options.split())
        assert result.exit_code == 0, result.stderr
        rows = json.loads(result.stdout)["rows"]
        assert [(row["test"], row["batch"]) for row in rows] == [("pp4", 1), ("tg2", 1), ("pp4", 3), ("tg2", 3)]
        assert all(row["occupancy"] == 1 and row["mean_depth"] == 3 for row in rows)
        kept = read_report(bundle, "bench.json")
        assert kept is not None and kept["rows"] == rows
