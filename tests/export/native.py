"""What the tests of `--target ort` share: an exported graph to look into, and one product of it to run alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import write_random_checkpoint
from latentcot_export.export import export
from latentcot_export.export.native_layers import Weights
from latentcot_export.export.native_sheet import CONTRIB, Sheet
from latentcot_export.spec import ModelSpec, RecurrenceSpec


def native_bundle(
    folder: Path, model: ModelSpec, recurrence: RecurrenceSpec, seed: int = 3, **options: object
) -> Bundle:
    """A bundle of target ort of a random checkpoint, not validated."""
    write_random_checkpoint(folder / "checkpoint", model, recurrence, seed, "float32")
    return export(folder / "checkpoint", folder / "bundle", target="ort", validate=False, **options)  # type: ignore[arg-type]


def graphs(bundle: Bundle) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The outer graph and the body of its Loop."""
    outer = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    loop = next(node for node in outer.node if node.op_type == "Loop")
    return outer, next(each.g for each in loop.attribute if each.name == "body")


def pass_graph(bundle: Bundle) -> onnx.GraphProto:
    """The graph of the fixed form."""
    return onnx.load(bundle.path("pass.onnx"), load_external_data=False).graph


def product(matrix: torch.Tensor, bits: int | None, bias: torch.Tensor | None = None) -> ort.InferenceSession:
    """A session of y = x @ matrix^T (+ bias) as the exporter writes it; input `x` float32 `[r, in]`."""
    tensors = {"w.weight": matrix} if bias is None else {"w.weight": matrix, "w.bias": bias}
    sheet, weights = Sheet(), Weights(tensors, bits)
    y = weights.product(sheet, _rows(matrix.shape[1]), "w")
    return session(sheet, weights, y)


def session(sheet: Sheet, weights: Weights, output: ir.Value, threads: int = 1) -> ort.InferenceSession:
    """A session of the nodes written so far; its inputs are those that no node or initializer gives."""
    inputs = {
        value
        for node in sheet.nodes
        for value in node.inputs
        if value is not None and value.producer() is None and value.const_value is None
    }
    output.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        list(inputs),
        [output],
        nodes=sheet.nodes,
        initializers=list(weights.values.values()),
        opset_imports={"": 24, CONTRIB: 1},
        name="part",
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    raw = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def _rows(width: int) -> ir.Value:
    return ir.Value(name="x", shape=ir.Shape(["r", width]), type=ir.TensorType(ir.DataType.FLOAT))


def bits_depend_on_batch(run: ort.InferenceSession, x: np.ndarray, sizes: list[int]) -> list[int]:
    """The batch sizes of which some row of x `[n, in]` differs in a bit from the same row alone."""
    alone = np.concatenate([run.run(None, {"x": row[None]})[0] for row in x])
    found = []
    for size in sizes:
        for start in {0, 3, len(x) - size}:
            part = slice(start, start + size)
            if start + size <= len(x) and not np.array_equal(run.run(None, {"x": x[part]})[0], alone[part]):
                found.append(size)
                break
    return found
