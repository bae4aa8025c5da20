"""Random model shapes for property tests: every switch that a model or its recurrence can have."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from latentcot_export.model import Thoughts
from latentcot_export.spec import (
    ACTIVATIONS,
    BLOCKS,
    MLPS,
    NORMS,
    READOUTS,
    ROUTER_ACTIVATIONS,
    STOPS,
    VISIBILITIES,
    AdapterSpec,
    DeciderSpec,
    FeedbackSpec,
    ModelSpec,
    RecurrenceSpec,
    RopeSpec,
)

ROPES = (
    RopeSpec(),
    RopeSpec(theta=500000.0),
    RopeSpec(kind="linear", factor=2.0),
    RopeSpec(kind="dynamic", factor=2.0, original_max_position_embeddings=64),
    RopeSpec(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    RopeSpec(kind="yarn", factor=4.0, original_max_position_embeddings=16),
)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A small Llama: heads, kv heads, widths, layers, tied tables, biases, RoPE kinds."""
    kv_heads = draw(st.sampled_from((1, 2, 3)))
    return ModelSpec(
        vocab_size=draw(st.sampled_from((17, 64, 101))),
        hidden_size=draw(st.sampled_from((16, 24, 40))),
        intermediate_size=draw(st.sampled_from((8, 33, 64))),
        num_layers=draw(st.integers(1, 3)),
        num_heads=kv_heads * draw(st.sampled_from((1, 2, 3))),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((4, 8, 10))),
        rms_norm_eps=draw(st.sampled_from((1e-6, 1e-5))),
        max_position_embeddings=64,
        rope=draw(st.sampled_from(ROPES)),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def backbones(draw: st.DrawFn) -> ModelSpec:
    """A small model of any backbone: a Llama, or one with every other switch as it comes."""
    spec = draw(models())
    if draw(st.integers(0, 3)) == 0:
        return spec
    return dataclasses.replace(
        spec,
        norm=draw(st.sampled_from(NORMS)),
        block=draw(st.sampled_from(BLOCKS)),
        mlp=draw(st.sampled_from(MLPS)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        rotary_dim=draw(st.sampled_from((None, 2, 4, spec.head_dim))),
        qk_norm=draw(st.booleans()),
    )


@st.composite
def recurrences(draw: st.DrawFn) -> RecurrenceSpec:
    """Router kinds and sharing, max_latents 0 to 6, tau from "always on" to "never on", embedding scale."""
    router = draw(st.sampled_from(("linear", "mlp")))
    return RecurrenceSpec(
        max_latents=draw(st.integers(0, 6)),
        halt_threshold=draw(st.sampled_from((0.0, 1e-4, 0.3, 0.3, 1.0))),
        router_type=router,
        router_hidden_size=7 if router == "mlp" else None,
        router_shared=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from((1.0, 0.5, 6.0))),
    )


@st.composite
def thinking(draw: st.DrawFn, layers: int) -> RecurrenceSpec:
    """Any recurrence over `layers` layers: rules of stopping, visibility and readout, feedback, deciders, adapters."""
    spec = draw(recurrences())
    stop, readout = draw(st.sampled_from(STOPS)), draw(st.sampled_from(READOUTS))
    visibility = "newest" if readout == "final" else draw(st.sampled_from(VISIBILITIES))
    if stop == "gate" and readout in ("mixture", "shares"):
        readout = "last"
    skip = draw(st.booleans()) or (visibility == "newest" and readout != "final")
    if visibility == "same" and skip and stop != "count":
        visibility = "duo"
    decider = None
    if stop in ("reach", "gate") and draw(st.integers(0, 3)) == 0:
        read = draw(st.lists(st.integers(0, layers), min_size=1, max_size=3))
        widths = draw(st.lists(st.sampled_from((3, 5)), min_size=1, max_size=3))
        decider = DeciderSpec(tuple(read), draw(st.integers(1, 9)), tuple(widths), 2, draw(st.booleans()))
    feedback = None
    if draw(st.booleans()):
        top_k = draw(st.sampled_from((None, 1, 4)))
        feedback = FeedbackSpec(top_k, draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from((1.0, 2.5))))
    adapter = AdapterSpec(draw(st.integers(1, 3))) if draw(st.integers(0, 3)) == 0 else None
    return dataclasses.replace(
        spec,
        max_latents=draw(st.integers(0, 3)),
        stop=stop,
        readout=readout,
        visibility=visibility,
        skip_halted=skip,
        router_type="decider" if decider else spec.router_type,
        router_hidden_size=None if decider else spec.router_hidden_size,
        router_shared=bool(decider) or stop == "tail" or spec.router_shared,
        router_activation=draw(st.sampled_from(ROUTER_ACTIVATIONS)),
        feedback=feedback,
        decider=decider,
        adapter=adapter,
    )


def decided(thoughts: Thoughts, tau: float) -> bool:
    """False when float32 may rightly halt elsewhere: a reach within rounding of tau, or one too small for float32.

    The float64 oracle's next_reach is judged; at tau 0 a product of gates below 1e-30 underflows in float32 and halts.
    """
    reach = thoughts.next_reach[..., :-1]
    reach = reach[~reach.isnan()]
    return bool((reach > 1e-30).all() if tau == 0 else ((reach / tau - 1).abs() > 1e-4).all())
