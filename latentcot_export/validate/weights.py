"""A bundle's own weights, by checkpoint name: what the graph really holds, rounded as it was exported."""

from __future__ import annotations

import json
import math
import mmap

import onnx
import onnx_ir as ir
import torch

from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import tensor_shapes
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
ALIASES = "latentcot.aliases"
_REMEDY = "export it again"
_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def bundle_tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Every tensor of `tensor_shapes(model, recurrence)`, in its order, in the dtype that the graph stores.

    External weights are mapped, not read; matrices that the graph holds transposed (`weight_t`) come back as views. The
    model.onnx that is parsed has the sha256 of the manifest; model.onnx.data had it when the bundle was opened.
    Errors: InputError when a weight is missing, misshapen, of another dtype or out of its file.
    """
    where = f"file {GRAPH} of bundle {bundle.folder}"
    graph, aliases = _parse(bundle.read_bytes(GRAPH), where)
    data = _map(bundle)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(bundle.manifest.model, bundle.manifest.recurrence).items():
        stored = _stored_name(name, graph, aliases)
        if stored is None:
            raise InputError(f"{where} holds no weight {name}, which its manifest's model needs; {_REMEDY}")
        tensor = _tensor(graph[stored], data, f"weight {stored} in {where}")
        if stored.endswith("weight_t"):
            tensor = tensor.t()
        if tuple(tensor.shape) != tuple(shape):
            raise InputError(
                f"weight {name} in {where} has shape {list(tensor.shape)} where its manifest's model needs "
                f"{list(shape)}; {_REMEDY}"
            )
        tensors[name] = tensor
    return tensors


def _parse(raw: bytes, where: str) -> tuple[dict[str, ir.TensorProtocol], dict[str, str]]:
    """Constant initializers of the outer graph by name, and the names under which equal ones are stored."""
    try:
        model = ir.from_proto(onnx.load_model_from_string(raw))
        aliases = json.loads(model.metadata_props.get(ALIASES, "{}"))
    except Exception as error:  # protobuf, onnx_ir and json share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{where} is not a graph that can be read ({reason}); {_REMEDY}") from None
    if not isinstance(aliases, dict):
        raise InputError(f"{where} has {ALIASES} that is no JSON object; {_REMEDY}")
    constants = {
        name: value.const_value for name, value in model.graph.initializers.items() if value.const_value is not None
    }
    return constants, aliases


def _stored_name(name: str, graph: dict[str, ir.TensorProtocol], aliases: dict[str, str]) -> str | None:
    """The initializer that holds a checkpoint tensor: itself, transposed, or one of equal content."""
    for spelling in (name, f"{name}_t"):
        for candidate in (spelling, aliases.get(spelling)):
            if isinstance(candidate, str) and candidate in graph:
                return candidate
    return None


def _map(bundle: Bundle) -> mmap.mmap | bytes:
    """model.onnx.data; pages are copied if written to, which torch insists on being able to do."""
    with open(bundle.path(WEIGHTS), "rb") as stream:
        if bundle.manifest.files[WEIGHTS]["size"] == 0:
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def _tensor(constant: ir.TensorProtocol, data: mmap.mmap | bytes, what: str) -> torch.Tensor:
    """One initializer as a torch tensor, inline ones copied. Errors: InputError."""
    dtype, shape = _DTYPES.get(constant.dtype), tuple(constant.shape.numpy())
    if dtype is None:
        raise InputError(f"{what} is {constant.dtype.name}, which no weight of this version is; {_REMEDY}")
    count = math.prod(shape)
    if isinstance(constant, ir.ExternalTensor):
        if constant.location != WEIGHTS:
            raise InputError(f"{what} lies in {shown(constant.location)} and not in {WEIGHTS}; {_REMEDY}")
        offset, size = constant.offset or 0, count * dtype.itemsize
        if constant.length not in (None, size) or offset < 0 or offset + size > len(data):
            raise InputError(f"{what} is not the {size} bytes at {offset} of {WEIGHTS} that it should be; {_REMEDY}")
        return torch.frombuffer(data, dtype=dtype, count=count, offset=offset).reshape(shape)
    raw = bytearray(constant.tobytes())
    if len(raw) != count * dtype.itemsize:
        raise InputError(f"{what} has {len(raw)} bytes where its shape {list(shape)} needs another number; {_REMEDY}")
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)
