"""The plugins as nodes: their fields, and their inputs with names of dimensions, in the order of plugins/tensorrt."""

from __future__ import annotations

import dataclasses

from tests.tensorrt.harness import BF16, FLOAT, HALF, INT32, INT64, Value

# dimensions that a builder does not know
R, B, T, N, S, P = -2, -3, -4, -5, -6, -7
K, D, V, HEADS, KV_HEADS, HEAD_DIM, LANES = 3, 32, 96, 4, 2, 12, 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One node; `outputs` are (shape, type, aliased input or -1)."""

    name: str
    fields: dict[str, Value]
    inputs: dict[str, tuple[tuple[int, ...], int]]
    outputs: list[tuple[tuple[int, ...], int, int]]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [shape for shape, _ in self.inputs.values()]

    @property
    def types(self) -> list[int]:
        return [kind for _, kind in self.inputs.values()]


SEQUENCES, PER_POSITION, COUNTERS = ((B, 8), INT32), ((B, T), INT32), ((8,), INT64)


def _halt(optional: tuple[str, ...] = ("gate_logits",)) -> Case:
    every = {
        "z": ((R, D), FLOAT),
        "gate_logits": ((R, K if "weights" in optional else 1), FLOAT),
        "rows": ((R, 4), INT32),
        "reach": ((R,), FLOAT),
        "mix": ((R, D), FLOAT),
        "sequences": SEQUENCES,
        "depths": PER_POSITION,
        "forced_depth": PER_POSITION,
        "logits": ((B, P, V), FLOAT),
        "counters": COUNTERS,
        "next_input": ((R, D), FLOAT),
        "x": ((R, D), FLOAT),
        "weights": ((B, T, K), FLOAT),
    }
    left_out = {"gate_logits", "next_input", "x", "weights"} - set(optional)
    names = [name for name in every if name not in left_out]
    inputs = {name: every[name] for name in names}
    rows, wide = ((R, 4), INT32, -1), ((R, D), FLOAT, -1)
    changed = [name for name in ("sequences", "depths", "counters", "weights") if name in inputs]
    return Case(
        "RaggedHalt",
        {
            **{"fixed": 1, "inputs": sum(1 << i for i, name in enumerate(every) if name in inputs)},
            **{"tau": 0.25, "max_steps": K, "stop": 3 if "weights" in inputs else 0, "readout": 0, "skip_halted": 1},
        },
        inputs,
        [rows, wide, ((R,), FLOAT, -1), wide, rows, wide, ((R,), INT64, -1)]
        + [(*inputs[name], names.index(name)) for name in changed],
    )


def _attention(kind: int, cache: int, optional: tuple[str, ...] = ()) -> Case:
    every = {
        "qkv": ((R, (HEADS + 2 * KV_HEADS) * HEAD_DIM), kind),
        "cos": ((R, HEAD_DIM // 2), FLOAT),
        "sin": ((R, HEAD_DIM // 2), FLOAT),
        "rows": ((R, 4), INT32),
        "slots": ((B, K, T), INT32),
        "cache": ((2, N, KV_HEADS, LANES), cache),
        "weights": ((B, T, K), FLOAT),
        "q_norm": ((HEAD_DIM,), FLOAT),
        "k_norm": ((HEAD_DIM,), FLOAT),
        "counters": COUNTERS,
    }
    inputs = {name: each for i, (name, each) in enumerate(every.items()) if i < 6 or name in optional}
    return Case(
        "RaggedAttention",
        {
            **{"fixed": 1, "inputs": sum(1 << i for i, name in enumerate(every) if name in inputs), "layer": 5},
            **{"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "visibility": 0, "epsilon": 1e-5},
            **{"decode_rows": 4},
        },
        inputs,
        [((R, HEADS * HEAD_DIM), kind, -1), (*every["cache"], 5)]
        + [(*COUNTERS, len(inputs) - 1) for name in inputs if name == "counters"],
    )


def _advance() -> Case:
    inputs = {
        **{"rows": ((R, 4), INT32), "sequences": SEQUENCES, "tokens": PER_POSITION, "forced_depth": PER_POSITION},
        **{"slots": ((B, K, T), INT32), "free_slots": ((N,), INT32), "order": ((B,), INT32)},
        **{"control": ((4,), INT32), "counters": COUNTERS},
    }
    names = list(inputs)
    made = [((R, 4), INT32, -1), ((R,), INT32, -1), ((1,), INT32, -1)]
    changed = [(*inputs[name], names.index(name)) for name in ("sequences", "slots", "free_slots", "counters")]
    return Case(
        "RaggedAdvance",
        {"fixed": 1, "inputs": (1 << 9) - 1, "max_steps": K, "runs_on": 0, "token_major": 1},
        inputs,
        [*made, *changed],
    )


def _choose(optional: tuple[str, ...] = ()) -> Case:
    inputs = {
        **{"logits": ((R, V), FLOAT), "rows": ((R, 4), INT32), "sequences": SEQUENCES, "sampling": ((B, 2), FLOAT)},
        **{"tokens": PER_POSITION, "uniform": ((B, T), FLOAT), "stop_tokens": ((B, S), INT32)},
        **{"record": ((B, P, V), FLOAT), **({"counters": COUNTERS} if optional else {})},
    }
    names = list(inputs)
    changed = [
        (*inputs[name], names.index(name)) for name in ("sequences", "tokens", "record", "counters") if name in names
    ]
    return Case("ChooseToken", {"fixed": 1, "inputs": (1 << len(names)) - 1}, inputs, [((R,), INT32, -1), *changed])


CASES = {
    "advance": _advance(),
    "choose": _choose(),
    "choose-counted": _choose(("counters",)),
    "halt": _halt(),
    "halt-count": _halt(()),
    "halt-final": _halt(("gate_logits", "next_input", "x")),
    "halt-tail": _halt(("gate_logits", "weights")),
    "attention": _attention(FLOAT, FLOAT),
    "attention-half": _attention(HALF, HALF, ("q_norm", "k_norm", "counters")),
    "attention-brain": _attention(BF16, BF16, ("weights", "counters")),
    "attention-mixed": _attention(BF16, HALF, ("weights", "q_norm", "k_norm")),
}
