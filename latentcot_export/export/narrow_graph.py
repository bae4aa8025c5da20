"""Both graphs of a `--target ort` bundle whose products are float16 or bfloat16.

`pass.onnx`, which a GPU runs, multiplies in that dtype. `model.onnx`, which the processor runs, has the same weights and
widens them when it is loaded: ONNX Runtime folds a Cast of an initializer, then multiplies in float32, which a processor
does faster than in float16 and without any kernel for bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..validate.casts import cast, cast_output
from .narrow import FLOAT, KINDS, Narrowing, path_of, two
from .native_graph import NativeModel, model_of


def widen_weights(model: ir.Model) -> None:
    """Every narrow initializer is read through a Cast; of the embedding table, the rows that are gathered are."""
    graph, wide = model.graph, {kind for kind, _ in KINDS.values()}
    casts = []
    for value in [each for each in graph.initializers.values() if each.dtype in wide]:
        uses = [(use.node, use.idx) for use in value.uses()]
        gathers = [node for node, _ in uses if node.op_type == "Gather"]
        for node in gathers:
            cast_output(node, FLOAT, f"{node.outputs[0].name}/wide")
        if len(gathers) == len(uses):
            continue
        casts.append(cast(value, FLOAT, f"{value.name}/wide"))
        for node, index in uses:
            if node not in gathers:
                node.replace_input_with(index, casts[-1].outputs[0])
    if casts:
        graph.insert_before(graph[0], casts)


def narrow_pass(one_pass: NativeModel, dtype: str) -> tuple[ir.Model, dict[ir.Value, ir.Value]]:
    """The pass of `pass_model`, whose weights may be narrow already, with products in `dtype`; and its views.

    The given model is taken apart and of no use afterwards.
    """
    return _NarrowPass(one_pass, dtype).build()


class _NarrowPass(Narrowing):
    """AddNorm, GatedUnit and RaggedAttention have narrow rows themselves; a bias is part of its product."""

    def __init__(self, one_pass: NativeModel, dtype: str) -> None:
        graph = one_pass.model.graph
        super().__init__(graph, dtype)
        self.inputs = [ir.Value(name=each.name, shape=each.shape, type=each.type) for each in graph.inputs]
        self.now |= dict(zip(graph.inputs, self.inputs, strict=True))
        self.views = one_pass.views
        self.now |= {view: ir.Value(name=view.name, shape=view.shape, type=view.type) for view in self.views}
        self.turned: dict[ir.Value, ir.Value] = {}  # a transposed matrix -> the matrix

    def rewriters(self) -> dict[str, Callable[[ir.Node], None]]:
        """See Narrowing."""
        return super().rewriters() | {
            "AddNorm": self._add_norm,
            "GatedUnit": self._own,
            "RaggedAttention": self._own,
            "Transpose": self._transpose,
            "MatMulNBits": self._product_of_codes,
            "GatherBlockQuantized": self._rows_of_codes,
        }

    def build(self) -> tuple[ir.Model, dict[ir.Value, ir.Value]]:
        """The whole graph, and its views."""
        outputs = self.rewrite()
        for name, value in outputs.items():
            value.name = name
        model = model_of(self.inputs, list(outputs.values()), self.sheet.nodes, self.used())
        return model, {self.now[view]: self.now[owner] for view, owner in self.views.items()}

    def _own(self, node: ir.Node) -> None:
        """Narrow is the first input, and the result."""
        first = node.inputs[0]
        assert first is not None
        self._write(node, [self._low(first), *self._all_wide(node.inputs[1:])], narrow=[0])

    def _add_norm(self, node: ir.Node) -> None:
        """Narrow where only products read the norm: routers, deciders and halting read that of the last layer as it is."""
        users = [use.node for use in node.outputs[0].uses()]
        if all(
            user.op_type == "MatMulNBits" or (user.op_type in ("MatMul", "Gemm") and self._is_mine(two(user.inputs)[1]))
            for user in users
        ):
            self._own(node)
        else:
            self._as_it_is(node)

    def _product_of_codes(self, node: ir.Node) -> None:
        """Rows, scales and bias are narrow, and the product; codes, zero points and an absent input as they are."""
        x, codes, scale, *rest = node.inputs
        assert x is not None and codes is not None and scale is not None
        given = [self._low(x), self._wide(codes), self._low(scale), *self._all_wide(rest[:2])]
        given += [None if value is None else self._low(value) for value in rest[2:]]
        self._write(node, given, narrow=[0])

    def _rows_of_codes(self, node: ir.Node) -> None:
        scale = node.inputs[2]
        assert scale is not None
        given = [*self._all_wide(node.inputs[:2]), self._low(scale), *self._all_wide(node.inputs[3:])]
        self._write(node, given, narrow=[0])

    def _transpose(self, node: ir.Node) -> None:
        """The embedding table as the head of a tied model: Gemm reads it as it lies, so that a GPU holds it once."""
        table = node.inputs[0]
        assert table is not None
        if self.kind is not None and table.const_value is not None:
            self.turned[node.outputs[0]] = table
        else:
            self._as_it_is(node)

    def _is_mine(self, weight: ir.Value) -> bool:
        return weight in self.turned or super()._is_mine(weight)

    def _product(self, node: ir.Node) -> None:
        x, weight = two(node.inputs)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not self._is_mine(weight) or (bias is None and weight not in self.turned):
            super()._product(node)
            return
        matrix = self._low(self.turned.get(weight, weight))
        inputs = [self._low(x), matrix, *([] if bias is None else [self._low(bias)])]
        turned = int(weight in self.turned)
        self.narrow[node.outputs[0]] = self.sheet.one("Gemm", path_of(node), *inputs, transB=turned)
