"""The layers of an exported pass: a checkpoint's matrices transposed, its names kept, fused or decomposed.

Weight matrices are stored as `weight_t`, `[in, out]`, so that the graph holds plain MatMuls and no second copy.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from ..model.rope import rotate
from ..ops import ragged_attention
from ..spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Form:
    """How the pass is written down: fused ops and ragged row sets (opset 24), or what older parsers take (opset 20)."""

    opset: int

    @property
    def fused(self) -> bool:
        """`Attention`, `RMSNormalization` and NonZero row sets; otherwise decomposed with fixed row counts."""
        return self.opset >= 23


class Matrix(nn.Module):
    """y = x @ weight_t (+ bias), weight_t `[in, out]`; an adapter adds its two matrices' product in the rows of `later`."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight_t = nn.Parameter(tensors[f"{name}.weight"].to(dtype).t().contiguous(), requires_grad=False)
        bias = tensors.get(f"{name}.bias")
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        adapted = f"{name}.adapter_in.weight" in tensors
        self.adapter_in = Matrix(tensors, f"{name}.adapter_in", dtype) if adapted else None
        self.adapter_out = Matrix(tensors, f"{name}.adapter_out", dtype) if adapted else None

    def forward(self, x: torch.Tensor, later: torch.Tensor | None = None) -> torch.Tensor:
        """`[..., out]` of x `[..., in]`; later bool `[..., 1]` says which rows are in a step after the first."""
        y = x @ self.weight_t
        if self.bias is not None:
            y = y + self.bias
        if self.adapter_in is None or self.adapter_out is None:
            return y
        assert later is not None
        return y + self.adapter_out(torch.where(later, self.adapter_in(x), 0.0))


class Norm(nn.Module):
    """RMS norm over the last dimension; float32 inside whatever the dtype."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, eps: float, dtype: torch.dtype, form: Form) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensors[f"{name}.weight"].to(dtype), requires_grad=False)
        self.eps, self.form = eps, form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        if self.form.fused:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class CentredNorm(nn.Module):
    """Layer norm over the last dimension: `LayerNormalization`, which has been there since opset 17.

    ONNX Runtime's is right to 1e-6 at unit variance and, with a mean of 1000 deviations, closer than torch's.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensors[f"{name}.weight"].to(dtype), requires_grad=False)
        self.bias = nn.Parameter(tensors[f"{name}.bias"].to(dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def hidden_norm(
    tensors: dict[str, torch.Tensor], name: str, spec: ModelSpec, dtype: torch.dtype, form: Form
) -> nn.Module:
    """The norm over the hidden dimension that the spec has."""
    if spec.norm == "layer":
        return CentredNorm(tensors, name, spec.rms_norm_eps, dtype)
    return Norm(tensors, name, spec.rms_norm_eps, dtype, form)


class SelfAttention(nn.Module):
    """Projections, head norms, RoPE, cache write and ragged attention of one layer."""

    def __init__(
        self, tensors: dict[str, torch.Tensor], name: str, spec: ModelSpec, dtype: torch.dtype, form: Form
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Matrix(tensors, f"{name}.{each}", dtype) for each in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        self.q_norm, self.k_norm = (
            Norm(tensors, f"{name}.{each}", spec.rms_norm_eps, dtype, form) if spec.qk_norm else nn.Identity()
            for each in ("q_norm", "k_norm")
        )
        self.spec, self.form = spec, form

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slot: torch.Tensor,
        bias: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        later: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output `[B, R, D]` and the layer's caches `[B, kv, N, hd]` with this pass's rows written."""
        batch, rows = x.shape[0], x.shape[1]
        spec = self.spec

        def heads(y: torch.Tensor, count: int) -> torch.Tensor:
            return y.reshape(batch, rows, count, spec.head_dim).transpose(1, 2)

        query = rotate(self.q_norm(heads(self.q_proj(x, later), spec.num_heads)), cos, sin)
        key = rotate(self.k_norm(heads(self.k_proj(x, later), spec.num_kv_heads)), cos, sin)
        keys = ragged_attention.write_slots(keys, key, slot)
        values = ragged_attention.write_slots(values, heads(self.v_proj(x, later), spec.num_kv_heads), slot)
        attend = ragged_attention.attend_fused if self.form.fused else ragged_attention.attend_decomposed
        mixed = attend(query, keys, values, bias).transpose(1, 2).reshape(batch, rows, -1)
        return self.o_proj(mixed, later), keys, values


class Activation(nn.Module):
    """`silu`, `gelu` or `gelu_tanh`.

    Both kinds of ONNX Runtime's `Gelu` are right to float32 rounding: measured in 1.32 for |x| <= 12, erf is off by 5e-7
    and tanh by 8e-7 at most, where torch is off by 1.1e-6 and 5e-7. Sigmoid's error (see `_probability`) is absolute and
    small, which does no harm here.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        if self.name == "silu":
            return x * torch.sigmoid(x)
        return F.gelu(x, approximate="tanh" if self.name == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, spec: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Matrix(tensors, f"{name}.gate_proj", dtype) if spec.mlp == "gated" else None
        self.act = Activation(spec.activation)
        self.up_proj, self.down_proj = (Matrix(tensors, f"{name}.{each}", dtype) for each in ("up_proj", "down_proj"))

    def forward(self, x: torch.Tensor, later: torch.Tensor | None = None) -> torch.Tensor:
        """Same shape as x."""
        up = self.up_proj(x, later)
        inner = self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x, later)) * up
        return self.down_proj(inner, later)


class PassLayer(nn.Module):
    """One layer of any block; the equations are those of `latentcot_export.model.stack.Layer`."""

    def __init__(
        self, tensors: dict[str, torch.Tensor], name: str, spec: ModelSpec, dtype: torch.dtype, form: Form
    ) -> None:
        super().__init__()
        self.block = spec.block
        self.self_attn = SelfAttention(tensors, f"{name}.self_attn", spec, dtype, form)
        self.mlp = Mlp(tensors, f"{name}.mlp", spec, dtype)

        def norm(each: str) -> nn.Module:
            return hidden_norm(tensors, f"{name}.{each}", spec, dtype, form)

        self.input_layernorm, self.post_attention_layernorm = norm("input_layernorm"), norm("post_attention_layernorm")
        if spec.block == "sandwich":
            self.input_layernorm_2 = norm("input_layernorm_2")
            self.post_attention_layernorm_2 = norm("post_attention_layernorm_2")

    def forward(
        self, x: torch.Tensor, *rest: torch.Tensor, later: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As SelfAttention, with norms, residuals and MLP. later: see Matrix; needed where there are adapters."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x), *rest, later=later)
        if self.block == "parallel":
            return x + (self.mlp(self.post_attention_layernorm(x), later) + mixed), keys, values
        if self.block == "sandwich":
            x = x + self.input_layernorm_2(mixed)
            made = self.mlp(self.post_attention_layernorm(x), later)
            return x + self.post_attention_layernorm_2(made), keys, values
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x), later), keys, values


class PassStack(nn.Module):
    """Embedding table, layers, final norm, under the names that a checkpoint gives them."""

    def __init__(self, tensors: dict[str, torch.Tensor], spec: ModelSpec, dtype: torch.dtype, form: Form) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(tensors["model.embed_tokens.weight"].to(dtype))
        self.layers = nn.ModuleList(
            PassLayer(tensors, f"model.layers.{i}", spec, dtype, form) for i in range(spec.num_layers)
        )
        self.norm = hidden_norm(tensors, "model.norm", spec, dtype, form)
