"""What `model.onnx` says of itself: opsets, operators, inputs, outputs and the tensors carried from call to call."""

from __future__ import annotations

from collections import Counter
from typing import Any

from latentcot_export.errors import InputError

# Loops inside a Loop: protobuf's own limit of nesting would allow about 30.
_MAX_NESTING = 64


def graph_report(data: bytes, what: str) -> dict[str, Any]:
    """Facts of a serialised ONNX model; weights are neither read nor needed.

    `operators` counts nodes in all (sub)graphs, `domain.Name` where the domain is not ONNX's own. `carried` are the
    inputs that come back as an output of the same name with `_out` appended. Axes are sizes, or names where they are
    dynamic. Errors: InputError for bytes that are no ONNX model; ModuleNotFoundError without onnx.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(data)
        if model.ir_version < 1:  # every byte string of length 0 is a valid empty message
            raise ValueError("no IR version")
        return _facts(model)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{what} is not an ONNX model ({type(error).__name__}); export the bundle again") from None


def _facts(model: Any) -> dict[str, Any]:
    outputs = {_text(value.name) for value in model.graph.output}
    inputs = [_tensor(value) for value in model.graph.input]
    return {
        "ir_version": model.ir_version,
        "producer": _text(model.producer_name),
        "opsets": {_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        "initializers": len(model.graph.initializer),
        "operators": _operators([model.graph, *model.functions]),
        "inputs": [each for each in inputs if f"{each['name']}_out" not in outputs],
        "carried": [each for each in inputs if f"{each['name']}_out" in outputs],
        "outputs": [_tensor(value) for value in model.graph.output],
    }


def _operators(level: list[Any]) -> dict[str, int]:
    """{operator: count} of the graphs and functions and of all graphs inside their nodes, the most frequent first."""
    counts: Counter[str] = Counter()
    for _ in range(_MAX_NESTING):
        below: list[Any] = []
        for graph in level:
            for node in graph.node:
                domain = _text(node.domain)
                counts[f"{domain}." * bool(domain) + _text(node.op_type)] += 1
                for attribute in node.attribute:
                    below += [attribute.g] if attribute.HasField("g") else []
                    below += attribute.graphs
        level = below
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    try:
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    except ValueError:
        dtype = f"type {kind.elem_type}"
    # ONNX names the two common ones after C's types
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    axes = [_text(axis.dim_param) or (axis.dim_value if axis.HasField("dim_value") else "?") for axis in kind.shape.dim]
    return {"name": _text(value.name), "dtype": dtype, "axes": axes}


def _text(value: str | bytes) -> str:
    """A string of the model; protobuf hands out bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
