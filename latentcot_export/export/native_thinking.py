"""What a packed pass computes between its layers and RaggedHalt: routers, deciders, and the embedding a step expects.

Everything is float32 however the layers are stored, and gives a row the same bits whatever the other rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..spec import FeedbackSpec, RecurrenceSpec
from .native_layers import Weights
from .native_sheet import Sheet
from .portable_router import LAYER_NORM_EPS

_COLUMN_OF_STEP = 2  # of `rows`


def router(weights: Weights, sheet: Sheet, z: ir.Value, spec: RecurrenceSpec) -> ir.Value | None:
    """Gate logits `[r, 1]`, of one router per step `[r, max_latents]`, of a tail `[r, max_steps]`; None without gates."""
    if not spec.gated:
        return None
    names = ["router"] if spec.router_shared else [f"router.{j}" for j in range(spec.max_latents)]
    logits = []
    for name in names:
        x = z
        if spec.router_type == "mlp":
            x = _activated(weights, sheet, f"{name}.in", _linear(weights, sheet, z, f"{name}.in"), spec)
            name = f"{name}.out"
        logits.append(_linear(weights, sheet, x, name))
    return logits[0] if len(logits) == 1 else sheet.one("Concat", "router", *logits, axis=1)


def decider(
    weights: Weights, sheet: Sheet, states: Mapping[int, ir.Value], logits: ir.Value, spec: RecurrenceSpec
) -> ir.Value:
    """Gate logits `[r, 1]` of states `[r, D]` by number of layers and logits `[r, V]`, see DeciderSpec."""
    made = spec.decider
    assert made is not None
    wide = sheet.one("Concat", "router/states", *(states[index] for index in made.layers), axis=1)
    largest, _ = _largest(weights, sheet, "router/largest", logits, made.top_k)
    if made.normalize:
        wide = _norm(weights, sheet, wide, "router.states_norm")
        largest = sheet.one("Softmax", "router/largest", largest, axis=-1)
    both = sheet.one("Concat", "router/both", wide, _linear(weights, sheet, largest, "router.logits_in"), axis=1)
    x = _linear(weights, sheet, _linear(weights, sheet, both, "router.combined"), "router.input")
    for index in range(len(made.widths)):
        path = f"router.blocks.{index}"
        inner = _linear(weights, sheet, _norm(weights, sheet, x, f"{path}.norm"), f"{path}.in")
        out = _linear(weights, sheet, sheet.one("Gelu", f"{path}/act", inner), f"{path}.out")
        if f"{path}.change.weight" in weights.tensors:
            x = _linear(weights, sheet, x, f"{path}.change")
        x = sheet.one("Add", f"{path}/sum", x, out)
    return _linear(weights, sheet, _norm(weights, sheet, x, "router.norm"), "router.out")


def later_rows(weights: Weights, sheet: Sheet, rows: ir.Value) -> ir.Value:
    """1 for rows of a step after the first, else 0: float32 `[r, 1]`."""
    first = weights.constant("constants/one_int", np.array(1, np.int32))
    later = sheet.one("Greater", "later", step_of(weights, sheet, rows), first)
    return sheet.one("Cast", "later", later, to=int(ir.DataType.FLOAT))


def step_of(weights: Weights, sheet: Sheet, rows: ir.Value) -> ir.Value:
    """The rows' steps, int32 `[r, 1]`; -1 of a dead row."""
    column = weights.constant("constants/step_column", np.array([_COLUMN_OF_STEP], np.int64))
    return sheet.one("Gather", "step", rows, column, axis=1)


def own_gate(weights: Weights, sheet: Sheet, logits: ir.Value, rows: ir.Value, spec: RecurrenceSpec) -> ir.Value:
    """Probability of going on `[r, 1]` of each row, by the column of its step."""
    count = 1 if spec.router_shared else spec.max_latents
    if count > 1:
        one = weights.constant("constants/one_int", np.array(1, np.int32))
        first = weights.constant("constants/zero_int", np.array(0, np.int32))
        last = weights.constant("constants/last_gate", np.array(count - 1, np.int32))
        index = sheet.one(
            "Min", "feedback/index", sheet.one("Sub", "feedback/index", step_of(weights, sheet, rows), one), last
        )
        # a dead row has no step
        index = sheet.one("Max", "feedback/index", index, first)
        logits = sheet.one("GatherElements", "feedback", logits, index, axis=1)
    return _probability(weights, sheet, "feedback", logits)


def expected_embedding(
    weights: Weights,
    sheet: Sheet,
    spec: FeedbackSpec,
    logits: ir.Value,
    vocabulary: int,
    table_rows: Callable[[ir.Value | None], ir.Value],
    x: ir.Value,
    gate: ir.Value | None,
) -> ir.Value:
    """What the next step reads `[r, D]`, see FeedbackSpec: logits `[r, V]`, x `[r, D]`, gate `[r, 1]`.

    `table_rows` gives rows of the embedding table by ids, or the whole of it for None.
    """
    if spec.top_k is None or spec.top_k >= vocabulary:
        mixture = sheet.one(
            "MatMul", "feedback/mixture", sheet.one("Softmax", "feedback", logits, axis=-1), table_rows(None)
        )
    else:
        largest, ids = _largest(weights, sheet, "feedback/largest", logits, spec.top_k)
        axis = weights.constant("constants/axis_1", np.array([1], np.int64))
        share = sheet.one("Unsqueeze", "feedback", sheet.one("Softmax", "feedback", largest, axis=-1), axis)
        mixture = sheet.one(
            "Squeeze", "feedback", sheet.one("MatMul", "feedback/mixture", share, table_rows(ids)), axis
        )
    if spec.scale != 1.0:
        scale = weights.constant("constants/feedback_scale", np.array(spec.scale, np.float32))
        mixture = sheet.one("Mul", "feedback/scaled", mixture, scale)
    if spec.gated and gate is not None:
        mixture = sheet.one("Mul", "feedback/gated", mixture, gate)
    return sheet.one("Add", "feedback/next", x, mixture) if spec.residual else mixture


def _largest(weights: Weights, sheet: Sheet, path: str, logits: ir.Value, count: int) -> list[ir.Value]:
    """The largest logits of each row, falling, and their ids."""
    wanted = weights.constant(f"constants/top_{count}", np.array([count], np.int64))
    return sheet.many(
        "",
        "TopK",
        path,
        [logits, wanted],
        {"values": (ir.DataType.FLOAT, ["rows", count]), "ids": (ir.DataType.INT64, ["rows", count])},
        axis=-1,
    )


def _linear(weights: Weights, sheet: Sheet, x: ir.Value, name: str) -> ir.Value:
    matrix = weights.tensors[f"{name}.weight"].float().t().contiguous().numpy()
    return sheet.one("Gemm", name, x, weights.constant(f"{name}.weight_t", matrix), weights.vector(f"{name}.bias"))


def _norm(weights: Weights, sheet: Sheet, x: ir.Value, name: str) -> ir.Value:
    scale, bias = weights.vector(f"{name}.weight"), weights.vector(f"{name}.bias")
    return sheet.one("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=LAYER_NORM_EPS)


def _probability(weights: Weights, sheet: Sheet, path: str, logit: ir.Value) -> ir.Value:
    """1 / (1 + exp(-logit)): ONNX Runtime's Sigmoid has no relative accuracy."""
    one = weights.constant("constants/one", np.array(1.0, np.float32))
    grown = sheet.one(
        "Add", f"{path}/gate", sheet.one("Exp", f"{path}/gate", sheet.one("Neg", f"{path}/gate", logit)), one
    )
    return sheet.one("Div", f"{path}/gate", one, grown)


def _activated(weights: Weights, sheet: Sheet, path: str, x: ir.Value, spec: RecurrenceSpec) -> ir.Value:
    if spec.router_activation == "silu":
        return sheet.one("Mul", f"{path}/act", x, _probability(weights, sheet, path, x))
    return sheet.one({"relu": "Relu", "gelu": "Gelu", "tanh": "Tanh"}[spec.router_activation], f"{path}/act", x)
