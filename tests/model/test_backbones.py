"""Every ModelSpec is what it says: the models of transformers, and a reference that shares no code with the library."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors, tensor_shapes
from latentcot_export.model import LatentCoT, Memory, run
from latentcot_export.spec import ModelSpec, RecurrenceSpec, RopeSpec
from tests.model import reference
from tests.specs import backbones

# transformers turns by cosines in float32, and takes its softmax or its norms there, whatever the model is in
CLOSE = {"rtol": 0.0, "atol": 5e-6}
NEOX = ModelSpec(
    *(64, 24, 40, 2, 3, 3, 8, 1e-5, 64),
    attention_bias=True,
    mlp_bias=True,
    norm="layer",
    block="parallel",
    mlp="plain",
    activation="gelu",
    rotary_dim=2,
)
QWEN = ModelSpec(64, 24, 40, 2, 4, 2, 10, 1e-6, 64, RopeSpec(theta=1e6), qk_norm=True)
SANDWICH = ModelSpec(64, 24, 40, 2, 4, 4, 6, 1e-6, 64, RopeSpec(theta=1e6), block="sandwich")


def oracle(spec: ModelSpec, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits float64 `[B, T, V]` at depth 1."""
    model = LatentCoT.from_tensors(spec, RecurrenceSpec(), tensors, torch.float64)
    return model.head(run(model, tokens).mix)


def neox_tensors(spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of GPTNeoXForCausalLM, whose rows of q, k and v are grouped by head."""
    kept = ("input_layernorm", "post_attention_layernorm")
    renames = {
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    renames |= {name: name for name in kept}
    given = {
        "gpt_neox.embed_in.weight": tensors["model.embed_tokens.weight"],
        "gpt_neox.final_layer_norm.weight": tensors["model.norm.weight"],
        "gpt_neox.final_layer_norm.bias": tensors["model.norm.bias"],
        "lm_head.weight": tensors["model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"],
    }
    for i in range(spec.num_layers):
        for part in ("weight", "bias"):
            ours, theirs = f"model.layers.{i}.", f"gpt_neox.layers.{i}."
            if f"{ours}self_attn.q_proj.{part}" in tensors:
                each = [tensors[f"{ours}self_attn.{x}_proj.{part}"].unflatten(0, (spec.num_heads, -1)) for x in "qkv"]
                given[f"{theirs}attention.query_key_value.{part}"] = torch.cat(each, dim=1).flatten(0, 1)
            for name, other in renames.items():
                if f"{ours}{name}.{part}" in tensors:
                    given[f"{theirs}{other}.{part}"] = tensors[f"{ours}{name}.{part}"]
    return given


def transformers_logits(stock: torch.nn.Module, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    stock.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return stock.double().eval()(tokens).logits


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("attention_bias", [True, False])
@pytest.mark.parametrize("rotary_dim", [2, 4, None])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gpt_neox(parallel: bool, attention_bias: bool, rotary_dim: int | None, activation: str) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    spec = dataclasses.replace(
        NEOX,
        block="parallel" if parallel else "pre",
        attention_bias=attention_bias,
        rotary_dim=rotary_dim,
        activation=activation,
        tie_word_embeddings=parallel,
    )
    tensors = random_tensors(spec, RecurrenceSpec(), 3)
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=64,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[activation],
        use_parallel_residual=parallel,
        attention_bias=attention_bias,
        tie_word_embeddings=parallel,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": (rotary_dim or 8) / 8},
    )
    tokens = torch.randint(0, 64, (2, 50), generator=torch.Generator().manual_seed(1))
    theirs = transformers_logits(GPTNeoXForCausalLM(config), neox_tensors(spec, tensors), tokens)
    torch.testing.assert_close(oracle(spec, tensors, tokens), theirs, **CLOSE)


@pytest.mark.parametrize(("kv_heads", "bias", "tied"), [(2, False, False), (1, True, True), (4, False, True)])
def test_qwen3(kv_heads: int, bias: bool, tied: bool) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    spec = dataclasses.replace(QWEN, num_kv_heads=kv_heads, attention_bias=bias, tie_word_embeddings=tied)
    tensors = random_tensors(spec, RecurrenceSpec(), 3)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=10,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        attention_bias=bias,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    tokens = torch.randint(0, 64, (2, 50), generator=torch.Generator().manual_seed(1))
    given = tensors | ({"lm_head.weight": tensors["model.embed_tokens.weight"]} if tied else {})
    theirs = transformers_logits(Qwen3ForCausalLM(config), given, tokens)
    torch.testing.assert_close(oracle(spec, tensors, tokens), theirs, **CLOSE)


def doubles(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


@settings(max_examples=60)
@given(backbones(), st.integers(0, 1000))
def test_every_model_is_that_of_the_reference(spec: ModelSpec, seed: int) -> None:
    spec = dataclasses.replace(spec, rope=RopeSpec(theta=spec.rope.theta))
    tensors = random_tensors(spec, RecurrenceSpec(), seed)
    tokens = np.random.default_rng(seed).integers(0, spec.vocab_size, 9).tolist()
    theirs = reference.logits(spec, doubles(tensors), tokens)
    # the angles of the oracle are products in float32
    np.testing.assert_allclose(oracle(spec, tensors, torch.tensor([tokens]))[0].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", [SANDWICH, NEOX, QWEN], ids=["sandwich", "parallel", "head-norms"])
def test_loops_read_their_own_plane(spec: ModelSpec) -> None:
    """Four runs of the stack over a sequence, each from the normed states of the one before: `same` at a fixed count."""
    recurrence = RecurrenceSpec(max_latents=3, visibility="same", stop="count", readout="last")
    tensors = random_tensors(spec, recurrence, 7)
    assert not any(name.startswith("router") for name in tensors)
    tokens = list(range(3, 43, 4))
    model = LatentCoT.from_tensors(spec, recurrence, tensors, torch.float64)
    ours = model.head(run(model, torch.tensor([tokens])).mix)[0].numpy()
    np.testing.assert_allclose(ours, reference.logits(spec, doubles(tensors), tokens, loops=4), rtol=0, atol=1e-6)
    assert np.abs(ours - reference.logits(spec, doubles(tensors), tokens, loops=3)).max() > 0.1


CHANGES: list[dict[str, Any]] = [
    {"norm": "rms"},
    {"block": "pre"},
    {"block": "sandwich"},
    {"mlp": "gated"},
    {"activation": "gelu_tanh"},
    {"activation": "silu"},
    {"rotary_dim": 4},
    {"qk_norm": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_switch_changes_something(change: dict[str, Any]) -> None:
    """Guards the tests above: a switch that is ignored on both sides would pass them."""
    spec = dataclasses.replace(NEOX, **change)
    tensors = random_tensors(spec, RecurrenceSpec(), 3)
    tokens = torch.arange(20).unsqueeze(0)
    before = random_tensors(NEOX, RecurrenceSpec(), 3)
    shared = {name: before.get(name, tensor) for name, tensor in tensors.items()}
    apart = (oracle(spec, shared, tokens) - oracle(NEOX, before, tokens)).abs().max()
    assert apart > (1e-4 if change == {"activation": "gelu_tanh"} else 1e-2)


@settings(max_examples=60)
@given(backbones(), st.integers(0, 1000))
def test_random_checkpoints_are_well_scaled(spec: ModelSpec, seed: int) -> None:
    """Logits of a few units: neither all alike, nor one so far ahead that nothing could change the choice."""
    tensors = random_tensors(spec, RecurrenceSpec(), seed)
    assert list(tensors) == list(tensor_shapes(spec, RecurrenceSpec()))
    logits = oracle(spec, tensors, torch.arange(16).unsqueeze(0))[0]
    assert 0.5 < logits.std() < 6


def test_hidden_states_after_chosen_layers() -> None:
    spec = dataclasses.replace(SANDWICH, num_layers=3)
    model = LatentCoT.from_tensors(spec, RecurrenceSpec(), random_tensors(spec, RecurrenceSpec(), 1), torch.float64)
    x = model.embed(torch.arange(7).unsqueeze(0))
    position, step = torch.arange(7).unsqueeze(0), torch.ones(1, 7, dtype=torch.int64)
    memory = Memory.empty(spec, 1, x)
    z, after, kept = model.think_aloud(x, position, step, memory, [3, 0, 1])
    plain, plain_after = model.think(x, position, step, memory)
    assert torch.equal(z, plain) and all(torch.equal(a, b) for a, b in zip(after.keys, plain_after.keys, strict=True))
    assert torch.equal(kept[1], x) and torch.equal(kept[0], z)
    fewer = dataclasses.replace(spec, num_layers=2)
    tensors = {
        name: each for name, each in model.state_dict().items() if name in tensor_shapes(fewer, RecurrenceSpec())
    }
    shallow = LatentCoT.from_tensors(fewer, RecurrenceSpec(), tensors, torch.float64)
    states = shallow.think_aloud(x, position, step, Memory.empty(fewer, 1, x), [1])[2]
    assert torch.equal(states[0], kept[2])
