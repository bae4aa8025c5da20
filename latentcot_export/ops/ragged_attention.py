"""RaggedAttention: rows write keys and values at their slot and attend over what they may see.

Contract
    query `[B, H, R, hd]`, key and value `[B, kv, R, hd]` (RoPE already applied, H a multiple of kv), cache keys and
    values `[B, kv, N, hd]`, slot int64 `[B, R]` (distinct within a sequence, 0 <= slot < N), position and step int64
    `[B, R]` (step 0 = idle row), slot_position and slot_step int64 `[B, N]` (step 0 = empty slot) after this pass's rows
    were entered. A row reads the slots of its sequence with slot_step > 0 and slot_position <= position that the rule of
    visibility lets it (VISIBILITIES of spec/recurrence.py). An idle row's output is finite and means nothing.
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
    """Gives every row of a step above 0 the next slot of its sequence and enters it in the slot tables.

    Returns slot `[B, R]`, slot_position and slot_step `[B, N]`, used_slots `[B]`. Other rows get the slots behind: they
    write there, with step 0, and the next pass writes over it. Needs used_slots + R <= N.
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
    rule: str,
    position: torch.Tensor,
    step: torch.Tensor,
    slot_position: torch.Tensor,
    slot_step: torch.Tensor,
    depths: torch.Tensor,
) -> torch.Tensor:
    """bool `[B, R, N]`: which slots each row may read. depths int64 `[B, T]` of tokens that have halted, 0 of others.

    An idle row sees nothing.
    """
    before, own = slot_step.unsqueeze(1), step.unsqueeze(-1)
    there = (before > 0) & (slot_position.unsqueeze(1) <= position.unsqueeze(-1))
    if rule == "all":
        return there & (own > 0) & ((slot_position.unsqueeze(1) < position.unsqueeze(-1)) | (before <= own))
    if rule == "same":
        return there & (before == own)
    if rule == "newest":
        # below the row's step an entry counts only where its token ended
        ended = depths.gather(1, slot_position.clamp(min=0)) == slot_step
        return there & ((before == own) | ((before < own) & ended.unsqueeze(1)))
    return there & (before <= own)


def visibility_bias(visible: torch.Tensor, dtype: torch.dtype, log_weight: torch.Tensor | None = None) -> torch.Tensor:
    """What is added to the scores, `[B, 1, R, N]`: finite, so that the softmax of an idle row is.

    log_weight float32 `[B, N]` of the slots' entries, else 0. -30000 fits float16 and still underflows to exactly 0 beside
    any visible score.
    """
    weight = torch.zeros_like(visible[:, :1], dtype=torch.float32) if log_weight is None else log_weight.unsqueeze(1)
    return torch.where(visible, weight.clamp(min=-30000.0), -30000.0).to(dtype).unsqueeze(1)


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
