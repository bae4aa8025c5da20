"""Writes graphs beside one external weights file, and proves that they are valid ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import CheckFailed

GRAPH, PASS, WEIGHTS = "model.onnx", "pass.onnx", "model.onnx.data"
_INLINE = 256  # bytes of an initializer, from which on it lies in the weights file
# where a page of memory begins: lets a runtime map large weights; smaller ones would only gain padding
_ALIGNMENT, _ALIGN_FROM = 4096, 1 << 20


def save_graph(model: ir.Model, folder: Path, views: Mapping[ir.Value, ir.Value] | None = None) -> None:
    """model.onnx and model.onnx.data in `folder`; the model's initializers are external tensors afterwards.

    `views` are values to become initializers that share the bytes of another one: view -> owner. Errors: CheckFailed when
    onnx's full check refuses the graph.
    """
    weights = [value for value in model.graph.initializers.values() if not str(value.name).startswith("constants/")]
    assert weights, "a graph without weights is no model"
    ir.external_data.unload_from_model(
        model, folder, WEIGHTS, size_threshold_bytes=_INLINE, alignment=_ALIGNMENT, align_threshold=_ALIGN_FROM
    )
    _save(model, folder, GRAPH, views or {})


def save_beside(model: ir.Model, folder: Path, views: Mapping[ir.Value, ir.Value]) -> None:
    """pass.onnx in `folder`: a graph whose weights are those that `save_graph` has stored for another; none is written.

    `views` and errors: see `save_graph`.
    """
    for name, value in model.graph.initializers.items():
        stored = value.const_value
        assert stored is not None and (isinstance(stored, ir.ExternalTensor) or stored.nbytes <= _INLINE), name
    _save(model, folder, PASS, views)


def _save(model: ir.Model, folder: Path, name: str, views: Mapping[ir.Value, ir.Value]) -> None:
    for view, owner in views.items():
        view.const_value = _view(view, owner)
        model.graph.register_initializer(view)
    ir.save(model, folder / name)
    try:
        onnx.checker.check_model(str(folder / name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0][:300]
        raise CheckFailed(
            f"the exported graph {name} is not valid ONNX ({reason}); file an issue with `latentcot env`"
        ) from error


def _view(view: ir.Value, owner: ir.Value) -> ir.TensorProtocol:
    """The bytes of `owner` in the shape of `view`: the same place of the weights file, or a copy if they are inline."""
    stored, shape = owner.const_value, view.shape
    assert stored is not None and shape is not None
    if not isinstance(stored, ir.ExternalTensor):
        return ir.tensor(stored.numpy().reshape(shape.numpy()), name=view.name)
    return ir.ExternalTensor(
        stored.location,
        stored.offset,
        stored.length,
        stored.dtype,
        shape=shape,
        name=str(view.name),
        base_dir=stored.base_dir,
    )
