"""The layer stack as a frozen fact."""

from __future__ import annotations

import dataclasses

from .fields import (
    MAX_DIMENSION,
    MAX_LAYERS,
    SpecError,
    added,
    check_boolean,
    check_choice,
    check_integer,
    check_number,
)
from .rope import RopeSpec

NORMS = ("rms", "layer")
BLOCKS = ("pre", "parallel", "sandwich")
MLPS = ("gated", "plain")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The layer stack of one decoder: sizes are counts of elements, names those of `config.json`.

    `block`: where norms and residuals stand, see `Block` in docs/architecture.md; `pre` is Llama's. `norm`: `rms`, or
    `layer` (with mean and bias; `rms_norm_eps` is its epsilon too). `mlp`: `gated` is down(act(gate(x)) * up(x)), `plain`
    down(act(up(x))). `rotary_dim`: how many leading dimensions of a head RoPE turns, None = all. `qk_norm`: an RMS norm of
    every query and key head before RoPE. Errors: SpecError when a size is out of range or heads do not divide.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec = dataclasses.field(default_factory=RopeSpec)
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    norm: str = added("rms")
    block: str = added("pre")
    mlp: str = added("gated")
    activation: str = added("silu")
    rotary_dim: int | None = added(None)
    qk_norm: bool = added(False)

    def __post_init__(self) -> None:
        where = "model"
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            check_integer(where, name, getattr(self, name), 1, MAX_DIMENSION)
        check_integer(where, "num_layers", self.num_layers, 1, MAX_LAYERS)
        for name in ("num_heads", "num_kv_heads"):
            check_integer(where, name, getattr(self, name), 1, 1 << 16)
        check_integer(where, "head_dim", self.head_dim, 2, 1 << 16)
        if self.head_dim % 2:
            raise SpecError(f"{where}: head_dim is {self.head_dim}, rotary embedding needs an even one")
        if self.num_heads % self.num_kv_heads:
            raise SpecError(
                f"{where}: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        check_number(where, "rms_norm_eps", self.rms_norm_eps, 0.0, 1.0)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "qk_norm"):
            check_boolean(where, name, getattr(self, name))
        for name, choices in (("norm", NORMS), ("block", BLOCKS), ("mlp", MLPS), ("activation", ACTIVATIONS)):
            check_choice(where, name, getattr(self, name), choices)
        if self.rotary_dim is not None:
            check_integer(where, "rotary_dim", self.rotary_dim, 2, self.head_dim)
            if self.rotary_dim % 2:
                raise SpecError(f"{where}: rotary_dim is {self.rotary_dim}, rotary embedding needs an even one")

    @property
    def turned(self) -> int:
        """Leading dimensions of a head that RoPE turns."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim
