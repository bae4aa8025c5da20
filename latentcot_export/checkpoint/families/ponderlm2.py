"""`ponderlm2`: PonderLM-2 (arXiv 2509.23184, `zeng123/PonderLM-2-*`): a fixed number of latent thoughts before each token.

Stage 0 of a token reads s * E[token], each further stage f of the last hidden state, all at the token's position, and
every stage reads all stages of earlier tokens. f(h) = h and s = sqrt(2.5 D) (`scale_embeds`), or with `interpolation`
f(h) = softmax(head(h)) @ (s * E), over the `interpolation_topk` largest logits with `interpolation_use_topk`, and
s = sqrt(D). Such a checkpoint calls itself llama or gpt_neox and adds no tensor. `num_jacobi_iterations` belongs to the
released parallel prefill, an approximation of this definition; `random_jacobi_iterations` to training alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from latentcot_export.checkpoint.families import family
from latentcot_export.checkpoint.families.gpt_neox import GPT_NEOX
from latentcot_export.checkpoint.families.llama import LLAMA
from latentcot_export.checkpoint.family import Family
from latentcot_export.checkpoint.keys import boolean, integer
from latentcot_export.errors import InputError
from latentcot_export.spec import MAX_LATENTS, FeedbackSpec, ModelSpec, RecurrenceSpec

# what the released code takes where the key is missing
JACOBI_ITERATIONS, TOP_K = 3, 100


@family("ponderlm2")
class PonderLM2(Family):
    """Stock tensors of Llama or GPT-NeoX, nothing added."""

    backbones = (LLAMA, GPT_NEOX)
    marks = ("recurrent_model", "num_latent_thoughts")

    def recurrence(self, config: Mapping[str, Any], model: ModelSpec, where: str) -> RecurrenceSpec:
        """See Family."""
        latents = integer(config, "num_latent_thoughts", 0, where, 0, MAX_LATENTS)
        integer(config, "num_jacobi_iterations", JACOBI_ITERATIONS, where, 0, 1 << 16)
        if not boolean(config, "recurrent_model", True, where):
            raise InputError(
                f"{where}: recurrent_model is false beside {latents} num_latent_thoughts; remove the wrong one"
            )
        if boolean(config, "residual_interpolated_embeds", False, where):
            raise InputError(
                f"{where}: residual_interpolated_embeds is True, which adds to the embedding instead of replacing it; "
                "this variant is not supported"
            )
        if config.get("interpolation") is None:
            raise InputError(
                f"{where}: interpolation is missing, and what the next thought reads depends on it; add it as false "
                "(hidden states, as in the released runs) or true (expected embeddings)"
            )
        interpolated = boolean(config, "interpolation", False, where)
        scale = 1.0
        if boolean(config, "scale_embeds", False, where):
            scale = math.sqrt(model.hidden_size * (1.0 if interpolated else 2.5))
        feedback = None
        if interpolated:
            top_k = None
            if boolean(config, "interpolation_use_topk", False, where):
                top_k = integer(config, "interpolation_topk", TOP_K, where, 1, model.vocab_size)
            feedback = FeedbackSpec(top_k, residual=False, scale=scale)
        return RecurrenceSpec(
            latents, embedding_scale=scale, visibility="all", stop="count", readout="last", feedback=feedback
        )

    def ways(self, model: ModelSpec, recurrence: RecurrenceSpec) -> Iterable[dict[str, Any]]:
        """See Family."""
        top_k = recurrence.feedback.top_k if recurrence.feedback else None
        for scaled, interpolated in itertools.product((True, False), (False, True)):
            yield {
                "recurrent_model": True,
                "num_latent_thoughts": recurrence.max_latents,
                "num_jacobi_iterations": JACOBI_ITERATIONS,
                "scale_embeds": scaled,
                "interpolation": interpolated,
                "interpolation_use_topk": top_k is not None,
                **({} if top_k is None else {"interpolation_topk": top_k}),
            }
