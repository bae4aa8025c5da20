"""What a model is, how it recurs and how its cache is laid out: frozen facts that every floor reads.

Nothing here imports a framework, so that a production service can read a bundle without torch.
Equations and words follow *Pretraining with Token-Level Adaptive Latent Chain-of-Thought* (arXiv 2602.08220).
"""

from .cache import DTYPE_BYTES, LANES, CacheSpec
from .fields import MAX_DIMENSION, MAX_LATENTS, MAX_LAYERS, MAX_SLOTS, SpecError
from .model import ACTIVATIONS, BLOCKS, MLPS, NORMS, ModelSpec
from .plain import from_json, to_json
from .prefill import EXACT, prefill_rounds, refinable
from .recurrence import (
    ADAPTABLE,
    READOUTS,
    ROUTER_ACTIVATIONS,
    ROUTER_KINDS,
    STOPS,
    VISIBILITIES,
    AdapterSpec,
    DeciderSpec,
    FeedbackSpec,
    RecurrenceSpec,
)
from .rope import ROPE_KINDS, RopeSpec

__all__ = [
    "ACTIVATIONS",
    "ADAPTABLE",
    "BLOCKS",
    "DTYPE_BYTES",
    "EXACT",
    "LANES",
    "MAX_DIMENSION",
    "MAX_LATENTS",
    "MAX_LAYERS",
    "MAX_SLOTS",
    "MLPS",
    "NORMS",
    "READOUTS",
    "ROPE_KINDS",
    "ROUTER_ACTIVATIONS",
    "ROUTER_KINDS",
    "STOPS",
    "VISIBILITIES",
    "AdapterSpec",
    "CacheSpec",
    "DeciderSpec",
    "FeedbackSpec",
    "ModelSpec",
    "RecurrenceSpec",
    "RopeSpec",
    "SpecError",
    "from_json",
    "prefill_rounds",
    "refinable",
    "to_json",
]
