"""pass.onnx of a dtype below float32, for a processor: the same roundings, whose products are computed in float32.

A GPU multiplies numbers of that dtype and adds them up in float32, then rounds the sum. So does a float32 product between
two Casts, but for the order of the sum; and between two Casts our own ops of the processor stand for those of the GPU, but
for two roundings: attention_mma.cuh rounds turned queries and the weights of keys to the dtype of a narrow cache.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from latentcot_export.bundle import Bundle
from latentcot_export.errors import InputError
from latentcot_export.runtime.device import PASS

from .casts import cast, cast_output

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# What no processor has for these dtypes, and which of its inputs are of them. Tables stay as they are.
_WIDE = {
    **{"MatMul": (0, 1), "Gemm": (0, 1, 2), "AddNorm": (0,), "GatedUnit": (0,), "RaggedAttention": (0,)},
    **{"MatMulNBits": (0, 2, 5), "GatherBlockQuantized": (2,)},
}


def widened(bundle: Bundle) -> bytes:
    """The pass of a bundle with Casts around every such node; external weights stay where they are. Errors: InputError."""
    data = bundle.read_bytes(PASS)
    try:
        model = ir.from_proto(onnx.load_model_from_string(data))
        _widen(model.graph)
        return ir.to_proto(model).SerializeToString()
    except Exception as error:  # protobuf, onnx and onnx_ir share no base class, and a graph may be of any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"file {PASS} of bundle {bundle.folder} is not a graph that can be read ({reason}); export it again"
        ) from None


def _widen(graph: ir.Graph) -> None:
    kinds: dict[ir.Value, ir.DataType] = {}  # of values that are narrow, in order of the nodes
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype in _NARROW:
            kinds[value] = value.dtype
    for node in list(graph):
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            if to in _NARROW:
                kinds[node.outputs[0]] = to
        elif node.op_type in _WIDE:
            narrow = [i for i in _WIDE[node.op_type] if i < len(node.inputs) and node.inputs[i] in kinds]
            if not narrow:
                continue
            kind = kinds[node.inputs[narrow[0]]]
            for index in narrow:
                value = node.inputs[index]
                if value is not None:
                    wide = cast(value, ir.DataType.FLOAT, f"{node.name}/input_{index}")
                    graph.insert_before(node, wide)
                    node.replace_input_with(index, wide.outputs[0])
            kinds[cast_output(node, kind, f"{node.name}/rounded")] = kind
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        elif first in kinds:  # Gather and the like
            kinds[node.outputs[0]] = kinds[first]
