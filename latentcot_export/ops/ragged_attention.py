"""RaggedAttention: rows write keys and values at their slot and attend over what they may see.

Contract
    query `[B, H, R, hd]`, key and value `[B, kv, R, hd]` (RoPE already applied, H a multiple of kv), cache keys and
    values `[B, kv, N, hd]`, slot int64 `[B, R]` (distinct within a sequence, 0 <= slot < N), position and step int64
    `[B, R]` (step 0 = idle row), slot_position and slot_step int64 `[B, N]` (step 0 = empty slot) after this pass's rows
    were entered. A row reads the slots of its sequence with slot_step in 1..step and slot_position <= position (`duo`,
    arXiv 2602.08220). An idle row's output is finite and means nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def enter_rows(
    position: torch.Tensor,
    step: torch.Tensor,
    used_slots: torch.Tensor,
    slot_position: torch.Tensor,
    slot_step: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gives every live row the next slot of its sequence and enters it in the slot tables.

    Returns slot `[B, R]`, slot_position and slot_step `[B, N]`, used_slots `[B]`. Idle rows get the slots behind the live
    ones: they write there, with step 0, and the next pass writes over it. Needs used_slots + R <= N.
    """
    live = step > 0
    count = live.to(torch.int64).cumsum(1)
    total = count[:, -1:]
    idle_rank = (~live).to(torch.int64).cumsum(1)
    slot = used_slots.unsqueeze(1) + torch.where(live, count, total + idle_rank) - 1
    return (
        slot,
        slot_position.scatter(1, slot, position),
        slot_step.scatter(1, slot, step),
        used_slots + total.squeeze(1),
    )


def visible_slots(
    position: torch.Tensor, step: torch.Tensor, slot_position: torch.Tensor, slot_step: torch.Tensor
) -> torch.Tensor:
    """bool `[B, R, N]`: which slots each row may read. An idle row sees nothing."""
    entry_step, entry_position = slot_step.unsqueeze(1), slot_position.unsqueeze(1)
    return (entry_step > 0) & (entry_step <= step.unsqueeze(-1)) & (entry_position <= position.unsqueeze(-1))


def visibility_bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores, `[B, 1, R, N]`: finite, so that the softmax of an idle row is.

    -30000 fits float16 and still underflows to exactly 0 beside any visible score.
    """
    return torch.where(visible, 0.0, -30000.0).to(dtype).unsqueeze(1)


def attend_fused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`[B, H, R, hd]`; becomes ONNX `Attention` (opset 23)."""
    grouped = query.shape[1] != keys.shape[1]  # the exporter takes the flag for grouped heads only
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, enable_gqa=grouped)


def attend_decomposed(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The same as MatMul, Softmax, MatMul: the query heads that share a key head are one broadcast dimension."""
    kv_heads, head_dim = keys.shape[1], query.shape[3]
    grouped = (query * head_dim**-0.5).unflatten(1, (kv_heads, query.shape[1] // kv_heads))  # [B, kv, shared, R, hd]
    scores = grouped @ keys.unsqueeze(2).transpose(3, 4) + bias.unsqueeze(1)
    return (torch.softmax(scores, dim=-1) @ values.unsqueeze(2)).flatten(1, 2)


def write_slots(cache: torch.Tensor, new: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """The cache `[B, kv, N, hd]` with new `[B, kv, R, hd]` at slot `[B, R]`."""
    index = slot.unsqueeze(1).unsqueeze(-1).expand(-1, new.shape[1], -1, new.shape[3])
    return cache.scatter(2, index, new)
