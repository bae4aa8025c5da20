"""The layers of the packed pass, written down as nodes: one product, one norm, one router at a time.

Matrices are stored as `weight_t` `[in, out]`, or block-wise quantised as `weight_q`, `weight_scale`, `weight_zero`, under
the names of the checkpoint; queries, keys and values are one matrix, `qkv_proj`, gate and up another, `gate_up_proj`.
Everything here works on rows `[r, ...]` and gives a row the same bits whatever the other rows are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from ..spec import VISIBILITIES, ModelSpec
from ..validate.quantized import Quantized
from .narrow import cannot_hold, narrowed
from .native_sheet import CONTRIB, OWN, Context, Sheet, Sum
from .quantize import quantize

# What ONNX Runtime's MatMulNBits calls int8 activations; its other levels take 10 times as long on a CPU.
INT8_ACTIVATIONS = 4


class Weights:
    """Initializers of the outer graph, made of a checkpoint's tensors; `bits` is None for matrices that have none.

    `dtype` is that of matrices, or of their scales.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        bits: int | None,
        dtype: str = "float32",
        stored: Mapping[str, ir.TensorProtocol | None] | None = None,
    ) -> None:
        """`stored` are contents by name that need not be made again."""
        self.tensors, self.bits, self.dtype, self.stored = tensors, bits, dtype, stored or {}
        self.values: dict[str, ir.Value] = {}
        self.later: ir.Value | None = None
        """1 for rows of a step after the first, else 0, `[r, 1]`: where adapters are on. Set by the pass."""
        self.views: dict[ir.Value, ir.Value] = {}
        """Values without content of their own, and the initializers whose bytes they are in another shape."""

    def again(self) -> Weights:
        """Initializers for another graph of the same checkpoint: what is stored already is not made a second time."""
        stored = {name: value.const_value for name, value in self.values.items()}
        return Weights(self.tensors, self.bits, self.dtype, stored)

    def constant(self, name: str, content: np.ndarray | Callable[[], np.ndarray]) -> ir.Value:
        """An initializer; of one name there is one, the first. `content`, float32, is made where it is not stored."""
        if name not in self.values:
            tensor = self.stored.get(name)
            if tensor is None:
                tensor = narrowed(name, content() if callable(content) else content, self.dtype)
            self.values[name] = ir.Value(
                name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.values[name]

    def vector(self, name: str) -> ir.Value:
        """A norm's weight, or a bias, float32."""
        return self.constant(name, self.tensors[name].float().numpy())

    def quantized(self, name: str, matrix: Callable[[], torch.Tensor], flat: bool = False) -> list[ir.Value]:
        """Codes `[out, blocks, bytes]` (`flat`: `[out, blocks * bytes]`), scales, zero points of a matrix `[out, in]`."""
        bits = self.bits
        assert bits is not None

        @functools.cache
        def made() -> Quantized:
            codes = quantize(matrix(), bits, getattr(torch, self.dtype))
            if not codes.scale.isfinite().all():
                most = float(matrix().abs().max())
                raise cannot_hold(f"{name}.weight", most, self.dtype, "a step between two codes of which")
            return codes

        def codes() -> np.ndarray:
            return (made().codes.flatten(1) if flat else made().codes).numpy()

        parts: dict[str, Callable[[], np.ndarray]] = {
            "q": codes,
            "scale": lambda: made().scale.float().numpy(),
            "zero": lambda: made().zero.numpy(),
        }
        return [self.constant(f"{name}.weight_{part}", content) for part, content in parts.items()]

    def product(
        self, sheet: Sheet, x: ir.Value, path: str, parts: Sequence[str] = (), onto: ir.Value | None = None
    ) -> ir.Value:
        """x times the matrices `parts` (default: `path`) side by side, plus their bias, or plus `onto` in its place."""
        made = self._product(sheet, x, path, parts or (path,), onto)
        added = self._adapter(sheet, x, path, parts or (path,))
        return made if added is None else sheet.one("Add", f"{path}/adapted", made, added)

    def _adapter(self, sheet: Sheet, x: ir.Value, path: str, names: Sequence[str]) -> ir.Value | None:
        """B (A x) of the adapters of `names` side by side, 0 for rows of step 1; float32 however matrices are stored."""
        adapted = [name for name in names if f"{name}.adapter_in.weight" in self.tensors]
        if not adapted:
            return None
        assert self.later is not None
        made = []
        for name in names:
            source = name if name in adapted else adapted[0]
            inner = self.constant(f"{source}.adapter_in.weight_t", self._transposed(f"{source}.adapter_in.weight"))
            narrow = sheet.one(
                "Mul", f"{name}.adapter_in", sheet.one("MatMul", f"{name}.adapter_in", x, inner), self.later
            )
            if name == source:
                outer = self.constant(f"{name}.adapter_out.weight_t", self._transposed(f"{name}.adapter_out.weight"))
            else:  # a linear without an adapter among others with one
                shape = (self.tensors[f"{source}.adapter_in.weight"].shape[0], self.tensors[f"{name}.weight"].shape[0])
                outer = self.constant(f"constants/{name}.no_adapter", np.zeros(shape, np.float32))
            made.append(sheet.one("MatMul", f"{name}.adapter_out", narrow, outer))
        return made[0] if len(made) == 1 else sheet.one("Concat", f"{path}/adapters", *made, axis=1)

    def _transposed(self, name: str) -> np.ndarray:
        return self.tensors[name].float().t().contiguous().numpy()

    def _product(self, sheet: Sheet, x: ir.Value, path: str, names: Sequence[str], onto: ir.Value | None) -> ir.Value:
        parts = [self.tensors[f"{name}.weight"] for name in names]
        shape = (sum(each.shape[0] for each in parts), parts[0].shape[1])

        def matrix() -> torch.Tensor:
            return torch.cat([each.float() for each in parts])

        biases = [self.tensors[f"{name}.bias"].float() for name in names if f"{name}.bias" in self.tensors]
        bias = self.constant(f"{path}.bias", torch.cat(biases).numpy()) if biases else None
        if self.bits is not None:
            held = self.quantized(path, matrix)
            return product_of_codes(sheet, x, path, held, shape, self.bits, bias)
        weight = self.constant(f"{path}.weight_t", lambda: matrix().t().contiguous().numpy())
        addend = onto if bias is None else bias
        return sheet.one("MatMul", path, x, weight) if addend is None else sheet.one("Gemm", path, x, weight, addend)

    def onto(self, sheet: Sheet, x: ir.Value, path: str, residual: ir.Value) -> Sum:
        """x times the matrix `path` and `residual`: one value where a product can add it for nothing, as Gemm's C.

        A narrow product cannot, since residuals are float32.
        """
        if self.bits is None and self.dtype == "float32" and f"{path}.bias" not in self.tensors:
            return Sum(self.product(sheet, x, path, onto=residual))
        return Sum(residual, self.product(sheet, x, path))

    def norm(self, sheet: Sheet, x: Sum, path: str, spec: ModelSpec) -> tuple[ir.Value, ir.Value]:
        """The spec's norm over the last axis of a sum, and the sum."""
        weight, eps = self.vector(f"{path}.weight"), spec.rms_norm_eps
        if spec.norm == "layer":
            total = self.total(sheet, x, path)
            bias = self.vector(f"{path}.bias")
            return sheet.one("LayerNormalization", path, total, weight, bias, axis=-1, epsilon=eps), total
        if x.more is None:
            return sheet.one("RMSNormalization", path, x.value, weight, axis=-1, epsilon=eps), x.value
        axes: list[int | str] = ["rows", spec.hidden_size]
        normed, total = sheet.many(
            OWN,
            "AddNorm",
            path,
            [x.more, x.value, weight],
            {"normed": (ir.DataType.FLOAT, axes), "total": (ir.DataType.FLOAT, axes)},
            epsilon=eps,
        )
        return normed, total

    def total(self, sheet: Sheet, x: Sum, path: str) -> ir.Value:
        """The sum as one value."""
        return x.value if x.more is None else sheet.one("Add", f"{path}/total", x.value, x.more)

    def layer(
        self,
        sheet: Sheet,
        x: Sum,
        index: int,
        spec: ModelSpec,
        context: Context,
        visibility: str = "duo",
        **form: int,
    ) -> Sum:
        """Layer `index` on x `[r, D]`. The equations are those of model/stack.py.

        `form`: further attributes of RaggedAttention.
        """
        path = f"model.layers.{index}"
        before, after = f"{path}.input_layernorm", f"{path}.post_attention_layernorm"
        out, mlp, down = f"{path}.self_attn.o_proj", f"{path}.mlp", f"{path}.mlp.down_proj"
        normed, residual = self.norm(sheet, x, before, spec)
        mixed = self._attention(sheet, normed, index, spec, context, visibility, form)
        if spec.block == "parallel":
            beside, _ = self.norm(sheet, Sum(residual), after, spec)
            x = self.onto(sheet, mixed, out, residual)
            return self.onto(sheet, self._inner(sheet, beside, mlp, spec), down, self.total(sheet, x, out))
        if spec.block == "sandwich":
            added, _ = self.norm(sheet, Sum(self.product(sheet, mixed, out)), f"{before}_2", spec)
            normed, residual = self.norm(sheet, Sum(residual, added), after, spec)
            made = self.product(sheet, self._inner(sheet, normed, mlp, spec), down)
            return Sum(residual, self.norm(sheet, Sum(made), f"{after}_2", spec)[0])
        normed, residual = self.norm(sheet, self.onto(sheet, mixed, out, residual), after, spec)
        return self.onto(sheet, self._inner(sheet, normed, mlp, spec), down, residual)

    def _attention(
        self,
        sheet: Sheet,
        normed: ir.Value,
        index: int,
        spec: ModelSpec,
        context: Context,
        visibility: str,
        form: dict[str, int],
    ) -> ir.Value:
        """What attention gives rows, `[r, heads * head_dim]`, before the output projection."""
        path = f"model.layers.{index}.self_attn"
        qkv = self.product(sheet, normed, f"{path}.qkv_proj", [f"{path}.{each}_proj" for each in "qkv"])
        extra: dict[str, float] = {}
        norms: list[ir.Value | None] = [None, None]
        if spec.qk_norm:
            norms = [self.vector(f"{path}.{each}_norm.weight") for each in "qk"]
            extra = {"epsilon": spec.rms_norm_eps}
        return sheet.many(
            OWN,
            "RaggedAttention",
            path,
            [qkv, *context[:-1], *norms, context.counters],
            {"mixed": (ir.DataType.FLOAT, ["rows", spec.num_heads * spec.head_dim])},
            layer=index,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            visibility=VISIBILITIES.index(visibility),
            **extra,
            **form,
        )[0]

    def _inner(self, sheet: Sheet, normed: ir.Value, path: str, spec: ModelSpec) -> ir.Value:
        """What the MLP's last product reads, `[r, intermediate_size]`."""
        if spec.mlp == "plain":
            return _activated(sheet, self.product(sheet, normed, f"{path}.up_proj"), path, spec)
        if spec.activation == "silu":
            # one product instead of two, which quantises its input once
            pair = self.product(
                sheet, normed, f"{path}.gate_up_proj", [f"{path}.{each}_proj" for each in ("gate", "up")]
            )
            axes: list[int | str] = ["rows", spec.intermediate_size]
            return sheet.many(OWN, "GatedUnit", path, [pair], {"gated": (ir.DataType.FLOAT, axes)})[0]
        gate = _activated(sheet, self.product(sheet, normed, f"{path}.gate_proj"), path, spec)
        return sheet.one("Mul", path, gate, self.product(sheet, normed, f"{path}.up_proj"))


def _activated(sheet: Sheet, x: ir.Value, path: str, spec: ModelSpec) -> ir.Value:
    if spec.activation == "silu":
        return sheet.one("QuickGelu", f"{path}/act", x, domain=CONTRIB, alpha=1.0)
    # right to float32 rounding, and a row's bits are its own: see NOTES in CONTRIBUTING.md
    return sheet.one("Gelu", f"{path}/act", x, approximate="tanh" if spec.activation == "gelu_tanh" else "none")


def product_of_codes(
    sheet: Sheet,
    x: ir.Value,
    path: str,
    held: Sequence[ir.Value],
    shape: tuple[int, ...],
    bits: int,
    bias: ir.Value | None = None,
) -> ir.Value:
    """x `[r, in]` times a quantised matrix of shape `[out, in]`: `[r, out]`."""
    codes = held[0]
    assert codes.shape is not None
    return sheet.one(
        "MatMulNBits",
        path,
        x,
        *held,
        *([] if bias is None else [None, bias]),
        domain=CONTRIB,
        K=shape[1],
        N=shape[0],
        bits=bits,
        block_size=int(codes.shape[2]) * 8 // bits,
        accuracy_level=INT8_ACTIVATIONS,
    )
