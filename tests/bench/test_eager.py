from __future__ import annotations

import numpy as np
import pytest
import torch

from latentcot_export.bench.eager import TorchEngine
from latentcot_export.bench.stock import TransformersEngine
from latentcot_export.bench.workload import Batch
from latentcot_export.checkpoint.random import random_tensors
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec, RopeSpec

MODEL = ModelSpec(96, 48, 64, 2, 4, 2, 12, 1e-5, 256, tie_word_embeddings=True)
SHAPES = {
    "linear": (MODEL, RecurrenceSpec(4, 0.3)),
    "mlp per step": (
        ModelSpec(
            80, 32, 48, 1, 4, 4, 8, 1e-6, 128, RopeSpec("linear", factor=2.0), attention_bias=True, mlp_bias=True
        ),
        RecurrenceSpec(3, 0.2, "mlp", 8, router_shared=False, embedding_scale=1.3),
    ),
    "full depth": (MODEL, RecurrenceSpec(2, 0.0)),
    "stock": (MODEL, RecurrenceSpec(0)),
}
PROMPT, NEW, SIZE = 9, 12, 4


def batch_of(model: ModelSpec, forced: np.ndarray | int = 0) -> Batch:
    prompts = np.random.default_rng(1).integers(0, model.vocab_size, (SIZE, PROMPT))
    return Batch(prompts, np.broadcast_to(forced, (SIZE, PROMPT + NEW + 1)).astype(np.int64))


def oracle(model: LatentCoT, engine_tokens: np.ndarray, forced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths and most probable next tokens of the very tokens that an engine ran."""
    tokens = torch.from_numpy(engine_tokens[:, :-1])
    thoughts = step_major(model, tokens, torch.from_numpy(forced[:, :-1]))
    return thoughts.depths.numpy(), model.head(thoughts.mix).argmax(-1).numpy()


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", ["learned", "forced"])
def test_cached_decoding_equals_the_oracle(shape: str, schedule: str, depth: str) -> None:
    model, recurrence = SHAPES[shape]
    tensors = random_tensors(model, recurrence, seed=5)
    forced = np.zeros((SIZE, PROMPT + NEW + 1), np.int64)
    if depth == "forced":
        forced = np.random.default_rng(2).integers(1, recurrence.max_steps + 1, forced.shape)
    batch = batch_of(model, forced)
    engine = TorchEngine(model, recurrence, tensors, schedule, torch.float64)
    engine.start(batch)
    engine.decode(5)
    engine.decode(NEW - 5)  # in two bursts
    assert (engine.tokens >= 0).all()
    truth = LatentCoT.from_tensors(model, recurrence, tensors, torch.float64)
    depths, chosen = oracle(truth, engine.tokens, batch.forced_depth)
    work = engine.work()
    assert (work.depths[:, :-1] == depths).all()
    assert (engine.tokens[:, PROMPT:] == chosen[:, PROMPT - 1 :]).all()
    if depth == "forced":
        assert (depths == forced[:, :-1]).all()
    if shape == "linear" and depth == "learned":
        assert set(depths.ravel()) >= {1, 2, 3}, "the sample is not ragged and shows little"


@pytest.mark.parametrize("schedule", ["continuous", "lockstep"])
def test_the_schedule_decides_the_passes_and_not_the_result(schedule: str) -> None:
    model, recurrence = SHAPES["linear"]
    engine = TorchEngine(model, recurrence, random_tensors(model, recurrence, seed=5), schedule, torch.float64)
    forced = np.ones((SIZE, PROMPT + NEW + 1), np.int64)
    forced[0, PROMPT : PROMPT + 2] = 5, 1
    forced[1, PROMPT : PROMPT + 2] = 1, 4
    engine.start(batch_of(model, forced))
    before = engine.work()
    assert before.passes == 1 and before.live_rows == before.computed_rows == before.cache_slots == SIZE * PROMPT
    engine.decode(2)
    after = engine.work()
    # continuous: max(5 + 1, 1 + 4) passes; lockstep: 5 + 4; rows are 6 + 5 + 2 + 2, and no row is padding
    assert after.passes - before.passes == (6 if schedule == "continuous" else 9)
    assert after.live_rows - before.live_rows == after.computed_rows - before.computed_rows == 15


def test_the_packed_memory_has_no_holes() -> None:
    model, recurrence = SHAPES["linear"]
    engine = TorchEngine(model, recurrence, random_tensors(model, recurrence, seed=5), "continuous")
    forced = np.random.default_rng(3).integers(1, 6, (SIZE, PROMPT + NEW + 1))
    engine.start(batch_of(model, forced))
    engine.decode(NEW)
    rows = forced[:, :-1].sum(1)
    assert (engine.memory.used == rows).all()  # type: ignore[union-attr]
    assert ((engine.memory.step > 0).sum(1).numpy() == rows).all()
    assert engine.work().cache_slots == SIZE * engine.memory.slots >= SIZE * rows.max()  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", ["linear", "mlp per step", "stock"])
def test_transformers_is_this_model_at_depth_1(shape: str) -> None:
    model, recurrence = SHAPES[shape]
    tensors = random_tensors(model, recurrence, seed=6)
    state = torch.random.get_rng_state()
    engine = TransformersEngine(model, recurrence, tensors)
    assert (torch.random.get_rng_state() == state).all()
    engine.start(batch_of(model))
    engine.decode(NEW)
    truth = LatentCoT.from_tensors(model, recurrence, tensors, torch.float64)
    _, chosen = oracle(truth, engine.tokens, np.ones_like(engine.tokens))
    assert (engine.tokens[:, PROMPT:] == chosen[:, PROMPT - 1 :]).all()
    work = engine.work()
    assert work.passes == 1 + NEW
    assert work.live_rows == work.computed_rows == work.cache_slots == SIZE * (PROMPT + NEW)
    assert (work.depths[:, :-1] == 1).all() and (work.depths[:, -1] == 0).all()
