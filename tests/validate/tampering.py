"""Bundles that are not what they were, and say so in no hash: the manifest is written anew after the change."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
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


def edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Applies `edit` to model.onnx, the external weights left where they are."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def add_to_weight(folder: Path, name: str, amount: float) -> None:
    """Adds to the first element of an inline or external float32 weight."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = initializer(model, name)
        if tensor.external_data:
            place = {each.key: each.value for each in tensor.external_data}
            raw = bytearray((folder / place["location"]).read_bytes())
            at = int(place["offset"])
            raw[at : at + 4] = (np.frombuffer(raw[at : at + 4], "<f4") + np.float32(amount)).tobytes()
            (folder / place["location"]).write_bytes(raw)
        else:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[0] += amount
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    edit_graph(folder, edit)


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


def _nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    inner = [each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node]
    return [node, *(deep for each in inner for deep in _nodes(each))]
