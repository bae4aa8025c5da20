"""Any ModelSpec at depth 1, once more: NumPy in float64, one token, one head at a time, no code shared with the library."""

from __future__ import annotations

import math

import numpy as np

from latentcot_export.spec import ModelSpec

Tensors = dict[str, np.ndarray]


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def linear(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    y = tensors[f"{name}.weight"] @ x
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt((x * x).sum() / len(x) + eps) * weight


def norm(spec: ModelSpec, tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    weight = tensors[f"{name}.weight"]
    if spec.norm == "rms":
        return rms(x, weight, spec.rms_norm_eps)
    centred = x - x.sum() / len(x)
    return centred / math.sqrt((centred**2).sum() / len(x) + spec.rms_norm_eps) * weight + tensors[f"{name}.bias"]


def turn(x: np.ndarray, position: int, rotary_dim: int, theta: float) -> np.ndarray:
    y, half = x.copy(), rotary_dim // 2
    for i in range(half):
        angle = position * theta ** (-2 * i / rotary_dim)
        a, b = x[i], x[i + half]
        y[i] = a * math.cos(angle) - b * math.sin(angle)
        y[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return y


def mlp(spec: ModelSpec, tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    act, up = ACTIVATIONS[spec.activation], linear(tensors, f"{name}.up_proj", x)
    inner = act(linear(tensors, f"{name}.gate_proj", x)) * up if spec.mlp == "gated" else act(up)
    return linear(tensors, f"{name}.down_proj", inner)


def attention(spec: ModelSpec, tensors: Tensors, name: str, states: list[np.ndarray]) -> list[np.ndarray]:
    """What attention gives each token; every one reads those before it and itself."""

    def heads(which: str, x: np.ndarray, position: int) -> list[np.ndarray]:
        parts = np.split(
            linear(tensors, f"{name}.{which}_proj", x), spec.num_heads if which == "q" else spec.num_kv_heads
        )
        if which == "v":
            return parts
        if spec.qk_norm:
            parts = [rms(part, tensors[f"{name}.{which}_norm.weight"], spec.rms_norm_eps) for part in parts]
        return [turn(part, position, spec.rotary_dim or spec.head_dim, spec.rope.theta) for part in parts]

    queries, keys, values = ([heads(which, x, t) for t, x in enumerate(states)] for which in "qkv")
    given = []
    for t in range(len(states)):
        mixed = []
        for head in range(spec.num_heads):
            own = head // (spec.num_heads // spec.num_kv_heads)
            scores = np.array([queries[t][head] @ keys[s][own] for s in range(t + 1)]) / math.sqrt(spec.head_dim)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            mixed.append(sum(weight * values[s][own] for s, weight in enumerate(weights)))
        given.append(linear(tensors, f"{name}.o_proj", np.concatenate(mixed)))
    return given


def layer(spec: ModelSpec, tensors: Tensors, name: str, states: list[np.ndarray]) -> list[np.ndarray]:
    before, after = f"{name}.input_layernorm", f"{name}.post_attention_layernorm"
    mixed = attention(spec, tensors, f"{name}.self_attn", [norm(spec, tensors, before, x) for x in states])
    made = []
    for x, a in zip(states, mixed, strict=True):
        if spec.block == "parallel":
            made.append(x + a + mlp(spec, tensors, f"{name}.mlp", norm(spec, tensors, after, x)))
            continue
        sandwich = spec.block == "sandwich"
        x = x + (norm(spec, tensors, f"{before}_2", a) if sandwich else a)
        m = mlp(spec, tensors, f"{name}.mlp", norm(spec, tensors, after, x))
        made.append(x + (norm(spec, tensors, f"{after}_2", m) if sandwich else m))
    return made


def loop(spec: ModelSpec, tensors: Tensors, states: list[np.ndarray]) -> list[np.ndarray]:
    """The whole stack once, over as many tokens as there are states; with the final norm."""
    for index in range(spec.num_layers):
        states = layer(spec, tensors, f"model.layers.{index}", states)
    return [norm(spec, tensors, "model.norm", x) for x in states]


def logits(spec: ModelSpec, tensors: Tensors, tokens: list[int], loops: int = 1) -> np.ndarray:
    """`[n, V]` after `loops` runs of the stack, each over what the one before it gave. For RoPE of kind default."""
    table = tensors["model.embed_tokens.weight"]
    states = [table[token] for token in tokens]
    for _ in range(loops):
        states = loop(spec, tensors, states)
    head = table if spec.tie_word_embeddings else tensors["lm_head.weight"]
    return np.stack([head @ x for x in states])
