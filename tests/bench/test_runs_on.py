"""Where a halted token runs on, the time of a token is that of all its passes and not of its depth."""

from __future__ import annotations

import numpy as np
import pytest

from latentcot_export.bench import measure
from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.workload import Batch
from latentcot_export.checkpoint.random import random_tensors
from latentcot_export.spec import ModelSpec, RecurrenceSpec


@pytest.mark.parametrize(("skip", "passes"), [(True, 1), (False, 4)])
def test_a_token_takes_all_passes_where_it_runs_on(skip: bool, passes: int) -> None:
    model = ModelSpec(32, 16, 24, 1, 2, 1, 8, 1e-5, 64)
    recurrence = RecurrenceSpec(3, 2.0, skip_halted=skip)  # no gate reaches tau: every token halts after step 1
    engine = TorchEngine(model, recurrence, random_tensors(model, recurrence, 0), "continuous")
    engine.start(Batch(np.zeros((2, 3), np.int64), np.zeros((2, 9), np.int64)))
    before = engine.work()
    engine.decode(5)
    row = measure.row_of(engine, measure.Test(3, 5, 2), [measure.Sample(1.0, 1.0, before, engine.work())], 0.0)
    assert row["mean_depth"] == 1.0 and row["passes_per_s"] == 5 * passes
    assert row["tpot_ms"]["p50"] == pytest.approx(1000 / 5)
