"""Facts that follow from the specs alone: the recurrence in words, counts of parameters, bytes of cache."""

from __future__ import annotations

from typing import Any

from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec


def recurrence_words(recurrence: RecurrenceSpec) -> str:
    """How one token thinks, as sentences (arXiv 2602.08220)."""
    scale = recurrence.embedding_scale
    embedding = "its embedding" if scale == 1.0 else f"its embedding times {scale:g}"
    if recurrence.max_latents == 0:
        return f"Every token takes 1 step, which reads {embedding}; there is no latent thought and no router."
    if recurrence.router_type == "linear":
        router = "linear router"
    else:
        router = f"two-layer router of width {recurrence.router_hidden_size}"
    whose = "shared by all steps" if recurrence.router_shared else "one per step"
    return (
        f"Every token takes 1 to {recurrence.max_steps} steps: step 1 reads {embedding}, each further step the last "
        f"hidden state. After every step but step {recurrence.max_steps} a {router} ({whose}) gives the probability of "
        f"going on; the token halts once the product of these is {recurrence.halt_threshold:g} or less. Its output is "
        "the hidden states of its steps, mixed by the probability of halting after each, through the head once."
    )


def parameters(model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, int]:
    """Counts of parameters: `embedding`, `layers`, `head` (0 when tied), `router`, and `total` with the final norm."""
    hidden, width = model.hidden_size, model.intermediate_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = hidden * (2 * queries + 2 * keys) + (queries + 2 * keys + hidden) * model.attention_bias
    mlp = 3 * hidden * width + (2 * width + hidden) * model.mlp_bias
    embedding = model.vocab_size * hidden
    one = hidden + 1
    if recurrence.router_hidden_size is not None and recurrence.router_type == "mlp":
        one = recurrence.router_hidden_size * (hidden + 2) + 1
    counts = {
        "embedding": embedding,
        "layers": model.num_layers * (attention + mlp + 2 * hidden),
        "head": 0 if model.tie_word_embeddings else embedding,
        "router": one * (1 if recurrence.router_shared else recurrence.max_latents) if recurrence.max_latents else 0,
    }
    return {**counts, "total": sum(counts.values()) + hidden}


def cache_facts(cache: CacheSpec, model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, Any]:
    """The cache's spec with its layout in words and its bytes; a slot is one executed (token, step) pair."""
    slot, heads = cache.bytes_per_slot(model), model.num_kv_heads
    if cache.slots is None:
        pool = {}
        layout = (
            f"per layer keys and values [batch, {heads} kv heads, slots, {model.head_dim}], append-only, "
            "one slot for each executed (token, step) pair"
        )
    else:
        pool = {"slots": cache.slots}
        layout = (
            f"one pool [{model.num_layers} layers, 2, slots, {heads} kv heads, {cache.lanes(model)}] for all sequences: "
            "an executed (token, step) pair takes a slot and gives it back when its sequence ends"
        )
    return {
        "dtype": cache.dtype,
        "max_seq_len": cache.max_seq_len,
        "max_batch": cache.max_batch,
        **pool,
        "layout": layout,
        "bytes_per_token_per_step": slot,
        "bytes_per_sequence_at_depth_1": slot * cache.max_seq_len,
        "bytes_per_sequence_at_full_depth": slot * cache.max_seq_len * recurrence.max_steps,
    }
