"""The one place that says how close is close enough, by the dtype a bundle computes in.

A gate compares with an oracle in float64 that has the bundle's own rounded weights, so the limits cover the rounding of
activations only. Each limit sits a few times above the worst that was measured on trained and random checkpoints, and
far below what any real fault (a wrong mask, a stale cache slot, a transposed weight) causes.
"""

from __future__ import annotations

import dataclasses

from latentcot_export.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Limits of one dtype; "relative" is to the largest absolute logit of the token, or to 1 if that is larger."""

    depth_near_tie: float
    """|next / tau - 1| below which a halting decision may go either way; afterwards the oracle follows the engine."""
    excused_share: float
    """Most decisions, as a share of those compared rounded down, that may be excused as near-ties before a gate fails."""
    argmax_near_tie: float
    """Relative distance of the oracle's best logit from that of the engine's choice below which either may win."""
    logits: float
    """Largest relative difference of a logit."""
    kl: float
    """Largest KL divergence, in nats, of a token's distribution from the oracle's."""
    cosine: float
    """Largest 1 - cosine of a token's logits with the oracle's."""
    perplexity: float
    """Largest |perplexity / oracle's - 1| on text; also, in nats, the difference of a token's loss worth naming."""
    exact_batches: bool
    """Whether batch order and neighbours may not excuse near-ties: the same sequence takes the same arithmetic."""


TOLERANCES = {
    # Measured on trained and random checkpoints, worst of each: logits 8e-6 relative, KL 6e-11, 1 - cosine 2e-11,
    # perplexity 2e-8. The rounding of next / tau near 1 is 4e-6 with a trained router, and up to 2e-5 with a random one
    # whose logits spread over +-16; a flip needs such a decision to lie that close to tau, one in 10^5 or fewer, hence
    # the small share. ONNX Runtime's float32 products are bit-identical for 1 to 33 rows, hence exact batches.
    "float32": Tolerances(
        depth_near_tie=1e-5,
        excused_share=1e-3,
        argmax_near_tie=5e-5,
        logits=5e-5,
        kl=1e-7,
        cosine=1e-8,
        perplexity=1e-5,
        exact_batches=True,
    ),
    # Measured on the same: logits 5.5e-3 relative, KL 6e-5, 1 - cosine 1.5e-5, perplexity 1.5e-5, near-ties of 5e-3 in
    # next / tau and 1.5e-3 in a logit. 11 bits leave top logits equal now and then: up to 0.8 % of random text, hence
    # the share. Products differ with the number of rows, so neighbours may turn a near-tie.
    "float16": Tolerances(
        depth_near_tie=0.02,
        excused_share=0.02,
        argmax_near_tie=0.01,
        logits=0.02,
        kl=5e-4,
        cosine=1e-4,
        perplexity=1e-3,
        exact_batches=False,
    ),
}


def tolerances_of(dtype: str) -> Tolerances:
    """The limits for a bundle's dtype. Errors: InputError when there are none."""
    try:
        return TOLERANCES[dtype]
    except KeyError:
        known = ", ".join(TOLERANCES)
        raise InputError(
            f"there are no tolerances for dtype {dtype}, only for {known}; export with one of these"
        ) from None
