"""Small configs and checkpoints of every family, in its published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from latentcot_export.checkpoint import Checkpoint, write_random_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.checkpoint.read import specs_of

COMMON: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {**COMMON, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
BACKBONES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **GROUPED},
    "gpt_neox": {"model_type": "gpt_neox", **COMMON, "rotary_pct": 0.5, "rotary_emb_base": 5000},
    "qwen3": {"model_type": "qwen3", **GROUPED, "rope_theta": 1e6, "tie_word_embeddings": True},
    "ouro": {"model_type": "ouro", **GROUPED, "rope_theta": 1e6},
}
PONDERLM2 = {"recurrent_model": True, "num_latent_thoughts": 2, "scale_embeds": True, "interpolation": False}
PONDERLM = {"ponderinglm": True, "pondering_steps": 3, "scale_embeds": True, "mutiply_pondering_steps": True}
ADAPONDERLM = {"model_type": "adaponderlm", "num_iterations": 2, "scale_embeds": True}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "bias": "none", "peft_type": "LORA"}
DECIDER = {
    **{"topk": 7, "hidden_states_size": 16, "hidden_states_layer_nums": [0, 1, 2], "hidden_dims": [5, 5, 6]},
    **{"expansion_factor": 2, "dropout_rate": 0.1, "normalize_input": True, "threshold": 0.9, "max_iter": 2},
}
TAH = {
    "tah_config.json": {
        **{"embedding_key": "model.embed_tokens", "max_iter": 2, "iter_decider": "MLPIterDecider"},
        **{"iter_decider_kwargs": DECIDER, "eval_iter_decider": "iter_decider", "eval_iter_decider_kwargs": {}},
        **{"input_updater": "TrivialUpdater", "input_updater_kwargs": {"topk": 9}, "iter_attention_mode": "duo"},
        **{"output_updater": "AdditiveLogitsUpdater", "adapter": "lora", "adapter_kwargs": {}},
    },
    "lora/adapter_config.json": LORA,
}
# a name for the test -> (family, config.json in the published spelling)
SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, BACKBONES[name]) for name in ("llama", "gpt_neox", "qwen3")},
    "adaptive": ("adaptive_latent_cot", {**BACKBONES["llama"], "model_type": "adaptive_latent_cot", "max_latents": 2}),
    "ouro": ("ouro", {**BACKBONES["ouro"], "early_exit_threshold": 0.75}),
    "ouro at 1.0": ("ouro", BACKBONES["ouro"]),
    "ouro as released": ("ouro", {**BACKBONES["ouro"], "early_exit_threshold": 0.5, "latentcot_exit": "as_released"}),
    "ouro weighted": ("ouro", {**BACKBONES["ouro"], "latentcot_readout": "mixture"}),
    "ponderlm2 on llama": ("ponderlm2", {**BACKBONES["llama"], **PONDERLM2, "rms_norm_eps": 1e-1}),
    "ponderlm2 on gpt_neox": ("ponderlm2", {**BACKBONES["gpt_neox"], **PONDERLM2}),
    "ponderlm2 interpolated": (
        "ponderlm2",
        {
            **BACKBONES["llama"],
            **PONDERLM2,
            **{"interpolation": True, "interpolation_use_topk": True, "interpolation_topk": 5},
        },
    ),
    "ponderlm3": ("ponderlm3", {**BACKBONES["llama"], "model_type": "ponderlm3", "num_latent_thoughts": 2}),
    "adaponderlm on gpt_neox": ("adaponderlm", {**BACKBONES["gpt_neox"], **ADAPONDERLM}),
    "adaponderlm on llama": (
        "adaponderlm",
        {**BACKBONES["llama"], **ADAPONDERLM, "backbone": "llama", "readout": "final", "gate_activation": "relu"},
    ),
    "tah": ("tah", {**BACKBONES["qwen3"], **TAH}),
    "tah with one iteration": ("tah", {**BACKBONES["qwen3"], "tah_config.json": {"max_iter": 1}}),
    "ponderlm on llama": ("ponderlm", {**BACKBONES["llama"], **PONDERLM}),
    "ponderlm on gpt_neox": ("ponderlm", {**BACKBONES["gpt_neox"], **PONDERLM}),
}


def publish(folder: Path, sample: str, **changes: Any) -> Checkpoint:
    """A random checkpoint whose config.json is that of the sample with `changes`, in the family's published layout."""
    family, config = SAMPLES[sample]
    config = {**config, **changes}
    handler = find_family(family, sample)
    model, recurrence = specs_of(handler, config, sample)
    return write_random_checkpoint(folder, model, recurrence, family=family)


def replace_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@st.composite
def backbone_keys(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Keys of config.json of a small layer stack in the published spelling."""
    head_dim, kv_heads = draw(st.sampled_from((4, 6, 10))), draw(st.sampled_from((1, 2)))
    heads = kv_heads * draw(st.sampled_from((1, 3)))
    keys: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": draw(st.integers(8, 20)),
        "hidden_size": draw(st.sampled_from((8, 12, 15))),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "max_position_embeddings": 32,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if kind == "gpt_neox":
        keys |= {
            "hidden_size": heads * head_dim,
            "use_parallel_residual": draw(st.booleans()),
            "attention_bias": draw(st.booleans()),
            "hidden_act": draw(st.sampled_from(("gelu", "gelu_new", "gelu_fast", "silu"))),
            "rotary_pct": draw(st.sampled_from((1.0, 2 / head_dim, 4 / head_dim))),
            "rotary_emb_base": draw(st.sampled_from((10000, 500.0))),
            "layer_norm_eps": draw(st.sampled_from((1e-5, 1e-6))),
        }
    else:
        keys |= {
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "rope_theta": draw(st.sampled_from((1e4, 1e6))),
            "rms_norm_eps": draw(st.sampled_from((1e-5, 1e-6, 0.1))),
        }
    if kind in ("llama", "qwen3"):
        keys["attention_bias"] = draw(st.booleans())
    if kind == "llama":
        keys["mlp_bias"] = draw(st.booleans())
    return keys


flags = st.booleans()


@st.composite
def tah_keys(draw: st.DrawFn) -> dict[str, Any]:
    """The side files of a checkpoint with a decider; sizes that hold for every drawn backbone."""
    decider = {
        "topk": draw(st.integers(1, 8)),
        "hidden_states_layer_nums": draw(st.lists(st.integers(0, 1), min_size=1, max_size=3)),
        "hidden_dims": draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)),
        "expansion_factor": draw(st.integers(1, 3)),
        "normalize_input": draw(flags),
        "threshold": draw(st.floats(0.0, 1.0)),
    }
    facts: dict[str, Any] = {
        "max_iter": draw(st.integers(1, 3)),
        "iter_decider": "MLPIterDecider",
        "iter_decider_kwargs": decider,
        "input_updater_kwargs": {"topk": draw(st.integers(1, 8))},
    }
    if draw(flags):
        facts["output_updater"] = draw(st.sampled_from((None, "NoneUpdater", "AdditiveLogitsUpdater")))
    if draw(flags):
        return {"tah_config.json": facts}
    modules = draw(st.sampled_from(("all-linear", ["q_proj", "down_proj"], ["o_proj"])))
    config = {"r": draw(st.integers(1, 4)), "lora_alpha": draw(st.integers(1, 64)), "target_modules": modules}
    return {"tah_config.json": facts | {"adapter": "lora"}, "lora/adapter_config.json": config}


RECURRENCE_KEYS: dict[str, tuple[tuple[str, ...], st.SearchStrategy[dict[str, Any]]]] = {
    **{name: ((name,), st.just({})) for name in ("llama", "gpt_neox", "qwen3")},
    "adaptive_latent_cot": (
        ("llama",),
        st.fixed_dictionaries(
            {
                "model_type": st.just("adaptive_latent_cot"),
                "max_latents": st.integers(0, 4),
                "router_type": st.sampled_from(("linear", "mlp")),
                "router_hidden_size": st.integers(1, 5),
                "router_shared": flags,
            }
        ),
    ),
    "ouro": (
        ("ouro",),
        st.fixed_dictionaries(
            {"total_ut_steps": st.integers(1, 5), "early_exit_threshold": st.floats(0.0, 1.5)},
            optional={
                "latentcot_exit": st.sampled_from(("skip", "as_released")),
                "latentcot_readout": st.sampled_from(("last", "mixture")),
            },
        ),
    ),
    "ponderlm2": (
        ("llama", "gpt_neox"),
        st.fixed_dictionaries(
            {
                "recurrent_model": st.just(True),
                "num_latent_thoughts": st.integers(0, 4),
                "interpolation": flags,
                "scale_embeds": flags,
                "interpolation_use_topk": flags,
                "interpolation_topk": st.integers(1, 8),
            }
        ),
    ),
    "ponderlm3": (
        ("llama",),
        st.fixed_dictionaries(
            {
                "model_type": st.just("ponderlm3"),
                "num_latent_thoughts": st.integers(0, 4),
                "halt_threshold": st.sampled_from((1e-4, 0.3, 1.0)),
                "router_type": st.sampled_from(("linear", "mlp")),
                "router_activation": st.sampled_from(("gelu", "tanh")),
                "scale_embeds": flags,
                "residual_to_last": flags,
            }
        ),
    ),
    "tah": (("qwen3",), tah_keys()),
    "ponderlm": (
        ("llama", "gpt_neox"),
        st.fixed_dictionaries(
            {
                "ponderinglm": st.just(True),
                "pondering_steps": st.integers(1, 4),
                "scale_embeds": flags,
                "mutiply_pondering_steps": flags,
            }
        ),
    ),
    "adaponderlm": (
        ("llama", "gpt_neox"),
        st.fixed_dictionaries(
            {
                "num_iterations": st.integers(1, 4),
                "halt_threshold": st.sampled_from((1e-4, 0.3, 1.0)),
                "scale_embeds": flags,
                "mutiply_pondering_steps": flags,
                "gate_activation": st.sampled_from(("gelu", "relu")),
                "readout": st.sampled_from(("halt", "final")),
            },
            optional={"gate_hidden_size": st.integers(1, 5)},
        ),
    ),
}


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """(family, config.json), every family and backbone."""
    family = draw(st.sampled_from(sorted(RECURRENCE_KEYS)))
    kinds, keys = RECURRENCE_KEYS[family]
    kind = draw(st.sampled_from(kinds))
    own = {"model_type": family, "backbone": kind} if family == "adaponderlm" else {}
    return family, {**draw(backbone_keys(kind)), **own, **draw(keys)}
