"""The stock model of transformers and our oracle at depth 1 agree, so that each can stand in for the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.errors import InputError
from latentcot_export.spec import ACTIVATIONS, ModelSpec, RecurrenceSpec
from latentcot_export.validate.compare import distances
from latentcot_export.validate.runs import Oracle
from latentcot_export.validate.stock import StockModel, build_stock
from latentcot_export.validate.tolerances import TOLERANCES
from tests.specs import models, recurrences


@st.composite
def stock_models(draw: st.DrawFn) -> ModelSpec:
    """What some class of transformers computes."""
    spec = draw(models())
    kind = draw(st.sampled_from(("plain", "head norms", "layer norms")))
    if kind == "head norms":
        return dataclasses.replace(spec, qk_norm=True, mlp_bias=False)
    if kind == "layer norms":
        return dataclasses.replace(
            spec,
            hidden_size=spec.num_heads * spec.head_dim,
            num_kv_heads=spec.num_heads,
            mlp_bias=True,
            norm="layer",
            block=draw(st.sampled_from(("pre", "parallel"))),
            mlp="plain",
            activation=draw(st.sampled_from(ACTIVATIONS)),
            rotary_dim=draw(st.sampled_from((None, 2))) if spec.rope.kind != "dynamic" else None,
        )
    return spec


@settings(max_examples=25)
@given(stock_models(), recurrences(), st.integers(0, 1 << 30))
def test_depth_1_is_the_stock_model(model: ModelSpec, recurrence: RecurrenceSpec, seed: int) -> None:
    tensors = random_tensors(model, recurrence, seed)
    ids = np.random.default_rng(seed).integers(0, model.vocab_size, 30)
    truth = Oracle(model, recurrence, tensors).read([ids], [np.ones(30, np.int64)])[0]
    logits = StockModel(model, recurrence, tensors).read(ids)
    assert (truth.depths == 1).all()
    assert distances(logits, truth.logits).logits.max() < TOLERANCES["float32"].logits


@pytest.mark.parametrize(
    "change",
    [{"block": "sandwich"}, {"norm": "layer"}, {"activation": "gelu"}, {"rotary_dim": 4}, {"mlp": "plain"}],
    ids=str,
)
def test_a_stack_of_its_own_is_not_compared(change: dict[str, Any]) -> None:
    model = ModelSpec(64, 32, 48, 2, 4, 2, 8, 1e-5, 64, **change)
    stock = StockModel(model, RecurrenceSpec(), random_tensors(model, RecurrenceSpec(), 1))
    assert stock.absent is not None and "no stock family of checkpoints has this layer stack" in stock.absent
    with pytest.raises(InputError, match="no stock family"):
        stock.read(np.arange(4))


def test_building_leaves_the_random_state_alone() -> None:
    model = ModelSpec(64, 32, 48, 2, 4, 2, 8, 1e-5, 64)
    before = torch.random.get_rng_state()
    build_stock(model, random_tensors(model, RecurrenceSpec(), 1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_comparison_can_fail() -> None:
    model = ModelSpec(64, 32, 48, 2, 4, 2, 8, 1e-5, 64)
    tensors = random_tensors(model, RecurrenceSpec(), 1)
    ids = np.arange(20)
    truth = StockModel(model, RecurrenceSpec(), tensors).read(ids)
    scaled = StockModel(model, RecurrenceSpec(embedding_scale=1.01), tensors).read(ids)
    assert distances(scaled, truth).logits.max() > TOLERANCES["float32"].logits
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * 1.001
    assert distances(StockModel(model, RecurrenceSpec(), tensors).read(ids), truth).logits.max() > 5e-5
