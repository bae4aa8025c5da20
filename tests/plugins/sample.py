"""One node of the op library as a model, and a small state that every op accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

# B = 2 places, T = 6 positions, K = 3 steps, N = 8 slots, L = 2 layers, 4 heads, 2 kv heads, head_dim 6, D = 5, V = 7
PLACES, POSITIONS, STEPS, SLOTS, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCABULARY = 2, 6, 3, 8, 2, 4, 2, 6, 5, 7
LANES = 16

INPUTS = {
    "RaggedAttention": ("qkv", "cos", "sin", "rows", "slots", "cache"),
    "RaggedHalt": (
        *("z", "gate_logits", "rows", "reach", "mix", "sequences", "depths", "forced_depth", "logits", "counters"),
    ),
    "ChooseToken": ("logits", "rows", "sequences", "sampling", "tokens", "uniform", "stop_tokens", "record"),
    "RaggedAdvance": (
        *("rows", "fresh", "chosen", "sequences", "tokens", "forced_depth", "slots", "free_slots", "order"),
        *("control", "counters"),
    ),
    "AddNorm": ("x", "residual", "weight"),
    "GatedUnit": ("gate_up",),
}
OUTPUTS = {
    "RaggedAttention": {"out": "float32"},
    "RaggedHalt": {
        "next_rows": "int32",
        "next_latent": "float32",
        "next_reach": "float32",
        "next_mix": "float32",
        "head_rows": "int32",
        "head_mix": "float32",
        "head_index": "int64",
    },
    "ChooseToken": {"chosen": "int32"},
    "RaggedAdvance": {"rows_out": "int32", "fresh_out": "int32", "again": "bool"},
    "AddNorm": {"normed": "float32", "total": "float32"},
    "GatedUnit": {"gated": "float32"},
}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "RaggedAttention": {"layer": 1, "num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM},
    "RaggedHalt": {"tau": 0.25, "max_steps": STEPS},
    "ChooseToken": {},
    "RaggedAdvance": {"max_steps": STEPS},
    "AddNorm": {"epsilon": 1e-5},
    "GatedUnit": {},
}


def tables() -> dict[str, np.ndarray]:
    """Place 0 runs the prompt 3, 1, 4, of which position 0 thinks its second step and position 1 its first."""
    slots = np.full((PLACES, STEPS, POSITIONS), -1, np.int32)
    slots[0, 0, 0], slots[0, 0, 1], slots[0, 1, 0] = 5, 6, 7
    tokens = np.full((PLACES, POSITIONS), -1, np.int32)
    tokens[0, :3] = 3, 1, 4
    return {
        # status, next_position, pause, end, stopped, live_rows, top_k, length
        "sequences": np.array([[1, 2, POSITIONS, 5, 0, 2, 0, 3], [0] * 8], np.int32),
        "sampling": np.array([[0, 1]] * PLACES, np.float32),
        "tokens": tokens,
        "depths": np.zeros((PLACES, POSITIONS), np.int32),
        "forced_depth": np.zeros((PLACES, POSITIONS), np.int32),
        "uniform": np.full((PLACES, POSITIONS), 0.5, np.float32),
        "stop_tokens": np.full((PLACES, 1), -1, np.int32),
        "slots": slots,
        "free_slots": np.arange(SLOTS, dtype=np.int32),
        "order": np.array([0, -1], np.int32),
        "control": np.array([16, 16, 0, 0], np.int32),
        "counters": np.array([5, 3, 0, 0, 0, 0, 3, 0], np.int64),
        "cache": np.zeros((LAYERS, 2, SLOTS, KV_HEADS, LANES), np.float32),
        "logits": np.zeros((PLACES, 0, VOCABULARY), np.float32),
    }


def feeds(op: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of one op on `tables()`: arrays of their own, so that a call may change them."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    rows = np.array([[0, 0, 2, 7], [0, 1, 1, 6]], np.int32)
    state = tables()
    given: dict[str, dict[str, np.ndarray]] = {
        "RaggedAttention": {
            "qkv": normal(2, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
            "cos": np.cos(np.arange(2 * HEAD_DIM // 2, dtype=np.float32)).reshape(2, -1),
            "sin": np.sin(np.arange(2 * HEAD_DIM // 2, dtype=np.float32)).reshape(2, -1),
            "rows": rows,
        },
        "RaggedHalt": {
            "z": normal(2, HIDDEN),
            "gate_logits": np.array([[3], [-3]], np.float32),
            "rows": rows,
            "reach": np.array([0.5], np.float32),
            "mix": normal(1, HIDDEN),
        },
        "ChooseToken": {"logits": normal(1, VOCABULARY), "rows": np.array([[0, 2, 1, 6]], np.int32)},
        "RaggedAdvance": {
            "rows": np.array([[0, 0, 3, -1]], np.int32),
            "fresh": np.zeros(0, np.int32),
            "chosen": np.zeros(0, np.int32),
        },
        "AddNorm": {"x": normal(2, HIDDEN), "residual": normal(2, HIDDEN), "weight": normal(HIDDEN)},
        "GatedUnit": {"gate_up": normal(2, 6)},
    }
    if op == "ChooseToken":
        state["record"] = np.zeros((PLACES, 0, VOCABULARY), np.float32)
    if op == "RaggedAdvance":
        state["sequences"][0, 5] = 1
    return {name: given[op].get(name, state.get(name)) for name in INPUTS[op]}  # type: ignore[misc]


def model(op: str, values: Mapping[str, np.ndarray], left_out: tuple[str, ...] = (), **attributes: Any) -> bytes:
    """A model of one node that takes arrays like these."""
    types = {
        name: TensorProto.FLOAT16 if value.dtype == np.float16 else helper.np_dtype_to_tensor_dtype(value.dtype)
        for name, value in values.items()
    }
    names = ["" if name in left_out else name for name in INPUTS[op]]
    node = helper.make_node(op, names, list(OUTPUTS[op]), domain="latentcot", **{**ATTRIBUTES[op], **attributes})
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, types[n], [None] * values[n].ndim) for n in names if n],
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None)
            for n, kind in OUTPUTS[op].items()
        ],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("latentcot", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return made.SerializeToString()


def session(data: bytes, library: Path, threads: int = 1) -> ort.InferenceSession:
    """A session of `model` with the op library."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("latentcot.threads", str(threads))
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
