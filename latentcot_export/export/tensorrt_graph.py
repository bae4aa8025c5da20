"""The graph of `--target tensorrt`: the pass of `pass_graph.py` as TensorRT's ONNX parser takes it.

1. An own op that TensorRT runs as a plugin has every table it changes as an output too (the plugin says that it is the
   input's memory), and whoever reads the table afterwards reads that output: the order of reading and writing stands in
   the graph. An absent input is left out; the attribute `inputs` has a bit for each that is there.
2. The cache is one tensor a layer, `cache_0` to `cache_{L - 1}` `[2, slots, kv heads, lanes]`.
3. AddNorm, GatedUnit, QuickGelu and RMSNormalization become operators of opset 20, which TensorRT fuses itself.
4. With a dtype below float32, matrices, embedding table and their products, queries, keys and values are of it. Residuals,
   norms, routers, halting and logits stay float32, and every product is read as float32: TensorRT's networks are strongly
   typed, so each change of type is a Cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..ops.packed_tables import CHOOSE_TOKEN, RAGGED_ADVANCE, RAGGED_ATTENTION, RAGGED_HALT, OpSignature
from ..spec import CacheSpec
from .native_layers import Weights
from .native_sheet import CONTRIB, OWN, Sheet
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
_NARROW = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}
_FLOAT = ir.DataType.FLOAT


def tensorrt_model(one_pass: ir.Model, dtype: str, decode_rows: int) -> ir.Model:
    """`one_pass` of `pass_model`, float32 and unquantised, in TensorRT's form. A pass of up to `decode_rows` rows decodes.

    The given model is taken apart and of no use afterwards.
    """
    return _Rewriting(one_pass.graph, dtype, decode_rows).build()


def write_pass(folder: Path, source: Checkpoint, cache: CacheSpec, dtype: str) -> None:
    """model.onnx and its weights in `folder`. Errors: CheckFailed."""
    weights = Weights(source.tensors, None)
    one_pass = pass_model(source.model, source.recurrence, cache, weights)
    save_graph(tensorrt_model(one_pass.model, dtype, cache.max_batch), folder)


class _Rewriting:
    """One graph while it is rewritten, node by node in order."""

    def __init__(self, graph: ir.Graph, dtype: str, decode_rows: int) -> None:
        self.graph, self.decode_rows = graph, decode_rows
        self.kind = _NARROW.get(dtype)
        self.sheet = Sheet()
        self.now: dict[ir.Value, ir.Value] = {}  # a value of the given graph -> what stands for it here
        self.narrow: dict[ir.Value, ir.Value] = {}  # the same, in the dtype of products
        self.initializers: dict[tuple[str, ir.DataType | None], ir.Value] = {}
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

    def build(self) -> ir.Model:
        rewriters: dict[str, Callable[[ir.Node], None]] = {
            **dict.fromkeys(PLUGINS, self._plugin),
            "AddNorm": self._add_norm,
            "RMSNormalization": self._rms_norm,
            "GatedUnit": self._gated_unit,
            "QuickGelu": self._quick_gelu,
            "MatMul": self._product,
            "Gemm": self._product,
            "Gather": self._gather,
            "Transpose": self._transpose,
        }
        for node in self.graph:
            rewriters.get(node.op_type, self._as_it_is)(node)
        outputs = {str(value.name): self._wide(value) for value in self.graph.outputs}
        outputs |= {f"{name}_out": value for name, value in self.written.items()}
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs.values()),
            nodes=self.sheet.nodes,
            initializers=[value for value in self.initializers.values() if value.uses()],
            opset_imports={"": OPSET, OWN: 1},
            name="latentcot",
        )
        return ir.Model(graph, ir_version=11, producer_name="latentcot-export")

    # values

    def _wide(self, value: ir.Value) -> ir.Value:
        """What stands for a value, in its own dtype: float32 where it is a number of the model."""
        if value not in self.now:
            if value.const_value is not None:
                self.now[value] = self._initializer(str(value.name), value.const_value)
            else:
                self.now[value] = self.sheet.one("Cast", "wide", self.narrow[value], to=int(_FLOAT))
        return self.now[value]

    def _low(self, value: ir.Value) -> ir.Value:
        """What stands for a float32 value, in the dtype of products."""
        if self.kind is None:
            return self._wide(value)
        if value not in self.narrow:
            dtype, kind = self.kind
            if value.const_value is not None:
                content = ir.tensor(value.const_value.numpy().astype(kind), dtype=dtype, name=value.name)
                self.narrow[value] = self._initializer(str(value.name), content)
            else:
                self.narrow[value] = self.sheet.one("Cast", "low", self._wide(value), to=int(dtype))
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

    # nodes

    def _as_it_is(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise AssertionError(f"{node.domain}.{node.op_type} has no form for TensorRT")
        inputs = [None if value is None else self._wide(value) for value in node.inputs]
        made = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in node.outputs]
        attributes = list(node.attributes.values())
        self.sheet.nodes.append(ir.Node("", node.op_type, inputs, attributes, outputs=made, name=node.name))
        self.now |= dict(zip(node.outputs, made, strict=True))

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
        x, weight = _two(node.inputs)
        self.now[node.outputs[0]] = self._rms(self._wide(x), weight, _epsilon(node), str(node.name))

    def _add_norm(self, node: ir.Node) -> None:
        x, residual, weight = node.inputs
        assert x is not None and residual is not None and weight is not None
        total = self.sheet.one("Add", f"{node.name}/total", self._wide(x), self._wide(residual))
        self.now[node.outputs[1]] = total
        self.now[node.outputs[0]] = self._rms(total, weight, _epsilon(node), str(node.name))

    def _gated_unit(self, node: ir.Node) -> None:
        path, pair = str(node.name), node.inputs[0]
        assert pair is not None
        halves = dict.fromkeys(("gate", "up"), (_FLOAT, node.outputs[0].shape or ()))
        gate, up = self.sheet.many("", "Split", path, [self._wide(pair)], halves, axis=1, num_outputs=2)
        self.now[node.outputs[0]] = self.sheet.one("Mul", path, self._silu(gate, path), up)

    def _quick_gelu(self, node: ir.Node) -> None:
        assert node.domain == CONTRIB and node.attributes["alpha"].value == 1.0 and node.inputs[0] is not None
        self.now[node.outputs[0]] = self._silu(self._wide(node.inputs[0]), str(node.name))

    def _silu(self, x: ir.Value, path: str) -> ir.Value:
        return self.sheet.one("Mul", path, x, self.sheet.one("Sigmoid", path, x))

    def _product(self, node: ir.Node) -> None:
        """Rule 4: what a matrix of the layers or the head multiplies; Gemm's addend is added in float32."""
        x, weight = _two(node.inputs)
        held = weight if weight.const_value is not None else None
        tied = weight in self.narrow and held is None
        mine = tied or (held is not None and str(held.name).startswith(("model.", "lm_head")))
        if self.kind is None or not mine or ".adapter_" in str(weight.name):
            self._as_it_is(node)
            return
        assert not set(node.attributes) - {"alpha", "beta"}
        made = self.sheet.one("MatMul", str(node.name), self._low(x), self._low(weight))
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        if addend is None:
            self.narrow[node.outputs[0]] = made
            return
        wide = self.sheet.one("Cast", "wide", made, to=int(_FLOAT))
        self.now[node.outputs[0]] = self.sheet.one("Add", str(node.name), wide, self._wide(addend))

    def _gather(self, node: ir.Node) -> None:
        table, ids = _two(node.inputs)
        if self.kind is None or table.const_value is None or not str(table.name).startswith("model.embed_tokens"):
            self._as_it_is(node)
            return
        made = self.sheet.one("Gather", str(node.name), self._low(table), self._wide(ids), axis=0)
        self.narrow[node.outputs[0]] = made

    def _transpose(self, node: ir.Node) -> None:
        """The embedding table as the head of a tied model."""
        table = node.inputs[0]
        assert table is not None
        if self.kind is None or table.const_value is None:
            self._as_it_is(node)
            return
        made = self.sheet.one("Transpose", str(node.name), self._low(table), perm=node.attributes["perm"].value)
        self.narrow[node.outputs[0]] = made


def _two(values: Sequence[ir.Value | None]) -> tuple[ir.Value, ir.Value]:
    first, second = values[0], values[1]
    assert first is not None and second is not None
    return first, second


def _epsilon(node: ir.Node) -> float:
    return float(node.attributes["epsilon"].value)
