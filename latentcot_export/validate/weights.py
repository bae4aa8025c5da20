"""A bundle's own weights, by checkpoint name: what the graph really holds, rounded or quantised as it was exported."""

from __future__ import annotations

import json
import math
import mmap
import re

import onnx
import onnx_ir as ir
import torch

from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import tensor_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec
from latentcot_export.strict_json import shown

from .narrow import kept_dtype
from .quantized import BITS, Quantized

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
ALIASES = "latentcot.aliases"
_REMEDY = "export it again"
_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_CODES = {ir.DataType.UINT8: torch.uint8}
_MERGED = re.compile(r"(.+)\.(?:self_attn\.([qkv])|mlp\.(gate|up))_proj\.(weight|bias)")

Stored = dict[str, ir.TensorProtocol]
Data = mmap.mmap | bytes


def bundle_tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Every tensor of `tensor_shapes(model, recurrence)`, in its order; quantised matrices as the float32 they stand for.

    Others come back in the dtype that the graph stores. External weights are mapped, not read; matrices that the graph
    holds transposed (`weight_t`) or side by side (`qkv_proj`, `gate_up_proj`) come back as views. The model.onnx that is
    parsed has the sha256 of the manifest; model.onnx.data had it when the bundle was opened.
    Errors: InputError when a weight is missing, misshapen, of another dtype or out of its file.
    """
    return {
        name: each.dequantized() if isinstance(each, Quantized) else each
        for name, each in bundle_weights(bundle).items()
    }


def bundle_weights(bundle: Bundle) -> dict[str, torch.Tensor | Quantized]:
    """As `bundle_tensors`, but quantised matrices in their blocks."""
    where = f"file {GRAPH} of bundle {bundle.folder}"
    graph, aliases = _parse(bundle.read_bytes(GRAPH), where)
    data = _map(bundle)
    manifest = bundle.manifest
    bits = BITS.get(manifest.quantize)
    weights: dict[str, torch.Tensor | Quantized] = {}
    for name, shape in tensor_shapes(manifest.model, manifest.recurrence).items():
        stored, rows = _stored(name, graph, aliases, manifest.model)
        kept = kept_dtype(manifest, name, len(shape))
        if bits is not None and len(shape) == 2 and f"{stored}_q" in graph:
            codes = _quantized(graph, stored, shape[1], bits, data, where)
            weight: torch.Tensor | Quantized = codes
            dtype = codes.scale.dtype
            found = [codes.scale.shape[0], codes.columns]
        elif stored in graph:
            tensor = _tensor(graph[stored], data, f"weight {stored} in {where}")
            weight, dtype = tensor.t() if stored.endswith("weight_t") else tensor, tensor.dtype
            found = list(weight.shape)
        else:
            raise InputError(f"{where} holds no weight {name}, which its manifest's model needs; {_REMEDY}")
        if dtype != kept:
            raise InputError(
                f"weight {name} in {where} is {_word(dtype)} where its manifest's dtype makes it {_word(kept)}; {_REMEDY}"
            )
        total, part = rows or (shape[0], slice(None))
        if found != [total, *shape[1:]]:
            raise InputError(
                f"weight {name} in {where} has shape {found} where its manifest's model needs "
                f"{[total, *shape[1:]]}; {_REMEDY}"
            )
        weights[name] = weight if rows is None else weight[part]
    return weights


def _parse(raw: bytes, where: str) -> tuple[Stored, dict[str, str]]:
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


def _stored(
    name: str, graph: Stored, aliases: dict[str, str], model: ModelSpec
) -> tuple[str, tuple[int, slice] | None]:
    """The initializer that holds a checkpoint tensor: itself, transposed, or one of equal content.

    Where it lies beside others: the name they have together, how many rows they are, and which are its own. The name of
    a quantised matrix comes without its `_q`.
    """
    for spelling in (name, f"{name}_t"):
        for candidate in (spelling, aliases.get(spelling)):
            if isinstance(candidate, str) and (candidate in graph or f"{candidate}_q" in graph):
                return candidate, None
    found = _MERGED.fullmatch(name)
    if found is None:
        return name, None
    if found[2]:
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        merged, parts = "self_attn.qkv_proj", {"q": queries, "k": keys, "v": keys}
    else:
        merged, parts = "mlp.gate_up_proj", dict.fromkeys(("gate", "up"), model.intermediate_size)
    part, names = found[2] or found[3], list(parts)
    start = sum(parts[each] for each in names[: names.index(part)])
    together = f"{found[1]}.{merged}.{found[4]}"
    stored = f"{together}_t" if f"{together}_t" in graph else together
    return stored, (sum(parts.values()), slice(start, start + parts[part]))


def _quantized(graph: Stored, name: str, columns: int, bits: int, data: Data, where: str) -> Quantized:
    """The matrix of `columns` inputs stored as codes, scales and zero points. Errors: InputError."""
    parts = []
    for part, kinds in (("q", _CODES), ("scale", _DTYPES), ("zero", _CODES)):
        stored = f"{name}_{part}"
        if stored not in graph:
            raise InputError(f"{where} holds no weight {stored}, which belongs to its quantised one; {_REMEDY}")
        parts.append(_tensor(graph[stored], data, f"weight {stored} in {where}", kinds))
    codes, scale, zero = parts
    what = f"weight {name}_q in {where}"
    if scale.dim() != 2 or not bool(((scale > 0) & (scale < math.inf)).all()):
        raise InputError(f"{what} has scales that are no matrix of positive numbers; {_REMEDY}")
    rows, blocks = scale.shape
    if rows == 0 or blocks == 0 or codes.numel() % (rows * blocks) or codes.shape[0] != rows:
        raise InputError(f"{what} has shape {list(codes.shape)}, which {blocks} blocks do not divide; {_REMEDY}")
    codes = codes.reshape(rows, blocks, -1)  # the embedding table has no axis of blocks
    made = Quantized(codes, scale, zero, columns, bits)
    if tuple(zero.shape) != (rows, -(-blocks * bits // 8)) or -(-columns // max(1, made.block)) != blocks:
        raise InputError(f"{what} has blocks of {made.block} where {columns} columns make {blocks} blocks; {_REMEDY}")
    return made


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _map(bundle: Bundle) -> Data:
    """model.onnx.data; pages are copied if written to, which torch insists on being able to do."""
    with open(bundle.path(WEIGHTS), "rb") as stream:
        if bundle.manifest.files[WEIGHTS]["size"] == 0:
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def _tensor(
    constant: ir.TensorProtocol, data: Data, what: str, kinds: dict[ir.DataType, torch.dtype] = _DTYPES
) -> torch.Tensor:
    """One initializer as a torch tensor, inline ones copied. Errors: InputError, for other types than `kinds` too."""
    dtype, shape = kinds.get(constant.dtype), tuple(constant.shape.numpy())
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
