"""Families at their edges: stock models of `transformers` without latent steps, and Ouro's published definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import Checkpoint
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, run
from latentcot_export.validate.packed import engine_of
from latentcot_export.validate.runs import Run
from tests.families.sample import publish
from tests.model import reference

IDS = np.random.default_rng(4).integers(0, 30, 24)


def logits_of(read: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's logits float64 `[n, V]` and depths `[n]` of IDS."""
    model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)
    with torch.no_grad():
        thoughts = run(model, torch.from_numpy(IDS)[None])
        return model.head(thoughts.mix[0]).numpy(), thoughts.depths[0].numpy()


def exported(read: Checkpoint, target: str) -> tuple[Bundle, Run]:
    bundle = export(read.folder, read.folder.parent / target, target=target, validate=False)
    return bundle, engine_of(bundle).read([IDS])[0]


@torch.no_grad()
def check_stock(
    read: Checkpoint, theirs: PreTrainedModel, embedded: torch.Tensor | None, targets: tuple[str, ...]
) -> None:
    """The oracle and the bundles of `targets` compute what the class of transformers computes in float64."""
    tokens = torch.from_numpy(IDS)[None]
    given = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
    stock = theirs.double().eval()(**given).logits[0].numpy()
    mine, depths = logits_of(read)
    assert (depths == 1).all()
    np.testing.assert_allclose(mine, stock, rtol=1e-5, atol=1e-5)  # transformers turns by float32 angles
    for target in targets:
        _, found = exported(read, target)
        assert (found.depths == 1).all() and (found.logits.argmax(1) == stock.argmax(1)).all()
        np.testing.assert_allclose(found.logits, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sample", "changes", "targets"),
    [
        ("ponderlm2 on llama", {"num_latent_thoughts": 0, "scale_embeds": False}, ("ort", "onnx")),
        ("ponderlm2 on gpt_neox", {"num_latent_thoughts": 0, "scale_embeds": False}, ("ort",)),
        ("tah with one iteration", {}, ("ort", "onnx")),
        ("tah", {"tah_config.json": {"max_iter": 1}}, ("ort",)),
    ],
)
def test_without_latent_steps_it_is_the_stock_model(
    tmp_path: Path, sample: str, changes: dict[str, Any], targets: tuple[str, ...]
) -> None:
    """transformers reads the very folder, which is a stock one with keys that it does not know."""
    read = publish(tmp_path / "c", sample, **changes)
    check_stock(read, AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float64), None, targets)


def gemma2(read: Checkpoint) -> tuple[PreTrainedModel, torch.Tensor]:
    """The class of transformers that has norms on both sides of attention and MLP, and its input for IDS.

    It multiplies normed states by 1 + weight and embeddings, where it looks them up itself, by sqrt(D), and caps logits
    unless told not to.
    """
    spec = read.model
    config = Gemma2Config(
        **{"vocab_size": spec.vocab_size, "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size},
        **{"num_hidden_layers": spec.num_layers, "num_attention_heads": spec.num_heads, "head_dim": spec.head_dim},
        **{"num_key_value_heads": spec.num_kv_heads, "query_pre_attn_scalar": spec.head_dim},
        **{"hidden_activation": "silu", "rms_norm_eps": spec.rms_norm_eps, "tie_word_embeddings": False},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "attn_implementation": "eager"},
        layer_types=["full_attention"] * spec.num_layers,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope.theta},
    )
    names = {
        "post_attention_layernorm.": "pre_feedforward_layernorm.",
        "input_layernorm_2.": "post_attention_layernorm.",
        "post_attention_layernorm_2.": "post_feedforward_layernorm.",
    }
    tensors = {}
    for name, tensor in load_file(read.folder / "model.safetensors").items():
        if "early_exit_gate" not in name:
            theirs = next((name.replace(ours, new) for ours, new in names.items() if ours in name), name)
            tensors[theirs] = tensor.double() - (1.0 if "norm" in name else 0.0)
    model = Gemma2ForCausalLM(config).double()
    model.load_state_dict(tensors)
    return model, tensors["model.embed_tokens.weight"][torch.from_numpy(IDS)][None]


def test_one_loop_of_ouro_is_the_stock_stack_with_norms_on_both_sides(tmp_path: Path) -> None:
    read = publish(tmp_path / "c", "ouro", total_ut_steps=1)
    theirs, embedded = gemma2(read)
    check_stock(read, theirs, embedded, ("ort", "onnx"))


def published_definition(read: Checkpoint, threshold: float, mixture: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[n, V]` and exit loops `[n]`, from 1, of the published tensors: every loop runs over every token.

    lambda_u = sigmoid(w . h_u + b); p_u = lambda_u * prod of (1 - lambda) before, the last one what is left; a token exits
    at the first loop at which the sum of p reaches the threshold, or the last.
    """
    tensors = {name: x.double().numpy() for name, x in load_file(read.folder / "model.safetensors").items()}
    loops, states = read.recurrence.max_steps, [tensors["model.embed_tokens.weight"][token] for token in IDS]
    hidden = []
    for _ in range(loops):
        states = reference.loop(read.model, tensors, states)
        hidden.append(np.stack(states))
    gates = [
        1 / (1 + np.exp(-(h @ tensors["model.early_exit_gate.weight"][0] + tensors["model.early_exit_gate.bias"])))
        for h in hidden
    ]
    left, shares = np.ones(len(IDS)), []
    for u in range(loops):
        shares.append(left * gates[u] if u < loops - 1 else left)
        left = left * (1 - gates[u])
    reached = np.cumsum(shares, axis=0) >= threshold
    exits = np.where(reached.any(0), reached.argmax(0) + 1, loops) if threshold < 1 else np.full(len(IDS), loops)
    if mixture:
        out = sum(share[:, None] * h for share, h in zip(shares, hidden, strict=True))
    else:
        out = np.stack(hidden)[exits - 1, np.arange(len(IDS))]
    return out @ tensors["lm_head.weight"].T, exits


@pytest.mark.parametrize(
    ("sample", "changes", "mixture"),
    [
        ("ouro at 1.0", {}, False),
        ("ouro at 1.0", {"total_ut_steps": 2}, False),
        ("ouro weighted", {}, True),
        *(("ouro as released", {"early_exit_threshold": threshold}, False) for threshold in (0.2, 0.5, 0.8, 0.95)),
    ],
    ids=str,
)
def test_ouro_where_all_loops_run_is_its_published_definition(
    tmp_path: Path, sample: str, changes: dict[str, Any], mixture: bool
) -> None:
    read = publish(tmp_path / "c", sample, **changes)
    threshold = read.config.get("early_exit_threshold", 1.0)
    wanted, exits = published_definition(read, threshold, mixture)
    mine, depths = logits_of(read)
    assert depths.tolist() == exits.tolist()
    # RoPE's frequencies are float32 in the oracle, as in the published code, and float64 in the reference
    np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)
    _, found = exported(read, "ort")
    assert found.depths.tolist() == exits.tolist()
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)


def test_where_loops_are_skipped_ouro_is_another_model_behind_the_first_early_exit(tmp_path: Path) -> None:
    """Up to the first token that exits early, and itself, nothing differs; behind it something does."""
    read = publish(tmp_path / "c", "ouro")
    wanted, exits = published_definition(read, read.config["early_exit_threshold"], False)
    mine, depths = logits_of(read)
    first = int(np.flatnonzero(exits < read.recurrence.max_steps)[0])
    np.testing.assert_allclose(mine[: first + 1], wanted[: first + 1], rtol=1e-5, atol=1e-6)
    assert depths[: first + 1].tolist() == exits[: first + 1].tolist()
    assert np.abs(mine - wanted)[first + 1 :].max() > 1e-3
