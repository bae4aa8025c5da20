"""The nodes of a packed graph while they are written down, under names that say where in the model they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

OWN, CONTRIB = "latentcot", "com.microsoft"


class Sum(NamedTuple):
    """Rows `[r, D]`: a value, or one and another that is to be added to it yet."""

    value: ir.Value
    more: ir.Value | None = None


class Context(NamedTuple):
    """What every RaggedAttention of a pass is given beside its qkv: per row, then tables, None for what it needs not."""

    cos: ir.Value
    sin: ir.Value
    rows: ir.Value
    slots: ir.Value
    cache: ir.Value
    weights: ir.Value | None
    counters: ir.Value | None


class Sheet:
    """The nodes of one graph, in order, under names that say where in the model they stand."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.names: set[str] = set()

    def _free(self, path: str, op: str) -> str:
        """The path, numbered where there is such a node already: a graph's names are unique."""
        free, count = path, 1
        while f"{free}/{op}" in self.names:  # a path may end in a number of its own
            count += 1
            free = f"{path}_{count}"
        self.names.add(f"{free}/{op}")
        return free

    def many(
        self,
        domain: str,
        op: str,
        path: str,
        inputs: Sequence[ir.Value | None],
        outputs: dict[str, tuple[ir.DataType, Sequence[int | str]]],
        **attributes: Any,
    ) -> list[ir.Value]:
        """A node with named outputs of known types and axes; the results are `path/name`.

        Absent inputs at the end are left out.
        """
        path = self._free(path, op)
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        values = [
            ir.Value(name=f"{path}/{name}", shape=ir.Shape(axes), type=ir.TensorType(dtype))
            for name, (dtype, axes) in outputs.items()
        ]
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
        self.nodes.append(ir.Node(domain, op, inputs, attrs, outputs=values, name=f"{path}/{op}"))
        return values

    def one(self, op: str, path: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output, named `path/op` like the node itself; its type is inferred."""
        path = self._free(path, op)
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
        value = ir.Value(name=f"{path}/{op}")
        self.nodes.append(ir.Node(domain, op, inputs, attrs, outputs=[value], name=f"{path}/{op}"))
        return value
