"""RaggedAttention on packed rows: head norms, RoPE, keys and values written at their slot, attention over what rows see.

Contract (arXiv 2602.08220 and the rules of spec/recurrence.py; tables in `packed_tables.py`)
    In: qkv float32 `[r, (H + 2 G) * hd]` (queries, keys, values, head by head; H a multiple of G, hd even), cos and sin
    float32 `[r, h]` of the rows' positions, 1 <= h <= hd / 2, rows int32 `[r, 4]`, then the tables slots and cache, for
    the stop rule tail the table weights, and q_norm and k_norm float32 `[hd]`, both or none. Attributes: layer, num_heads
    (H), num_kv_heads (G), head_dim (hd), visibility (index of VISIBILITIES), epsilon. Out: float32 `[r, H * hd]`. On a GPU
    qkv and the result may both be float16 or bfloat16.
    With norms, every query and key head x becomes x / sqrt(mean(x^2) + epsilon) * norm first. Then their first 2 h lanes
    are rotated in pairs (i, i + h); those behind stay. Keys and values of all rows enter the cache of `layer` at the
    row's slot, in the cache's type; in float16 what lies beyond its largest value becomes that value; a row of slot -2
    enters none. Then row (s, t, k) attends, with scale hd ** -0.5, over slots[s, p, t'] >= 0 for t' <= t and
        duo: p < k     all: every p where t' < t, p < k where t' = t     same: p = k - 1
        newest: p = k - 1, and p < k - 1 where slots[s, p + 1, t'] < 0
    its own among them. With weights, log(weights[s, t', p]) is added to the score where p > 0. The sums are formed plane
    by plane and position by position, so the bits of a row do not depend on the rows beside it.
    slots[s, k - 1, t] must be the row's slot, -1 where it is -2.
    With the attribute fixed (0 or 1): r is R; dead rows write nothing and attend to nothing, their result is 0.
"""

from __future__ import annotations

import torch

from .packed_tables import live_rows

FLOAT16_LARGEST = 65504.0  # IEEE 754 binary16


def packed_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    *,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    visibility: str = "duo",
    weights: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    fixed: bool = False,
) -> torch.Tensor:
    """See the contract; computed and returned in the dtype of qkv, which may be float64. The cache changes in place."""
    heads = qkv.unflatten(1, (-1, head_dim))  # [r, H + 2 G, hd]
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)

    def turned(x: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        if norm is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * norm.to(x.dtype)
        half = cos.shape[1]
        first, second = x[..., :half], x[..., half : 2 * half]
        c, s = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
        return torch.cat((first * c - second * s, second * c + first * s, x[..., 2 * half :]), dim=-1)

    query = turned(query, q_norm)
    for plane, new in enumerate((turned(key, k_norm), value)):
        if cache.dtype == torch.float16:
            new = new.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
        writes = rows[:, 3] >= 0
        cache[layer, plane, rows[writes, 3].long(), :, :head_dim] = new[writes].to(cache.dtype)
    attended = torch.zeros_like(query)
    for i, (place, position, step, _) in enumerate(rows[: live_rows(rows.numpy(), fixed)].tolist()):
        there = visible_cells(visibility, slots[place, :, : position + 1], step)
        seen = slots[place, :, : position + 1][there].long()
        keys, values = cache[layer, :, seen, :, :head_dim].to(qkv.dtype)  # each [n, G, hd]
        grouped = query[i].unflatten(0, (num_kv_heads, -1))  # [G, H / G, hd]
        scores = torch.einsum("gqd,ngd->gqn", grouped, keys) * head_dim**-0.5
        if weights is not None:
            planned = weights[place, : position + 1].T.clone()
            planned[0] = 1.0
            scores = scores + planned[there].log().to(scores.dtype)
        attended[i] = torch.einsum("gqn,ngd->gqd", torch.softmax(scores, dim=-1), values).flatten(0, 1)
    return attended.flatten(1)


def visible_cells(visibility: str, slots: torch.Tensor, step: int) -> torch.Tensor:
    """bool like slots `[K, t + 1]`, those of one sequence up to a row's position: which a row of step `step` reads."""
    plane = torch.arange(len(slots)).unsqueeze(1)
    there = slots >= 0
    if visibility == "all":
        own = torch.arange(slots.shape[1]) == slots.shape[1] - 1
        return there & (~own | (plane < step))
    if visibility == "same":
        return there & (plane == step - 1)
    if visibility == "newest":
        ended = torch.cat((slots[1:], slots.new_full((1, slots.shape[1]), -1))) < 0
        return there & ((plane == step - 1) | ((plane < step - 1) & ended))
    return there & (plane < step)
