"""The bare chain of a bundle's matrix products as ONNX models, in every form that ONNX Runtime might like best.

Four products a layer (queries, keys and values merged; the attention's output; gate and up merged; down) and the head,
and nothing else but what leads from one to the next. Quantised ones are the bundle's own codes, blocks and zero points,
with scales that keep a chain of them in range; float32 ones are random, which takes the same time.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from latentcot_export.bundle import Bundle
from latentcot_export.errors import InputError

CONTRIB, OPSET = "com.microsoft", 21
LEVEL = 4  # int8 activations, as the bundle's own products
# form, arena of ONNX Runtime on
VARIANTS = (("calls", False), ("calls", True), ("loop", False), ("loop", True), ("apart", False))


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix `[inner, outer]`: float32 `weight`, or codes, scales and zero points as MatMulNBits takes them."""

    inner: int
    outer: int
    arrays: tuple[np.ndarray, ...]
    attributes: dict[str, int]

    @classmethod
    def random(cls, inner: int, outer: int, generator: np.random.Generator) -> Product:
        """A float32 matrix that keeps the size of what it is multiplied with."""
        weight = generator.standard_normal((inner, outer), np.float32)
        weight *= 1.0 / np.sqrt(inner)
        return cls(inner, outer, (weight,), {})

    @classmethod
    def of_codes(cls, held: tuple[np.ndarray, ...], inner: int, bits: int) -> Product:
        """A quantised matrix: codes `[out, blocks, bytes]`, scales, zero points."""
        codes, scale, zero = held
        outer, blocks, size = codes.shape
        block = size * 8 // bits
        values = _unpacked(codes, bits).reshape(outer, blocks, block).astype(np.float32)
        values -= _unpacked(zero.reshape(outer, -1), bits)[:, :blocks, None]
        values *= scale.reshape(outer, blocks, 1)
        gain = float(np.sqrt(np.mean(np.sum(values.reshape(outer, -1)[:, :inner] ** 2, axis=1))))
        attributes = {"K": inner, "N": outer, "bits": bits, "block_size": block, "accuracy_level": LEVEL}
        return cls(inner, outer, (codes, (scale / gain).astype(np.float32), zero), attributes)


def products_of(bundle: Bundle) -> tuple[list[list[Product]], Product]:
    """Per layer qkv, o, gate_up, down; and the head. Errors: InputError for a graph of other names."""
    model, quantize = bundle.manifest.model, bundle.manifest.quantize
    queries = model.num_heads * model.head_dim
    shapes = {
        "self_attn.qkv_proj": (model.hidden_size, queries + 2 * model.num_kv_heads * model.head_dim),
        "self_attn.o_proj": (queries, model.hidden_size),
        "mlp.gate_up_proj": (model.hidden_size, 2 * model.intermediate_size),
        "mlp.down_proj": (model.intermediate_size, model.hidden_size),
    }
    if quantize == "none":
        generator = np.random.default_rng(0)
        layers = [[Product.random(*shape, generator) for shape in shapes.values()] for _ in range(model.num_layers)]
        return layers, Product.random(model.hidden_size, model.vocab_size, generator)
    stored, bits = _Stored(bundle), int(quantize.removeprefix("int"))
    layers = [
        [
            Product.of_codes(stored.codes(f"model.layers.{index}.{name}"), inner, bits)
            for name, (inner, _outer) in shapes.items()
        ]
        for index in range(model.num_layers)
    ]
    return layers, Product.of_codes(stored.codes("lm_head", "model.embed_tokens"), model.hidden_size, bits)


class _Stored:
    """The initializers of a bundle's graph, read from its external file one at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self.folder = bundle.folder
        graph = onnx.load(str(bundle.path("model.onnx")), load_external_data=False).graph
        self.tensors = {each.name: each for each in graph.initializer}

    def codes(self, *names: str) -> tuple[np.ndarray, ...]:
        """Codes `[out, blocks, bytes]`, scales and zero points of the first of `names` that has each."""
        found = []
        for part in ("q", "scale", "zero"):
            tensor = next(
                (self.tensors[key] for name in names if (key := f"{name}.weight_{part}") in self.tensors), None
            )
            if tensor is None:
                raise InputError(f"{self.folder}: no {names[0]}.weight_{part} in the graph; export it again")
            found.append(numpy_helper.to_array(tensor, base_dir=str(self.folder)))
        codes, scale, zero = found
        return codes.reshape(len(codes), scale.size // len(codes), -1), scale, zero.reshape(len(codes), -1)


def _unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """One number per code along the last axis."""
    if bits == 8:
        return codes
    return np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], -1)


class Chain:
    """One form of the chain as a session that runs `passes` of it for `rows` rows.

    `calls`: one call a pass. `loop`: all passes in one call, in a Loop. `apart`: one call a pass, no product waits for
    another, and every result has its own buffer: not even a slice lies between them.
    """

    def __init__(
        self, bundle: Bundle, products: tuple[list[list[Product]], Product], form: str, arena: bool, threads: int
    ):
        self.spec, self.form = bundle.manifest.model, form
        self.name = f"{form}{', arena' if arena else ''}"
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chain.onnx"
            onnx.save(self._model(*products), str(path), save_as_external_data=True, location="chain.data")
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _model(self, layers: list[list[Product]], head: Product) -> onnx.ModelProto:
        spec, nodes, weights, apart = self.spec, [], [], self.form == "apart"
        queries = spec.num_heads * spec.head_dim
        made: list[str] = []

        def product(x: str, index: int, each: Product) -> str:
            names = [f"w{index}_{i}" for i in range(len(each.arrays))]
            weights.extend(numpy_helper.from_array(a, n) for a, n in zip(each.arrays, names, strict=True))
            kind, domain = ("MatMulNBits", CONTRIB) if each.attributes else ("MatMul", "")
            made.append(f"y{index}")
            nodes.append(helper.make_node(kind, [x, *names], [made[-1]], domain=domain, **each.attributes))
            return made[-1]

        def cut(y: str, wide: int) -> str:
            nodes.append(helper.make_node("Slice", [y, "zero", str(wide), "one"], [f"{y}_cut"]))
            return f"{y}_cut"

        x, index = f"x{spec.hidden_size}", 0
        weights += [numpy_helper.from_array(np.array([n]), name) for n, name in ((0, "zero"), (1, "one"))]
        for n in {queries, spec.intermediate_size}:
            weights.append(numpy_helper.from_array(np.array([n]), str(n)))
        for layer in layers:
            for place, each in enumerate(layer):
                if apart:
                    x = f"x{each.inner}"
                elif place in (1, 3):  # of the merged product before, what the next one reads
                    x = cut(x, each.inner)
                x = product(x, index, each)
                index += 1
        product(f"x{spec.hidden_size}" if apart else x, index, head)
        return self._wrapped(nodes, weights, made if apart else made[-1:])

    def _wrapped(self, nodes: list[Any], weights: list[Any], results: list[str]) -> onnx.ModelProto:
        """The nodes as a graph, or as the body of a Loop in one."""
        spec = self.spec
        widths = {spec.hidden_size}
        if self.form == "apart":
            widths |= {spec.num_heads * spec.head_dim, spec.intermediate_size}
        inputs = [_info(f"x{width}", ["rows", width]) for width in sorted(widths)]
        outputs = [_info(name, ["rows", None]) for name in results]
        if self.form == "loop":
            body = helper.make_graph(
                [*nodes, helper.make_node("Identity", ["going"], ["again"])],
                "body",
                [
                    _info("i", [], TensorProto.INT64),
                    _info("going", [], TensorProto.BOOL),
                    _info("before", ["rows", None]),
                ],
                [_info("again", [], TensorProto.BOOL), *outputs],
            )
            nodes = [helper.make_node("Loop", ["passes", "", "start"], ["last"], body=body)]
            inputs += [_info("passes", [], TensorProto.INT64), _info("start", ["rows", None])]
            outputs = [_info("last", ["rows", None])]
        graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def seconds(self, rows: int, passes: int) -> float:
        """Seconds of one pass, out of `passes` in a row."""
        binding, generator = self.session.io_binding(), np.random.default_rng(0)
        kept = []  # the binding itself does not keep numpy's memory alive
        for each in self.session.get_inputs():
            if each.name == "passes":
                value = np.array(passes, np.int64)
            else:
                width = int(each.name[1:]) if each.name != "start" else self.spec.vocab_size
                value = generator.standard_normal((rows, width), np.float32)
            kept.append(ort.OrtValue.ortvalue_from_numpy(value))
            binding.bind_ortvalue_input(each.name, kept[-1])
        for each in self.session.get_outputs():
            binding.bind_output(each.name)
        if self.form == "apart":
            self.session.run_with_iobinding(binding)
            for each, value in zip(self.session.get_outputs(), binding.get_outputs(), strict=True):
                kept.append(value)
                binding.bind_ortvalue_output(each.name, value)
        calls = 1 if self.form == "loop" else passes
        began = time.perf_counter()
        for _ in range(calls):
            self.session.run_with_iobinding(binding)
        return (time.perf_counter() - began) / passes


def _info(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)
