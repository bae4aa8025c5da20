"""The two orders of the oracle agree, and a model that never thinks is a stock Llama."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.model import LatentCoT, step_major, token_major
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from tests.specs import ROPES, backbones, models, recurrences, thinking


def build(spec: ModelSpec, recurrence: RecurrenceSpec, seed: int) -> LatentCoT:
    return LatentCoT.from_tensors(spec, recurrence, random_tensors(spec, recurrence, seed), torch.float64)


@settings(max_examples=60)
@given(models(), recurrences(), st.integers(0, 1000), st.data())
def test_step_major_equals_token_major(
    spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, data: st.DataObject
) -> None:
    model = build(spec, recurrence, seed)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths)), -1)
    forced = torch.randint(0, recurrence.max_steps + 1, tokens.shape, generator=generator)
    if data.draw(st.booleans()):
        forced = torch.zeros_like(forced)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(0, spec.vocab_size, (length,), generator=generator)
    batch = step_major(model, tokens, forced)
    for row, length in enumerate(lengths):
        alone = token_major(model, tokens[row : row + 1, :length], forced[row : row + 1, :length])
        assert torch.equal(batch.depths[row, :length], alone.depths[0])
        assert not batch.depths[row, length:].any()
        torch.testing.assert_close(batch.mix[row, :length], alone.mix[0], rtol=1e-9, atol=1e-9)
        assert torch.equal(batch.next_reach[row, :length].isnan(), alone.next_reach[0].isnan())


# shrinking takes minutes and says little
@settings(max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(backbones(), st.integers(0, 1000), st.data())
def test_every_recurrence_is_the_same_in_both_orders_and_whatever_comes_later(
    spec: ModelSpec, seed: int, data: st.DataObject
) -> None:
    recurrence = data.draw(thinking(spec.num_layers))
    model = build(spec, recurrence, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, spec.vocab_size, (2, 7), generator=generator)
    tokens[1, 5:] = -1
    forced = torch.randint(0, recurrence.max_steps + 1, tokens.shape, generator=generator)
    forced = forced * data.draw(st.integers(0, 1))
    by_token = token_major(model, tokens, forced)
    assert (by_token.depths > 0).equal(tokens >= 0)
    others = [token_major(model, tokens[:, :4], forced[:, :4])]  # what comes later changes nothing
    if not recurrence.token_major:
        others.append(step_major(model, tokens, forced))
    for other in others:
        length = other.depths.shape[1]
        assert torch.equal(other.depths, by_token.depths[:, :length])
        torch.testing.assert_close(other.mix, by_token.mix[:, :length], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            other.next_reach, by_token.next_reach[:, :length], rtol=1e-9, atol=1e-12, equal_nan=True
        )


def test_depths_are_ragged_somewhere() -> None:
    """Guards the test above: if all random checkpoints halted alike it would prove nothing."""
    spec = ModelSpec(64, 24, 32, 2, 2, 1, 8, 1e-5, 64)
    recurrence = RecurrenceSpec(max_latents=4, halt_threshold=0.3)
    depths = step_major(build(spec, recurrence, 0), torch.arange(40).unsqueeze(0)).depths
    assert len(depths.unique()) >= 3


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.kind}-{rope.theta:g}")
@pytest.mark.parametrize("tied", [True, False])
def test_never_thinking_is_stock_llama(rope: object, tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from latentcot_export.checkpoint.families import find_family

    spec = ModelSpec(64, 24, 32, 2, 4, 2, 6, 1e-5, 64, rope, tied, not tied, tied)  # type: ignore[arg-type]
    recurrence = RecurrenceSpec(max_latents=3, halt_threshold=1.0)
    tensors = random_tensors(spec, recurrence, 5)
    model = LatentCoT.from_tensors(spec, recurrence, tensors, torch.float32)
    config = find_family("llama", "test").config(spec, RecurrenceSpec())
    stock = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})).eval()
    missing = stock.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("router")}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    tokens = torch.randint(0, 64, (2, 50), generator=torch.Generator().manual_seed(1))
    thoughts = step_major(model, tokens)
    assert (thoughts.depths == 1).all()
    with torch.no_grad():
        torch.testing.assert_close(model.head(thoughts.mix), stock(tokens).logits, rtol=1e-4, atol=1e-4)


def test_tau_zero_thinks_to_the_end() -> None:
    spec = ModelSpec(64, 24, 32, 1, 2, 1, 8, 1e-5, 64)
    recurrence = RecurrenceSpec(max_latents=5, halt_threshold=0.0)
    assert (step_major(build(spec, recurrence, 2), torch.arange(20).unsqueeze(0)).depths == 6).all()


def test_the_compare_is_strict() -> None:
    """A gate of exactly 1/2 against tau = 1/2 halts; against the next smaller tau it goes on."""
    spec = ModelSpec(8, 8, 8, 1, 1, 1, 8, 1e-5, 64)
    for tau, depth in ((0.5, 1), (0.4999999, 2), (0.25, 2), (0.2499999, 3)):
        recurrence = RecurrenceSpec(max_latents=3, halt_threshold=tau)
        tensors = random_tensors(spec, recurrence, 0)
        tensors["router.weight"].zero_()
        tensors["router.bias"].zero_()
        model = LatentCoT.from_tensors(spec, recurrence, tensors, torch.float32)
        assert step_major(model, torch.tensor([[3]])).depths.item() == depth
