from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from latentcot_export.bench import Settings, measure
from latentcot_export.bench.engines import Work
from latentcot_export.bench.workload import Batch

SETTINGS = Settings(prompt=4, new=2, batches=(1, 3), runs=3, warmup=2)
KEYS = [
    *("engine", "schedule", "target", "dtype", "quantize", "batch", "test", "tokens_per_s", "passes_per_s", "ttft_ms"),
    *("tpot_ms", "mean_depth", "max_depth", "occupancy", "kv_bytes_in_use", "kv_bytes_ideal", "peak_rss_mib"),
]


@dataclasses.dataclass
class Counting:
    """An engine that computes nothing and notes what it is asked to do."""

    name: str
    log: list[str]
    schedule: str = "continuous"
    target: str = "none"
    dtype: str = "float32"
    quantize: str = "none"
    bytes_per_slot: int = 2

    def start(self, batch: Batch) -> None:
        self.rows, self.shape = batch.prompts.size, batch.forced_depth.shape
        self.passes = 1
        self.log.append(f"{self.name} start {batch.prompts.shape}")

    def decode(self, count: int) -> None:
        self.rows += self.shape[0] * count
        self.passes += count
        self.log.append(f"{self.name} decode {count}")

    def work(self) -> Work:
        return Work(self.passes, self.rows, 2 * self.rows, 4 * self.rows, np.ones(self.shape, np.int64))


class Prompts:
    """Stands for Workload."""

    def batch(self, size: int, prompt: int, new: int) -> Batch:
        return Batch(np.zeros((size, max(prompt, 1)), np.int64), np.zeros((size, max(prompt, 1) + new + 1), np.int64))


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)


def test_which_tests_are_run() -> None:
    names = lambda settings: [(each.name, each.batch) for each in measure.tests_of(settings)]  # noqa: E731
    assert names(SETTINGS) == [("pp4", 1), ("tg2", 1), ("pp4", 3), ("tg2", 3)]
    assert names(dataclasses.replace(SETTINGS, prompt=0)) == [("tg2", 1), ("tg2", 3)]
    assert names(dataclasses.replace(SETTINGS, new=0)) == [("pp4", 1), ("pp4", 3)]


def test_engines_take_turns_and_settle_after_each_switch() -> None:
    log: list[str] = []
    engines = [Counting("A", log), Counting("B", log)]
    batch = Prompts().batch(2, 40, 3)
    test = measure.Test(40, 3, 2)
    samples = measure.interleave(engines, batch, test, runs=2, warmup=1, tick=lambda: None)  # type: ignore[arg-type]
    assert [len(each) for each in samples] == [2, 2]
    one = [["start (2, 16)", "decode 2", "start (2, 40)", "decode 3"]]
    assert log == [f"{name} {what}" for _ in range(3) for name in "AB" for what in one[0]]


def test_one_engine_has_nobody_to_settle_after() -> None:
    log: list[str] = []
    measure.interleave([Counting("A", log)], Prompts().batch(1, 4, 0), measure.Test(4, 0, 1), 2, 1, lambda: None)  # type: ignore[list-item]
    assert log == ["A start (1, 4)"] * 3


def test_rows_of_every_test_and_engine() -> None:
    log: list[str] = []
    told: list[tuple[int, int]] = []
    built: list[int] = []

    def baselines() -> list[Counting]:
        built.append(len(log))
        return [Counting("B", log)]

    settings = dataclasses.replace(SETTINGS, baselines=("torch",))
    rows = measure.measure(
        Counting("A", log),  # type: ignore[arg-type]
        baselines,  # type: ignore[arg-type]
        Prompts(),  # type: ignore[arg-type]
        settings,
        lambda done, total: told.append((done, total)),
    )
    assert [(row["test"], row["batch"], row["engine"]) for row in rows] == [
        (test, batch, engine) for batch in (1, 3) for test in ("pp4", "tg2") for engine in "AB"
    ]
    assert built == [6], "baselines must not be in memory while the bundle's peak is measured"
    assert told == [(i + 1, len(told)) for i in range(4 * 2 * (3 + 2 + 1))]
    for row in rows:
        assert list(row) == KEYS
        assert row["occupancy"] == 0.5
        assert row["peak_rss_mib"] > 1
    last = rows[-1]
    assert last["kv_bytes_ideal"] == 2 * (12 + 6) and last["kv_bytes_in_use"] == 8 * (12 + 6)


def test_mean_and_deviation_are_over_runs() -> None:
    engine = Counting("A", [])
    samples = []
    for seconds in (1.0, 2.0):
        sample = measure.run_once(engine, Prompts().batch(3, 4, 2), 2)  # type: ignore[arg-type]
        samples.append(dataclasses.replace(sample, prompt_seconds=seconds / 10, burst_seconds=seconds))
    row = measure.row_of(engine, measure.Test(4, 2, 3), samples, 7.0)  # type: ignore[arg-type]
    assert row["tokens_per_s"] == {"mean": pytest.approx((6 + 3) / 2), "std": pytest.approx(np.std([6, 3], ddof=1))}
    assert row["passes_per_s"] == pytest.approx((2 + 1) / 2)
    assert row["ttft_ms"] == {"p50": pytest.approx(150), "p99": pytest.approx(199)}
    assert row["tpot_ms"] == {"p50": pytest.approx(750), "p99": pytest.approx(1000)}
    assert row["peak_rss_mib"] == 7.0


def test_the_peak_of_memory_begins_anew() -> None:
    from latentcot_export.bench import machine

    def peak(mib: int) -> float:
        fresh = machine.reset_peak()
        block = np.ones(mib << 17)  # 8 bytes each
        found = machine.peak_rss_mib()
        assert block[-1] == 1
        return found if fresh else pytest.skip("this system keeps one peak per process")

    before = machine.rss_bytes()["all"] / 2**20
    large = peak(256)
    assert large > before + 200
    assert peak(8) < large - 150
