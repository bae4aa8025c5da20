"""The one place that says how close is close enough, by what a bundle computes in and what its truth is.

A gate compares with an oracle in float64 that has the bundle's own rounded weights, so the limits cover the rounding of
activations only. Each limit sits a few times above the worst that was measured on trained and random checkpoints, and
far below what any real fault (a wrong mask, a stale cache slot, a transposed weight) causes.

The truth about a quantised bundle is the float32 checkpoint that `--against` names, or else what its own codes and scales
stand for. Either way it computes other numbers by design, so that no single token is judged: the limits are on the share
of depths and tokens that differ, on the mean KL divergence and on perplexity.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from latentcot_export.bundle import Manifest
from latentcot_export.bundle.manifest import POOLED
from latentcot_export.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Limits of one dtype; "relative" is to the largest absolute logit of the token, or to 1 if that is larger.

    Infinity is no limit, but what is not finite is beyond it too; see `within`.
    """

    excused_share: float
    """Most tokens, as a share of those compared rounded down, whose choice may differ before a gate fails.

    Only near-ties are excused, unless `by_share`.
    """
    depth_share: float
    """The same of depths."""
    mean_kl: float
    """Largest mean of the KL divergence, in nats, of a token's distribution from the oracle's."""
    perplexity: float
    """Largest |perplexity / oracle's - 1| on text; also, in nats, the difference of a token's loss worth naming."""
    depth_near_tie: float = math.inf
    """|next / tau - 1| below which a halting decision may go either way; afterwards the oracle follows the engine."""
    argmax_near_tie: float = math.inf
    """Relative distance of the oracle's best logit from that of the engine's choice below which either may win."""
    logits: float = math.inf
    """Largest relative difference of a logit."""
    kl: float = math.inf
    """Largest KL divergence, in nats, of a single token's distribution from the oracle's."""
    cosine: float = math.inf
    """Largest 1 - cosine of a token's logits with the oracle's."""
    excused_tokens: int = 0
    """Near-ties among the tokens written that are excused whatever the share: the quick level writes 72."""
    exact_batches: bool = True
    """Whether batch order and neighbours may not excuse near-ties: the same sequence takes the same arithmetic."""
    by_share: bool = False
    """Whether any token may differ, as long as no more of them do than the shares say: quantised weights."""

    @property
    def between_runs(self) -> Tolerances:
        """Limits for two runs of the same graph: they share their weights, whatever those are worth.

        Where a sequence takes the same arithmetic in any batch they are those of float32.
        """
        return TOLERANCES["float32"] if self.exact_batches else self


def within(values: np.ndarray, limit: float) -> np.ndarray:
    """bool, of the shape of `values`: finite and not above the limit."""
    return np.isfinite(values) & (values <= limit)


TOLERANCES = {
    # Measured on trained and random checkpoints, worst of each: logits 8e-6 relative, KL 1e-10, its mean 1e-12, 1 - cosine
    # 2e-11, perplexity 2e-8. The rounding of next / tau near 1 is 4e-6 with a trained router, and up to 2e-5 with a random
    # one whose logits spread over +-16; a flip needs such a decision to lie that close to tau, one in 10^5 or fewer, hence
    # the small share. ONNX Runtime's float32 products are bit-identical for 1 to 33 rows, hence exact batches.
    "float32": Tolerances(
        depth_near_tie=1e-5,
        excused_share=1e-3,
        depth_share=1e-3,
        argmax_near_tie=5e-5,
        logits=5e-5,
        kl=1e-7,
        mean_kl=1e-9,
        cosine=1e-8,
        perplexity=1e-5,
    ),
    # Measured on the same: logits 6.9e-3 relative, KL 8e-5, its mean 1e-6, 1 - cosine 2e-5, perplexity 2.2e-5, near-ties of
    # 5e-3 in next / tau and 1.5e-3 in a logit. 11 bits leave top logits equal now and then: up to 0.8 % of random text,
    # hence the share. Products differ with the number of rows, so neighbours may turn a near-tie.
    "float16": Tolerances(
        depth_near_tie=0.02,
        excused_share=0.02,
        depth_share=0.02,
        argmax_near_tie=0.01,
        logits=0.02,
        kl=5e-4,
        mean_kl=1e-5,
        cosine=1e-4,
        perplexity=1e-3,
        exact_batches=False,
    ),
    # Products, queries, keys and values in float16, the rest float32: pass.onnx of target ort, and tensorrt. Measured over
    # widened.py, on no GPU yet: latentcot-tiny (8192 tokens) logits 1.7e-3 relative, KL 1.7e-5, its mean 1e-6,
    # 1 - cosine 7e-7, perplexity 2e-5, no depth and 0.2 % of best logits. 90 random checkpoints: logits 0.031, KL
    # 1.9e-3, its mean 1.7e-5, 1 - cosine 3.5e-4, near-ties of 2.3e-3 in next / tau and 6.4e-3 in a logit, 0.4 % of the
    # depths of 512 tokens and as many of their best logits.
    "float16 pass": Tolerances(
        depth_near_tie=0.02,
        excused_share=0.02,
        depth_share=0.02,
        argmax_near_tie=0.02,
        logits=0.08,
        kl=5e-3,
        mean_kl=5e-5,
        cosine=1e-3,
        perplexity=1e-3,
        exact_batches=False,
    ),
    # The same in bfloat16: latentcot-tiny (8192 tokens) logits 0.019 relative, KL 1.7e-3, its mean 7e-5, 1 - cosine 9e-5,
    # perplexity 6e-5, 0.18 % of depths, 1.1 % of best logits; logits as far as 3 bits less let expect, KL as far as their
    # square. 90 random checkpoints: logits 0.18, KL 0.023, its mean 7e-4, 1 - cosine 9e-3, near-ties of
    # 0.14 in next / tau and 0.044 in a logit, 1.4 % of the depths of 512 tokens and 2.5 % of their best logits.
    "bfloat16 pass": Tolerances(
        depth_near_tie=0.3,
        excused_share=0.08,
        depth_share=0.05,
        argmax_near_tie=0.1,
        logits=0.4,
        kl=0.08,
        mean_kl=2e-3,
        cosine=0.03,
        perplexity=4e-3,
        exact_batches=False,
    ),
    # float32 with keys and values kept in bfloat16. Measured on latentcot-tiny (8192 tokens): logits 6.4e-3 relative, KL
    # 4.4e-4, its mean 3.5e-6, perplexity 1e-6, 0.05 % of depths, 0.15 % of best logits. On 90 random checkpoints: logits
    # 0.09, KL 7.6e-3, its mean 1.4e-4, 1 - cosine 2.3e-3, near-ties of 0.036 in next / tau and 7.4e-3 in a logit, 1 % of
    # the depths of 512 tokens and 0.6 % of their best logits. Rows keep their bits in any batch.
    "bfloat16 cache": Tolerances(
        depth_near_tie=0.1,
        excused_share=0.03,
        depth_share=0.03,
        argmax_near_tie=0.02,
        logits=0.2,
        kl=0.025,
        mean_kl=4e-4,
        cosine=7e-3,
        perplexity=4e-4,
    ),
    # float32 with keys and values kept in float16. Measured on latentcot-tiny (8192 tokens): logits 9e-4 relative, mean KL
    # 6e-8, perplexity 1e-5, 2 best logits that differ by 5e-5, no depth. On 92 random checkpoints: logits 0.011, KL
    # 1.5e-4, its mean 1e-6, 1 - cosine 4e-5, near-ties of 5e-3 in next / tau and 3.3e-3 in a logit, 0.13 % of depths,
    # 0.26 % of best logits and 0.8 % of those of 128 tokens; one of the 72 that the quick level writes may be a near-tie.
    # Rows keep their bits in any batch.
    "float16 cache": Tolerances(
        depth_near_tie=0.02,
        excused_share=0.01,
        excused_tokens=1,
        depth_share=0.005,
        argmax_near_tie=0.01,
        logits=0.03,
        kl=5e-4,
        mean_kl=5e-6,
        cosine=1e-4,
        perplexity=1e-4,
    ),
    # Measured against the float32 checkpoint: latentcot-tiny (8192 tokens) 0.8 % of depths, 1.4 % of best logits, mean
    # KL 3.4e-4, perplexity +0.06 %. 72 random checkpoints: up to 3 %, 9 % and 6.7e-3. SmolLM2-135M at depth 1: none,
    # 4.5 %, 0.010, -0.5 %; with routers that were never trained, which makes it a random checkpoint: 3.7 %, 9 %, 0.055,
    # 0.5 %. Single tokens of it lie anywhere (1 - cosine 1.8) where a block of activations holds a massive one. With
    # its own weights as the truth mostly half of that is left, which is what int8 activations do, so no other limits:
    # there int4 has these too.
    "int8": Tolerances(excused_share=0.25, depth_share=0.1, mean_kl=0.15, perplexity=0.08, by_share=True),
    # Measured on the same against the checkpoint: latentcot-tiny 5.3 % of depths, 10 % of best logits, mean KL 0.019,
    # perplexity +2.3 %. Random checkpoints: up to 26 %, 62 % and 0.44. SmolLM2-135M at depth 1: none, 34 %, 0.45 and
    # +40 %; with untrained routers: 20 %, 41 %, 0.71 and +42 %. So wide a limit finds a swapped matrix (mean KL 5.7 on
    # latentcot-tiny) or codes without zero points (8.9), no small fault: those are found by the weights gate, block by
    # block, and without --against.
    "int4": Tolerances(excused_share=0.75, depth_share=0.5, mean_kl=2.0, perplexity=1.0, by_share=True),
}


def tolerances_of(dtype: str) -> Tolerances:
    """The limits by name: a dtype, or that of a cache, or of quantised weights. Errors: InputError when there are none."""
    try:
        return TOLERANCES[dtype]
    except KeyError:
        known = ", ".join(TOLERANCES)
        raise InputError(
            f"there are no tolerances for dtype {dtype}, only for {known}; export with one of these"
        ) from None


def tolerances_for(manifest: Manifest, own_weights: bool, device: str = "cpu") -> Tolerances:
    """The limits for a bundle whose truth is its own weights, or those of a checkpoint, on a device. Errors: InputError."""
    if manifest.quantize != "none":
        # held against its own weights there are only the int8 activations left, whatever the width of the codes
        return tolerances_of("int8" if own_weights else manifest.quantize)
    # on a processor, target ort multiplies in float32 whatever its weights were rounded to
    wide = manifest.dtype == "float32" or (manifest.target == "ort" and device == "cpu")
    if wide and manifest.cache.dtype != "float32":
        return tolerances_of(f"{manifest.cache.dtype} cache")
    if wide:
        return tolerances_of("float32")
    return tolerances_of(f"{manifest.dtype} pass" if manifest.target in POOLED else manifest.dtype)


def tolerances_of_pass(manifest: Manifest) -> Tolerances | None:
    """How near the pass of a GPU must come to the graph of a processor; None: as near as two runs of one graph."""
    if manifest.dtype == "float32":
        return None
    if manifest.quantize == "none":
        return tolerances_of(f"{manifest.dtype} pass")
    # int8 activations make a whole step of half a one, whatever was rounded before them, in either dtype, so that no token
    # is judged; one counts where a sequence parts: 1 to 2 % of latentcot-tiny, their logits up to 0.03 relative apart;
    # in 56 bundles of random checkpoints 0 to 7 %, where few were written up to 17 % (4 of 24)
    return dataclasses.replace(
        TOLERANCES["bfloat16 pass"], excused_share=TOLERANCES["int8"].excused_share, by_share=True
    )
