"""Rotary position embedding as a frozen fact."""

from __future__ import annotations

import dataclasses

from .fields import MAX_DIMENSION, SpecError, check_boolean, check_choice, check_integer, check_number

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding; field names are those of `rope_parameters` in `transformers`.

    Fields that a kind does not use are None. Errors: SpecError.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        where = "rope"
        check_choice(where, "rope_type", self.kind, ROPE_KINDS)
        check_number(where, "rope_theta", self.theta, 1e-6, 1e12)
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
        ):
            value = getattr(self, name)
            if value is not None:
                check_number(where, name, value, 1e-6 if name == "factor" else 0.0, 1e9)
        if self.original_max_position_embeddings is not None:
            check_integer(
                where,
                "original_max_position_embeddings",
                self.original_max_position_embeddings,
                1,
                MAX_DIMENSION,
            )
        if self.truncate is not None:
            check_boolean(where, "truncate", self.truncate)
        needs = {
            "linear": ("factor",),
            "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("factor",),
        }
        for name in needs.get(self.kind, ()):
            if getattr(self, name) is None:
                raise SpecError(f"{where}: rope_type {self.kind} needs {name}, which is missing")
