"""Casts put into a graph that is there already: before a node reads, or behind what it gives."""

from __future__ import annotations

import onnx_ir as ir


def cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    """A Cast of the value to `kind`, `name/Cast`; it stands in no graph yet."""
    made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
    to = ir.convenience.convert_attribute("to", int(kind))
    return ir.Node("", "Cast", [value], [to], outputs=[made], name=f"{name}/Cast")


def cast_output(node: ir.Node, kind: ir.DataType, name: str) -> ir.Value:
    """Whoever reads the node's first output reads what is returned, the same as `kind`. Errors: ValueError."""
    value, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    made = cast(value, kind, name)
    ir.convenience.replace_all_uses_with(value, made.outputs[0])
    made.replace_input_with(0, value)
    graph.insert_after(node, made)
    return made.outputs[0]
