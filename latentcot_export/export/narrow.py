"""A pass in float32 rewritten so that its products are float16 or bfloat16: what the graphs for GPUs share.

Matrices, their biases, embedding table and head are stored narrow, and so is what products read and give: queries, keys
and values, what attention gives, gates and ups. Residuals, norms, routers, halting and logits stay float32. A value has a
narrow and a wide form, each made by a Cast the first time somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..errors import InputError
from ..validate.narrow import is_narrow
from .native_sheet import Sheet

FLOAT = ir.DataType.FLOAT
KINDS = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}


def narrowed(name: str, content: np.ndarray, dtype: str) -> ir.TensorProtocol:
    """A tensor of `content`, of float32 to the nearest numbers of `dtype` where `is_narrow` says so.

    Errors: InputError for numbers that `dtype` cannot hold.
    """
    if dtype in KINDS and content.dtype == np.float32 and is_narrow(name, content.ndim):
        kind, numbers = KINDS[dtype]
        with np.errstate(over="ignore"):
            made = content.astype(numbers)
        if np.isfinite(content).all() and not np.isfinite(made).all():
            raise cannot_hold(name, float(np.abs(content).max()), dtype)
        return ir.tensor(made, dtype=kind, name=name)
    return ir.tensor(content, name=name)


def cannot_hold(name: str, most: float, dtype: str, what: str = "which") -> InputError:
    """What is said of a weight whose largest number is `most`."""
    return InputError(f"weight {name} has a number of size {most:g}, {what} {dtype} cannot hold; use another --dtype")


class Narrowing:
    """One graph while it is rewritten, node by node in order. `rewriters` of a subclass are by op."""

    def __init__(self, graph: ir.Graph, dtype: str) -> None:
        """The given graph is taken apart and of no use afterwards; its initializers may be narrow already."""
        self.graph, self.dtype = graph, dtype
        self.kind = KINDS.get(dtype)
        self.sheet = Sheet()
        self.now: dict[ir.Value, ir.Value] = {}  # a value of the given graph -> what stands for it here
        self.narrow: dict[ir.Value, ir.Value] = {}  # the same, in the dtype of products
        self.initializers: dict[tuple[str, ir.DataType | None], ir.Value] = {}

    def rewriters(self) -> dict[str, Callable[[ir.Node], None]]:
        """What is done with the nodes of an op; the others stay as they are."""
        return {"MatMul": self._product, "Gemm": self._product, "Gather": self._gather}

    def rewrite(self) -> dict[str, ir.Value]:
        """Writes all nodes down; the outputs of the graph by name, in their own dtype."""
        rewriters = self.rewriters()
        for node in self.graph:
            rewriters.get(node.op_type, self._as_it_is)(node)
        return {str(value.name): self._wide(value) for value in self.graph.outputs}

    def used(self) -> list[ir.Value]:
        """Initializers that some node reads."""
        return [value for value in self.initializers.values() if value.uses()]

    def _wide(self, value: ir.Value) -> ir.Value:
        """What stands for a value, in its own dtype: float32 where it is a number of the model."""
        if value not in self.now:
            if value.const_value is not None and value.const_value.dtype not in (kind for kind, _ in KINDS.values()):
                self.now[value] = self._initializer(str(value.name), value.const_value)
            else:
                self.now[value] = self.sheet.one("Cast", f"{value.name}/wide", self._low(value), to=int(FLOAT))
        return self.now[value]

    def _low(self, value: ir.Value) -> ir.Value:
        """What stands for a float32 value, in the dtype of products."""
        if self.kind is None:
            return self._wide(value)
        if value not in self.narrow:
            dtype, numbers = self.kind
            held = value.const_value
            if held is None:
                self.narrow[value] = self.sheet.one("Cast", f"{value.name}/narrow", self._wide(value), to=int(dtype))
            else:
                if held.dtype != dtype:
                    held = ir.tensor(held.numpy().astype(numbers), dtype=dtype, name=value.name)
                self.narrow[value] = self._initializer(str(value.name), held)
        return self.narrow[value]

    def _initializer(self, name: str, content: ir.TensorProtocol) -> ir.Value:
        key = (name, content.dtype)
        if key not in self.initializers:
            self.initializers[key] = ir.Value(
                name=name, shape=ir.Shape(content.shape), type=ir.TensorType(content.dtype), const_value=content
            )
        return self.initializers[key]

    def _constant(self, name: str, content: np.ndarray) -> ir.Value:
        return self._initializer(f"constants/{name}", ir.tensor(content, name=f"constants/{name}"))

    def _all_wide(self, values: Sequence[ir.Value | None]) -> list[ir.Value | None]:
        return [None if value is None else self._wide(value) for value in values]

    def _as_it_is(self, node: ir.Node) -> None:
        self._write(node, self._all_wide(node.inputs))

    def _write(self, node: ir.Node, inputs: Sequence[ir.Value | None], narrow: Sequence[int] = ()) -> None:
        """The node on other inputs. Its outputs of the numbers `narrow` are of the dtype of products."""
        made = []
        for number, value in enumerate(node.outputs):
            kind = value.type
            if number in narrow and self.kind is not None:
                kind = ir.TensorType(self.kind[0])
            made.append(ir.Value(name=value.name, shape=value.shape, type=kind))
            forms = self.narrow if number in narrow and self.kind is not None else self.now
            forms[value] = made[-1]
        attributes = list(node.attributes.values())
        self.sheet.nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=made, name=node.name))

    def _is_mine(self, weight: ir.Value) -> bool:
        """Whether products by `weight` are narrow."""
        if self.kind is None:
            return False
        if weight.const_value is None:
            return weight in self.narrow  # the table of a tied model, transposed
        return is_narrow(str(weight.name), 2)

    def _product(self, node: ir.Node) -> None:
        """What a matrix of the layers or the head multiplies; Gemm's addend is added in float32."""
        x, weight = two(node.inputs)
        if not self._is_mine(weight):
            self._as_it_is(node)
            return
        assert not set(node.attributes) - {"alpha", "beta"}
        path = path_of(node)
        made = self.sheet.one("MatMul", path, self._low(x), self._low(weight))
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        if addend is None:
            self.narrow[node.outputs[0]] = made
            return
        wide = self.sheet.one("Cast", f"{path}/wide", made, to=int(FLOAT))
        self.now[node.outputs[0]] = self.sheet.one("Add", path, wide, self._wide(addend))

    def _gather(self, node: ir.Node) -> None:
        table, ids = two(node.inputs)
        if self.kind is None or table.const_value is None or not is_narrow(str(table.name), 2):
            self._as_it_is(node)
            return
        made = self.sheet.one("Gather", path_of(node), self._low(table), self._wide(ids), axis=0)
        self.narrow[node.outputs[0]] = made


def path_of(node: ir.Node) -> str:
    """Where in the model a node of a Sheet stands."""
    return str(node.name).removesuffix(f"/{node.op_type}")


def two(values: Sequence[ir.Value | None]) -> tuple[ir.Value, ir.Value]:
    """The first two inputs of a node, which it must have."""
    first, second = values[0], values[1]
    assert first is not None and second is not None
    return first, second
