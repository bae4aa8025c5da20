from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.engines import BundleEngine
from latentcot_export.bench.measure import Test, percentiles, row_of, run_once
from latentcot_export.bench.workload import Batch, Depths, Workload
from latentcot_export.bundle import Bundle

Test.__test__ = False  # type: ignore[attr-defined]  # a name of the library, not a test class


def forced_batch(bundle: Bundle, lines: list[list[int]], prompt: int, new: int) -> Batch:
    depths = Depths("trace:x", tuple(map(tuple, lines)))
    return Workload(bundle, depths).batch(len(lines), prompt, new)


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_a_trace_is_replayed_exactly(bundle: Bundle, schedule: str) -> None:
    lines = np.random.default_rng(4).integers(1, 6, (3, 20)).tolist()
    batch = forced_batch(bundle, lines, 12, 8)
    engine = BundleEngine(bundle, schedule, 1)
    engine.start(batch)
    assert engine.work().depths[:, :12].tolist() == [line[:12] for line in lines]
    assert (engine.work().depths[:, 12:] == 0).all()
    engine.decode(8)
    work = engine.work()
    assert work.depths[:, :-1].tolist() == lines
    assert work.live_rows == np.sum(lines)
    assert work.cache_slots >= 3 * np.sum(lines, axis=1).max()


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_passes_and_occupancy_against_a_hand_count(bundle: Bundle, schedule: str) -> None:
    # prompts of 2 tokens at depths 1 1 / 3 1 / 2 2, then two tokens at 5 1 / 1 4 / 1 1
    batch = forced_batch(bundle, [[1, 1, 5, 1], [3, 1, 1, 4], [2, 2, 1, 1]], 2, 2)
    engine = BundleEngine(bundle, schedule, 1)
    sample = run_once(engine, batch, 2)
    prompt, burst = sample.after_prompt, sample.after_burst
    # both prompt tokens start in pass 1, and the deepest takes 3 passes of 3 sequences x 2 rows
    assert (prompt.passes, prompt.live_rows, prompt.computed_rows) == (3, 10, 18)
    # continuous: the longest sequence has 5 + 1 passes; lockstep: 5 for the first tokens and 4 for the second
    passes = 6 if schedule == "continuous" else 9
    assert burst.passes - prompt.passes == passes
    assert burst.live_rows - prompt.live_rows == 6 + 5 + 2
    assert burst.computed_rows - prompt.computed_rows == 3 * passes

    row = row_of(engine, Test(2, 2, 3), [dataclasses.replace(sample, burst_seconds=0.09)] * 2, 1.0)
    assert row["occupancy"] == pytest.approx(13 / (3 * passes))
    assert row["mean_depth"] == pytest.approx(13 / 6) and row["max_depth"] == 5
    assert row["passes_per_s"] == pytest.approx(passes / 0.09)
    assert row["tokens_per_s"] == {"mean": pytest.approx(6 / 0.09), "std": pytest.approx(0)}
    # ms of each token: under lockstep every sequence waits for the deepest
    depths = [5, 1, 1, 4, 1, 1] if schedule == "continuous" else [5, 4, 5, 4, 5, 4]
    assert row["tpot_ms"] == pytest.approx(percentiles(np.tile(depths, 2) * 90 / passes))
    slot = 2 * 2 * 2 * 12 * 4  # keys and values, layers, kv heads, head_dim, float32
    assert row["kv_bytes_ideal"] == slot * (10 + 13)
    assert row["kv_bytes_in_use"] == slot * 3 * engine.state.slots

    row = row_of(engine, Test(2, 0, 3), [run_once(engine, forced_batch(bundle, [[1], [3], [2]], 2, 0), 0)], 1.0)
    assert row["test"] == "pp2"
    assert row["occupancy"] == pytest.approx(12 / 18)
    assert row["mean_depth"] == 2 and row["max_depth"] == 3
    assert np.isnan(row["tpot_ms"]["p50"]) and np.isnan(row["tokens_per_s"]["std"])


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_bundle_and_torch_do_the_same_work(bundle: Bundle, schedule: str) -> None:
    batch = Workload(bundle, Depths()).batch(4, 20, 24)
    ours, eager = BundleEngine(bundle, schedule, 1), TorchEngine.of(bundle, schedule)
    for engine in (ours, eager):
        engine.start(batch)
        engine.decode(24)
    assert (ours.state.arrays["tokens"] == eager.tokens).all()
    assert (ours.work().depths == eager.work().depths).all()
    assert len(set(ours.work().depths[:, :-1].ravel())) > 2
    assert ours.work().live_rows == eager.work().live_rows
    assert ours.bytes_per_slot == eager.bytes_per_slot
    # prompts differ (64 rows a sequence against step by step), decoding does not
    starts = [run_once(engine, batch, 24) for engine in (ours, eager)]
    assert len({each.after_burst.passes - each.after_prompt.passes for each in starts}) == 1


def test_a_batch_can_begin_with_one_token(bundle: Bundle) -> None:
    engine = BundleEngine(bundle, "continuous", 1)
    sample = run_once(engine, Workload(bundle, Depths("fixed:2", ((2,),))).batch(2, 0, 3), 3)
    assert sample.after_prompt.live_rows == 4 and sample.after_burst.live_rows == 16
