"""Writes a graph as model.onnx and one external weights file, and proves that it is a valid ONNX model."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import CheckFailed

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
# where a page of memory begins: lets a runtime map large weights; smaller ones would only gain padding
_ALIGNMENT, _ALIGN_FROM = 4096, 1 << 20


def save_graph(model: ir.Model, folder: Path) -> None:
    """model.onnx and model.onnx.data in `folder`. Errors: CheckFailed when onnx's full check refuses the graph."""
    weights = [value for value in model.graph.initializers.values() if not str(value.name).startswith("constants/")]
    assert weights, "a graph without weights is no model"
    ir.save(
        model,
        folder / GRAPH,
        external_data=WEIGHTS,
        size_threshold_bytes=256,
        alignment=_ALIGNMENT,
        align_threshold=_ALIGN_FROM,
    )
    try:
        onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0][:300]
        raise CheckFailed(
            f"the exported graph is not valid ONNX ({reason}); file an issue with `latentcot env`"
        ) from error
