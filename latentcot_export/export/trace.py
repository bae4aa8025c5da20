"""A traced pass becomes one ONNX graph: torch.export, then the pass as the body of a single Loop.

The pass is traced alone and wrapped here, because `torch.while_loop` refuses carried tensors whose shape may change
between calls, and because two loop bodies that capture the same weights would prepack them twice.
"""

from __future__ import annotations

import collections
import json
import logging
import warnings

import onnx_ir as ir
import torch

from ..spec import ModelSpec, RecurrenceSpec
from .layers import Form
from .portable_pass import GIVEN, PortablePass

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIASES = "latentcot.aliases"
# sizes of the traced example; any will do, but 0 and 1 would be taken for constants
_EXAMPLE = {"batch": 3, "length": 11, "stops": 2, "slots": 40, "rows": 4, "logit_positions": 5}
_SCOPES = "pkg.torch.onnx.name_scopes"


def _axes(module: PortablePass) -> dict[str, tuple[torch.dtype, tuple[str | int, ...]]]:
    """Every input of the pass: name -> (dtype, axes), axes named where they are dynamic."""
    return {name: (dtype or module.dtype, axes) for name, (dtype, axes) in GIVEN.items()} | module.carried()


def trace_pass(module: PortablePass, form: Form) -> ir.Model:
    """The pass as an ONNX model of standard operators, inputs and outputs in the order of the module."""
    axes = _axes(module)
    dims = {name: torch.export.Dim(name) for name in _EXAMPLE}
    example, dynamic = [], []
    for dtype, shape in axes.values():
        example.append(torch.zeros([a if isinstance(a, int) else _EXAMPLE[a] for a in shape], dtype=dtype))
        dynamic.append({i: dims[str(a)] for i, a in enumerate(shape) if str(a) in dims})
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module.eval(), tuple(example), dynamic_shapes={"inputs": tuple(dynamic)}, strict=False
            )
            exported = torch.onnx.export(program, dynamo=True, opset_version=form.opset, optimize=True, verbose=False)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None
    return exported.model


def _name_nodes(graph: ir.Graph, prefix: str = "") -> None:
    """Nodes and values get the path of the module that made them; the exporter's metadata, with local paths, goes."""
    seen: collections.Counter[str] = collections.Counter()
    boundary = {id(v) for v in (*graph.inputs, *graph.outputs)}
    for node in graph:
        scopes = json.loads(node.metadata_props.get(_SCOPES, "[]").replace("'", '"'))
        module = scopes[-2] if len(scopes) > 1 else ""
        path = "shapes" if module.startswith("_empty") else module or "pass"
        stem = f"{prefix}{path}/{node.op_type}"
        seen[stem] += 1
        node.name = stem if seen[stem] == 1 else f"{stem}_{seen[stem]}"
        node.metadata_props.clear()
        node.doc_string = None
        for i, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if id(value) not in boundary:
                value.name = f"{node.name}:{i}" if len(node.outputs) > 1 else f"{node.name}:out"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _name_subgraph(attribute.as_graph(), f"{node.name}/")
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = None


def _name_subgraph(graph: ir.Graph, prefix: str) -> None:
    for kind, values in (("in", graph.inputs), ("out", graph.outputs)):
        for i, value in enumerate(values):
            value.name = f"{prefix}{kind}{i}"
    graph.name = prefix.rstrip("/")
    _name_nodes(graph, prefix)


def _weight_name(name: str, module: PortablePass) -> str:
    """Checkpoint name of a parameter of the module; `weight_t` marks a transposed matrix."""
    renames = {"choice.head_t": "lm_head.weight_t", "rope_frequencies": "rope.frequencies"}
    if not name.startswith("gates."):
        return renames.get(name, name)
    if module.recurrence.decider is not None:
        return name.replace("gates.", "router.", 1).replace(".inner.", ".in.")
    name = name.removeprefix("gates.").replace("_in.", ".in.").replace("_out.", ".out.")
    return name if module.recurrence.router_shared else name.replace("router_", "router.", 1)


def _rename_weights(initializers: dict[str, ir.Value], module: PortablePass) -> None:
    """Initializers get their checkpoint names, constants a readable one."""
    known = module.state_dict()
    for name, value in list(initializers.items()):
        value.name = _weight_name(name, module) if name in known else f"constants/{name}"


def wrap_in_loop(traced: ir.Model, module: PortablePass, form: Form) -> ir.Model:
    """One model with one Loop whose body is the traced pass; weights live in the outer graph, once."""
    axes = _axes(module)
    carried = list(module.carried())
    body = traced.graph
    weights = dict(body.initializers)
    _name_nodes(body)

    def declared(name: str, suffix: str = "") -> ir.Value:
        dtype, shape = axes[name]
        kind = {torch.int64: "INT64", torch.bool: "BOOL", torch.float32: "FLOAT", torch.float16: "FLOAT16"}[dtype]
        return ir.Value(name=name + suffix, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType[kind]))

    given = {name: declared(name) for name in GIVEN}
    given_before = list(body.inputs)[: len(GIVEN)]
    carried_before = list(body.inputs)[len(GIVEN) :]
    for value, name in zip(given_before, GIVEN, strict=True):
        value.replace_all_uses_with(given[name])  # the body captures what stays the same during a call
    iteration = ir.Value(name="pass/iteration", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    going = ir.Value(name="pass/going", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    body.inputs.clear()
    body.inputs.extend([iteration, going, *carried_before])
    for value, name in zip(carried_before, carried, strict=True):
        value.name, value.shape = f"pass/{name}", ir.Shape(axes[name][1])
    for value, name in zip(body.outputs, ["again", *carried], strict=True):
        value.name = f"pass/{name}_out"
        value.shape = ir.Shape([] if name == "again" else axes[name][1])
    body.name = "pass"

    _rename_weights(weights, module)
    body.initializers.clear()
    max_passes = ir.Value(name="max_passes", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    inputs = [*given.values(), max_passes, *(declared(name) for name in carried)]
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    for value in weights.values():
        if value.name == "lm_head.weight_t" and module.spec.tie_word_embeddings:
            # the tied table is stored once; runtimes fold this transpose when they load
            table = next(v for v in weights.values() if v.name == "model.embed_tokens.weight")
            node = ir.node("Transpose", [table], {"perm": [1, 0]}, name="lm_head/Transpose")
            node.outputs[0].name = "lm_head.weight_t"
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            value.replace_all_uses_with(node.outputs[0])
            nodes.append(node)
        else:
            initializers.append(value)
    always = ir.Value(name="constants/true", const_value=ir.tensor(True, name="constants/true"))
    always.shape, always.type = ir.Shape([]), ir.TensorType(ir.DataType.BOOL)
    outputs = [declared(name, "_out") for name in carried]
    loop = ir.Node(
        "",
        "Loop",
        [max_passes, always, *inputs[len(GIVEN) + 1 :]],
        [ir.AttrGraph("body", body)],
        outputs=outputs,
        name="burst",
    )
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=[*nodes, loop],
        initializers=[*initializers, always],
        opset_imports={"": form.opset},
        name="latentcot",
    )
    return ir.Model(graph, ir_version=10 if form.opset < 23 else 11, producer_name="latentcot-export")


def _record_aliases(model: ir.Model, module: PortablePass) -> None:
    """The optimiser stores equal small tensors once; say which names mean which, so that weights can be read back."""
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    aliases = {}
    for parameter, tensor in module.state_dict().items():
        name = _weight_name(parameter, module)
        tied = name == "lm_head.weight_t" and module.spec.tie_word_embeddings
        if name in stored or tied or name == "rope.frequencies":
            continue
        for other, constant in stored.items():
            if constant is None or tuple(constant.shape) != tuple(tensor.shape):
                continue
            if torch.equal(torch.from_numpy(constant.numpy().copy()).to(tensor.dtype), tensor):
                aliases[name] = other
                break
        else:
            raise RuntimeError(f"weight {name} is missing from the traced graph")
    model.metadata_props[ALIASES] = json.dumps(aliases, sort_keys=True)


def portable_model(
    spec: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor], dtype: str, opset: int
) -> ir.Model:
    """The portable graph of a checkpoint, weights in memory. Opset 23 and above is fused, 18 to 22 decomposed."""
    form = Form(opset)
    module = PortablePass(spec, recurrence, tensors, DTYPES[dtype], form)
    traced = trace_pass(module, form)
    model = wrap_in_loop(traced, module, form)
    _record_aliases(model, module)
    return model
