"""Facts that follow from the specs alone: the recurrence in words, counts of parameters, bytes of cache."""

from __future__ import annotations

import itertools
from typing import Any

from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec, prefill_rounds

_READS = {
    "duo": "the steps of earlier tokens up to its own number",
    "all": "every step of earlier tokens, which must have halted",
    "same": "the same step of earlier tokens",
    "newest": "the newest step up to its own number of every earlier token",
}
_NORMS = {"rms": "RMS norms", "layer": "layer norms with bias"}
_BLOCKS = {
    "pre": "before attention and before the MLP, one after the other",
    "parallel": "before attention and before the MLP, which stand side by side",
    "sandwich": "before and after attention and before and after the MLP",
}


def recurrence_words(recurrence: RecurrenceSpec) -> str:
    """How one token thinks, as sentences: steps, next input, visibility, stop rule, readout."""
    scale = recurrence.embedding_scale
    embedding = "its embedding" if scale == 1.0 else f"its embedding times {scale:g}"
    if recurrence.max_latents == 0:
        return f"Every token takes 1 step, which reads {embedding}; there is no latent thought and no router."
    steps = recurrence.max_steps
    count = f"1 to {steps} steps" if recurrence.stop != "count" else f"{steps} steps, always"
    sentences = [f"Every token takes {count}: step 1 reads {embedding}, each further step {_next_input(recurrence)}."]
    if recurrence.adapter is not None:
        sentences.append(f"From step 2 on an adapter of rank {recurrence.adapter.rank} adds to the layers.")
    sentences.append(f"A step attends to {_READS[recurrence.visibility]}.")
    if recurrence.gated:
        sentences.append(_stop_rule(recurrence))
    if not recurrence.skip_halted:
        sentences.append("A halted token runs on all the same: halting only chooses what is read out.")
    sentences.append(_readout(recurrence))
    return " ".join(sentences)


def _next_input(recurrence: RecurrenceSpec) -> str:
    feedback = recurrence.feedback
    if feedback is None:
        return "the last hidden state"
    over = "all logits" if feedback.top_k is None else f"the {feedback.top_k} largest logits"
    mixture = f"the mixture of embeddings by the softmax over {over} of the readout so far"
    factors = ["the gate"] * feedback.gated + [f"{feedback.scale:g}"] * (feedback.scale != 1.0)
    mixture += "".join(f", times {factor}" for factor in factors)
    return f"its former input plus {mixture}" if feedback.residual else mixture


def _stop_rule(recurrence: RecurrenceSpec) -> str:
    kinds = {"linear": "linear router", "mlp": f"two-layer router of width {recurrence.router_hidden_size}"}
    decider = recurrence.decider
    if decider is not None:
        kinds["decider"] = (
            f"decider on the states of layers {', '.join(map(str, decider.layers))} and the {decider.top_k} largest logits"
        )
    router, last = kinds[recurrence.router_type], recurrence.max_steps
    tau = f"{recurrence.halt_threshold:g} or less"
    if recurrence.stop == "tail":
        return (
            f"After step 1 a {router} (shared by all steps) gives each step its share; a step is not run once the shares "
            f"from it on sum to {tau}, and keys and values of a step count by that sum."
        )
    whose = "shared by all steps" if recurrence.router_shared else "one per step"
    what = "the product of these" if recurrence.stop == "reach" else "it"
    return (
        f"After every step but step {last} a {router} ({whose}) gives the probability of going on; the token halts once "
        f"{what} is {tau}."
    )


def _readout(recurrence: RecurrenceSpec) -> str:
    share = "its share" if recurrence.stop == "tail" else "the probability of halting after each"
    words = {
        "mixture": f"the hidden states of its steps, mixed by {share}, through the head once",
        "shares": f"the hidden states of its steps, each times {share}, through the head once",
        "last": "its last hidden state through the head",
        "sum": "the sum of the hidden states of its steps through the head, which is the sum of their logits",
        "final": f"the hidden state of step {recurrence.max_steps} through the head, with its input frozen once halted",
    }
    simple = recurrence.stop == "count" and recurrence.readout == "mixture"
    return f"Its output is {words['last' if simple else recurrence.readout]}."


def prefill_words(prefill: str, recurrence: RecurrenceSpec) -> str:
    """What is said of a prompt that is not run as the recurrence says; nothing of an exact one."""
    rounds = prefill_rounds(prefill)
    if rounds is None:
        return ""
    passes = recurrence.max_latents + rounds + 1
    return (
        f"A prompt is refined in parallel ({prefill}): {passes} passes over all its tokens, {recurrence.max_latents} that "
        f"add a step to each, {rounds} that refine them and a last one that is read. That approximates running its tokens "
        "one after the other, which new tokens do."
    )


def backbone_words(model: ModelSpec) -> str:
    """The layer stack in one sentence."""
    turned = "whole heads" if model.turned == model.head_dim else f"the first {model.turned} dimensions of each head"
    heads = f"{model.num_heads} heads of {model.head_dim}"
    if model.num_kv_heads != model.num_heads:
        heads += f" over {model.num_kv_heads} of keys and values"
    return (
        f"{model.num_layers} layers of width {model.hidden_size}: {_NORMS[model.norm]} {_BLOCKS[model.block]}; {heads}"
        f"{', queries and keys normed' if model.qk_norm else ''}; RoPE ({model.rope.kind}, base {model.rope.theta:g}) on "
        f"{turned}; a {model.mlp} {model.activation} MLP of width {model.intermediate_size}; "
        f"{'the table is the head too' if model.tie_word_embeddings else 'a head of its own'}."
    )


def parameters(model: ModelSpec, recurrence: RecurrenceSpec) -> dict[str, int]:
    """Counts of parameters: `embedding`, `layers`, `head` (0 when tied), `router`, `adapter`, and `total` with the norm."""
    hidden, width, gated = model.hidden_size, model.intermediate_size, model.mlp == "gated"
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = hidden * (2 * queries + 2 * keys) + (queries + 2 * keys + hidden) * model.attention_bias
    mlp = (2 + gated) * hidden * width + ((1 + gated) * width + hidden) * model.mlp_bias
    norm = hidden * (2 if model.norm == "layer" else 1)
    norms = norm * (4 if model.block == "sandwich" else 2) + 2 * model.head_dim * model.qk_norm
    embedding = model.vocab_size * hidden
    counts = {
        "embedding": embedding,
        "layers": model.num_layers * (attention + mlp + norms),
        "head": 0 if model.tie_word_embeddings else embedding,
        "router": _router_parameters(hidden, recurrence) if recurrence.gated else 0,
        "adapter": 0,
    }
    if recurrence.adapter is not None and recurrence.max_latents:
        sides = {
            "q_proj": queries + hidden,
            "k_proj": keys + hidden,
            "v_proj": keys + hidden,
            "o_proj": queries + hidden,
        }
        each = sum(sides.get(name.rpartition(".")[2], width + hidden) for name in recurrence.adapter.modules)
        counts["adapter"] = model.num_layers * recurrence.adapter.rank * each
    return {**counts, "total": sum(counts.values()) + norm}


def _router_parameters(hidden: int, recurrence: RecurrenceSpec) -> int:
    decider, width = recurrence.decider, recurrence.router_hidden_size
    if decider is not None:
        states, widths = len(decider.layers) * hidden, (*decider.widths, decider.widths[-1])
        count = 2 * states * decider.normalize + hidden * (decider.top_k + 1)
        count += widths[0] * (states + hidden + 1) + widths[0] * (widths[0] + 1) + 2 * widths[-1] + widths[-1] + 1
        for one, after in itertools.pairwise(widths):
            inner = decider.expansion * one
            count += 2 * one + inner * (one + 1) + after * (inner + 1) + (after * (one + 1) if one != after else 0)
        return count
    outputs = recurrence.max_steps if recurrence.stop == "tail" else 1
    count = outputs * (hidden + 1)
    if recurrence.router_type == "mlp" and width is not None:
        count = width * (hidden + 1) + outputs * (width + 1)
    return count * (1 if recurrence.router_shared else recurrence.max_latents)


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
