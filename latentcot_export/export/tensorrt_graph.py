"""The graph of `--target tensorrt`: the pass of `pass_graph.py` as TensorRT's ONNX parser takes it.

1. An own op that TensorRT runs as a plugin has every table it changes as an output too (the plugin says that it is the
   input's memory), and whoever reads the table afterwards reads that output: the order of reading and writing stands in
   the graph. An absent input is left out; the attribute `inputs` has a bit for each that is there.
2. The cache is one tensor a layer, `cache_0` to `cache_{L - 1}` `[2, slots, kv heads, lanes]`.
3. AddNorm, GatedUnit, QuickGelu and RMSNormalization become operators of opset 20, which TensorRT fuses itself.
4. With a dtype below float32 products are of it, see `narrow.py`; whoever else reads a product reads it as float32, its
   bias and residual are added there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..ops.packed_tables import CHOOSE_TOKEN, RAGGED_ADVANCE, RAGGED_ATTENTION, RAGGED_HALT, OpSignature
from ..spec import CacheSpec
from .narrow import FLOAT, Narrowing, path_of, two
from .native_layers import Weights
from .native_sheet import CONTRIB, OWN
from .pass_graph import pass_model
from .save import save_graph

OPSET = 20
PLUGIN_VERSION = "1"  # kVersion of plugins/tensorrt/plugin.hpp
ROWS = ("rows", "latent", "reach", "mix")  # inputs that are carried from pass to pass; all others are tables
PLUGINS = {op.name: op for op in (RAGGED_ATTENTION, RAGGED_HALT, CHOOSE_TOKEN, RAGGED_ADVANCE)}
# The inputs of each op that its plugin has, by their names in packed_tables.py: `fresh` is empty in the fixed form, and
# `chosen` only an edge.
_LEFT_OUT = {"RaggedAdvance": {"fresh", "chosen"}}
# Attributes a node may leave out, with what the op takes then.
_DEFAULTS: dict[str, dict[str, int | float]] = {
    "RaggedAttention": {"visibility": 0, "epsilon": 0.0},
    "RaggedHalt": {"stop": 0, "readout": 0, "skip_halted": 1},
    "RaggedAdvance": {"runs_on": 0, "token_major": 0},
    "ChooseToken": {},
}


def tensorrt_model(one_pass: ir.Model, dtype: str, decode_rows: int) -> ir.Model:
    """`one_pass` of `pass_model`, unquantised, in TensorRT's form. A pass of up to `decode_rows` rows decodes.

    The given model is taken apart and of no use afterwards.
    """
    return _Rewriting(one_pass.graph, dtype, decode_rows).build()


def write_pass(folder: Path, source: Checkpoint, cache: CacheSpec, dtype: str) -> None:
    """model.onnx and its weights in `folder`. Errors: CheckFailed."""
    weights = Weights(source.tensors, None, dtype)
    one_pass = pass_model(source.model, source.recurrence, cache, weights)
    save_graph(tensorrt_model(one_pass.model, dtype, cache.max_batch), folder)


class _Rewriting(Narrowing):
    """The rules above."""

    def __init__(self, graph: ir.Graph, dtype: str, decode_rows: int) -> None:
        super().__init__(graph, dtype)
        self.decode_rows = decode_rows
        self.inputs: dict[str, ir.Value] = {}
        for value in graph.inputs:
            assert value.shape is not None
            caches = value.name == "cache"
            shape = value.shape[1:] if caches else value.shape
            for name in [f"cache_{i}" for i in range(int(value.shape[0]))] if caches else [str(value.name)]:
                self.inputs[name] = ir.Value(name=name, shape=ir.Shape(shape), type=value.type)
            if not caches:
                self.now[value] = self.inputs[str(value.name)]
        self.written: dict[str, ir.Value] = {}  # table -> its last version

    def rewriters(self) -> dict[str, Callable[[ir.Node], None]]:
        """See Narrowing."""
        return super().rewriters() | {
            **dict.fromkeys(PLUGINS, self._plugin),
            "AddNorm": self._add_norm,
            "RMSNormalization": self._rms_norm,
            "GatedUnit": self._gated_unit,
            "QuickGelu": self._quick_gelu,
            "Transpose": self._transpose,
        }

    def build(self) -> ir.Model:
        """The whole graph."""
        outputs = self.rewrite()
        outputs |= {f"{name}_out": value for name, value in self.written.items()}
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs.values()),
            nodes=self.sheet.nodes,
            initializers=self.used(),
            opset_imports={"": OPSET, OWN: 1},
            name="latentcot",
        )
        return ir.Model(graph, ir_version=11, producer_name="latentcot-export")

    # nodes

    def _as_it_is(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise AssertionError(f"{node.domain}.{node.op_type} has no form for TensorRT")
        super()._as_it_is(node)

    def _plugin(self, node: ir.Node) -> None:
        """Rule 1."""
        op = PLUGINS[node.op_type]
        names = [name for name in op.inputs if name not in _LEFT_OUT.get(op.name, ())]
        values = dict(zip(op.inputs, node.inputs, strict=False))
        inputs, tables, bits = [], {}, 0
        for bit, name in enumerate(names):
            value = values.get(name)
            if value is None:
                continue
            bits |= 1 << bit
            if value.producer() is None and value.const_value is None and value.name not in ROWS:
                table = f"cache_{node.attributes['layer'].value}" if name == "cache" else str(value.name)
                tables[name] = table
                inputs.append(self.written.get(table, self.inputs[table]))
            else:
                inputs.append(self._low(value) if name == "qkv" else self._wide(value))
        outputs = [self._output(value, op, self.kind) for value in node.outputs]
        changed = [
            ir.Value(name=f"{node.name}/{name}", shape=source.shape, type=source.type)
            for name, source in ((name, self.inputs[tables[name]]) for name in op.written if name in tables)
        ]
        self.sheet.nodes.append(
            ir.Node(
                OWN,
                op.name,
                inputs,
                self._attributes(node, op, bits),
                outputs=[*outputs, *changed],
                name=node.name,
            )
        )
        self.written |= dict(zip([tables[name] for name in op.written if name in tables], changed, strict=True))
        where = self.narrow if op is RAGGED_ATTENTION and self.kind else self.now
        where |= dict(zip(node.outputs, outputs, strict=True))

    @staticmethod
    def _output(value: ir.Value, op: OpSignature, kind: tuple[ir.DataType, type] | None) -> ir.Value:
        shape, dtype = value.shape, value.dtype
        assert dtype is not None
        if dtype == ir.DataType.BOOL:  # a plugin has no bool
            shape, dtype = ir.Shape([1]), ir.DataType.INT32
        if op is RAGGED_ATTENTION and kind is not None:
            dtype = kind[0]
        return ir.Value(name=value.name, shape=shape, type=ir.TensorType(dtype))

    def _attributes(self, node: ir.Node, op: OpSignature, bits: int) -> list[ir.Attr]:
        """Every field of the plugin, and what the parser finds the plugin by."""
        values: dict[str, int | float | str] = dict(_DEFAULTS[op.name])
        values |= {name: attribute.value for name, attribute in node.attributes.items()}
        assert values["fixed"] == 1
        values |= {"inputs": bits, "plugin_namespace": OWN, "plugin_version": PLUGIN_VERSION}
        if op is RAGGED_ATTENTION:
            values["decode_rows"] = self.decode_rows
        return [ir.convenience.convert_attribute(name, value) for name, value in sorted(values.items())]

    def _rms(self, x: ir.Value, weight: ir.Value, epsilon: float, path: str) -> ir.Value:
        one, last = self.sheet.one, self._constant("last", np.array([-1], np.int64))
        mean = one("ReduceMean", path, one("Mul", path, x, x), last, keepdims=1)
        root = one(
            "Sqrt", path, one("Add", path, mean, self._constant(f"epsilon/{path}", np.array(epsilon, np.float32)))
        )
        return one("Mul", path, one("Div", path, x, root), self._wide(weight))

    def _rms_norm(self, node: ir.Node) -> None:
        x, weight = two(node.inputs)
        self.now[node.outputs[0]] = self._rms(self._wide(x), weight, _epsilon(node), path_of(node))

    def _add_norm(self, node: ir.Node) -> None:
        x, residual, weight = node.inputs
        assert x is not None and residual is not None and weight is not None
        total = self.sheet.one("Add", f"{path_of(node)}/total", self._wide(x), self._wide(residual))
        self.now[node.outputs[1]] = total
        self.now[node.outputs[0]] = self._rms(total, weight, _epsilon(node), path_of(node))

    def _gated_unit(self, node: ir.Node) -> None:
        path, pair = path_of(node), node.inputs[0]
        assert pair is not None
        halves = dict.fromkeys(("gate", "up"), (FLOAT, node.outputs[0].shape or ()))
        gate, up = self.sheet.many("", "Split", path, [self._wide(pair)], halves, axis=1, num_outputs=2)
        self.now[node.outputs[0]] = self.sheet.one("Mul", path, self._silu(gate, path), up)

    def _quick_gelu(self, node: ir.Node) -> None:
        assert node.domain == CONTRIB and node.attributes["alpha"].value == 1.0 and node.inputs[0] is not None
        self.now[node.outputs[0]] = self._silu(self._wide(node.inputs[0]), path_of(node))

    def _silu(self, x: ir.Value, path: str) -> ir.Value:
        return self.sheet.one("Mul", path, x, self.sheet.one("Sigmoid", path, x))

    def _transpose(self, node: ir.Node) -> None:
        """The embedding table as the head of a tied model."""
        table = node.inputs[0]
        assert table is not None
        if self.kind is None or table.const_value is None:
            self._as_it_is(node)
            return
        made = self.sheet.one("Transpose", path_of(node), self._low(table), perm=node.attributes["perm"].value)
        self.narrow[node.outputs[0]] = made


def _epsilon(node: ir.Node) -> float:
    return float(node.attributes["epsilon"].value)
