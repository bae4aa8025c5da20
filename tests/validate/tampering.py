"""Bundles that are not what they were, and say so in no hash: the manifest is written anew after the change."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx

from latentcot_export.bundle import BundleWriter, read_manifest


def rewritten(bundle: Path, out: Path, change: Callable[[Path], None] | None = None, **facts: object) -> Path:
    """A copy of a bundle at `out` after `change(folder)`, with other facts in its manifest, valid in every hash."""
    manifest = read_manifest(bundle)
    with BundleWriter(out) as writer:
        for name in manifest.files:
            shutil.copy(bundle / name, writer.folder / name)
        if change is not None:
            change(writer.folder)
        writer.commit(dataclasses.replace(manifest, files={}, **facts))
    return out


def edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], None], graph: str = "model.onnx") -> None:
    """Applies `edit` to a graph, the external weights left where they are."""
    model = onnx.load(folder / graph, load_external_data=False)
    edit(model)
    (folder / graph).write_bytes(model.SerializeToString())


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def add_to_weight(folder: Path, name: str, amount: float, element: int = 0) -> None:
    """Adds to one element, the first by default, of a float32 weight."""
    with weight(folder, name, np.float32) as values:
        values.reshape(-1)[element] += np.float32(amount)


@contextlib.contextmanager
def weight(folder: Path, name: str, dtype: type[np.generic]) -> Iterator[np.ndarray]:
    """An inline or external weight as an array to write to; it goes back to where it was at the end."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = initializer(model, name)
    place = {each.key: each.value for each in tensor.external_data}
    file = folder / place.get("location", "model.onnx")
    raw = bytearray(file.read_bytes() if place else onnx.numpy_helper.to_array(tensor).tobytes())
    count, shape = int(np.prod(tensor.dims)), tuple(tensor.dims)
    values = np.frombuffer(raw, dtype, count, int(place.get("offset", 0))).reshape(shape)
    yield values
    if place:
        file.write_bytes(raw)
        return
    for graph in ("model.onnx", "pass.onnx"):  # each holds the small ones itself
        if (folder / graph).exists():
            edit_graph(folder, lambda model: _replace(model, name, values), graph)


def _replace(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    initializer(model, name).CopyFrom(onnx.numpy_helper.from_array(values, name))


def change_constant(folder: Path, old: float, new: float) -> None:
    """Gives every float32 scalar of the graph that is `old` another value; there must be one."""
    changed = 0

    def edit(model: onnx.ModelProto) -> None:
        nonlocal changed
        tensors = list(model.graph.initializer)
        for node in [node for each in model.graph.node for node in _nodes(each)]:
            tensors += [each.t for each in node.attribute if each.type == onnx.AttributeProto.TENSOR]
        for tensor in tensors:
            if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.external_data:
                values = onnx.numpy_helper.to_array(tensor)
                if values.size == 1 and values.reshape(-1)[0] == np.float32(old):
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, new), tensor.name))
                    changed += 1

    edit_graph(folder, edit)
    assert changed, f"no constant {old} in the graph"


def set_attribute(model: onnx.ModelProto, op: str, name: str, value: float) -> None:
    """Gives an attribute of every node of one kind another value; there must be one."""
    found = [
        attribute
        for each in model.graph.node
        for node in _nodes(each)
        if node.op_type == op
        for attribute in node.attribute
        if attribute.name == name
    ]
    assert found, f"no {op} has an attribute {name}"
    for attribute in found:
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))


def _nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    inner = [each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node]
    return [node, *(deep for each in inner for deep in _nodes(each))]
