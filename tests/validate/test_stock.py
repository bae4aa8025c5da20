"""The stock model of transformers and our oracle at depth 1 agree, so that each can stand in for the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.validate.compare import distances
from latentcot_export.validate.runs import Oracle
from latentcot_export.validate.stock import StockModel
from latentcot_export.validate.tolerances import TOLERANCES
from tests.specs import models, recurrences


@settings(max_examples=15)
@given(models(), recurrences(), st.integers(0, 1 << 30))
def test_depth_1_is_the_stock_model(model: ModelSpec, recurrence: RecurrenceSpec, seed: int) -> None:
    tensors = random_tensors(model, recurrence, seed)
    ids = np.random.default_rng(seed).integers(0, model.vocab_size, 30)
    truth = Oracle(model, recurrence, tensors).read([ids], [np.ones(30, np.int64)])[0]
    logits = StockModel(model, recurrence, tensors).read(ids)
    assert (truth.depths == 1).all()
    assert distances(logits, truth.logits).logits.max() < TOLERANCES["float32"].logits


def test_the_comparison_can_fail() -> None:
    model = ModelSpec(64, 32, 48, 2, 4, 2, 8, 1e-5, 64)
    tensors = random_tensors(model, RecurrenceSpec(), 1)
    ids = np.arange(20)
    truth = StockModel(model, RecurrenceSpec(), tensors).read(ids)
    scaled = StockModel(model, RecurrenceSpec(embedding_scale=1.01), tensors).read(ids)
    assert distances(scaled, truth).logits.max() > TOLERANCES["float32"].logits
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * 1.001
    assert distances(StockModel(model, RecurrenceSpec(), tensors).read(ids), truth).logits.max() > 5e-5
