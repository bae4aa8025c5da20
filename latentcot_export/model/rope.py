"""Rotary position embedding: the frequencies of every kind that published checkpoints carry.

Sources: RoFormer (arXiv 2104.09864) eq. 34; linear and dynamic scaling as `transformers` defines them; YaRN
(arXiv 2309.00071) section 3.4; the wavelength bands of Llama 3.1's published configuration.
"""

from __future__ import annotations

import math

import torch

from ..spec import RopeSpec


def _yarn(
    spec: RopeSpec, rotary_dim: int, base: torch.Tensor, max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    factor = spec.factor or 1.0
    original = spec.original_max_position_embeddings or max_position_embeddings
    beta_fast = 32.0 if spec.beta_fast is None else spec.beta_fast
    beta_slow = 1.0 if spec.beta_slow is None else spec.beta_slow

    def dimension(rotations: float) -> float:
        # the (fractional) pair index whose wave turns `rotations` times within the original context
        return rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if spec.truncate is None or spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # a ramp of zero width would divide by zero
    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp  # 1: fast waves keep their frequency, 0: slow ones are interpolated
    frequencies = (base / factor) * (1 - keep) + base * keep

    def magnitude(scale: float, mscale: float) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    attention = spec.attention_factor
    if attention is None:
        if spec.mscale and spec.mscale_all_dim:
            attention = magnitude(factor, spec.mscale) / magnitude(factor, spec.mscale_all_dim)
        else:
            attention = magnitude(factor, 1.0)
    return frequencies, float(attention)


def _llama3(spec: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    assert spec.factor and spec.low_freq_factor is not None and spec.high_freq_factor is not None
    assert spec.original_max_position_embeddings
    turns = spec.original_max_position_embeddings * base / (2 * math.pi)  # full turns within the original context
    smooth = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blended = (1 - smooth) * base / spec.factor + smooth * base
    scaled = torch.where(turns < spec.low_freq_factor, base / spec.factor, base)
    medium = (turns >= spec.low_freq_factor) & (turns <= spec.high_freq_factor)
    return torch.where(medium, blended, scaled)


def rope_frequencies(spec: RopeSpec, rotary_dim: int, max_position_embeddings: int) -> tuple[torch.Tensor, float]:
    """Angular frequencies float32 `[rotary_dim / 2]` (radians per position) and the factor on cos and sin.

    `dynamic` equals `default` here: it differs only beyond `max_position_embeddings`, which is refused elsewhere because
    prefill and decode would disagree there by construction.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    base = 1.0 / (spec.theta**exponent)
    if spec.kind == "linear":
        return base / float(spec.factor or 1.0), 1.0
    if spec.kind == "llama3":
        return _llama3(spec, base), 1.0
    if spec.kind == "yarn":
        return _yarn(spec, rotary_dim, base, max_position_embeddings)
    return base, 1.0


def rope_angles(position: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Angles float32 `[..., rotary_dim / 2]` of integer positions `[...]`.

    The product is taken in float32 in every precision, as `transformers` does: a float64 oracle with exact angles would
    differ from every published model by 1e-4 rad at position 2000.
    """
    return position.to(torch.float32).unsqueeze(-1) * frequencies


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the leading 2 h dimensions of x `[B, heads, R, head_dim]`, pairs (i, i + h), by cos, sin `[B, 1, R, h]`."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned if 2 * half == x.shape[-1] else (*turned, x[..., 2 * half :]), dim=-1)
