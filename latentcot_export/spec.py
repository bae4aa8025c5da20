"""What a model is, how it recurs and how its cache is laid out: frozen facts that every floor reads.

Nothing here imports a framework, so that a production service can read a bundle without torch.
Equations and words follow *Pretraining with Token-Level Adaptive Latent Chain-of-Thought* (arXiv 2602.08220).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
ROUTER_KINDS = ("linear", "mlp")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Limits that no published model comes near; they bound what a hostile file can make us allocate.
MAX_LATENTS = 64
MAX_DIMENSION = 1 << 24
MAX_LAYERS = 1024
MAX_SLOTS = (1 << 31) - 1  # slots are numbered in int32
LANES = 16  # float32 of the widest vector: heads in the cache of `ort` are filled up to whole ones


class SpecError(ValueError):
    """A spec that no model can have: the message says which value, its limit and where it came from."""


def _integer(where: str, name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(f"{where}: {name} is {value!r}, it must be an integer from {low} to {high}")


def _number(where: str, name: str, value: Any, low: float, high: float) -> None:
    # compared before isfinite, which an integer beyond any float would break
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not low <= value <= high or not math.isfinite(value):
        raise SpecError(f"{where}: {name} is {value!r}, it must be a finite number from {low:g} to {high:g}")


def _boolean(where: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SpecError(f"{where}: {name} is {value!r}, it must be true or false")


def _choice(where: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(f"{where}: {name} is {value!r}, it must be one of {', '.join(choices)}")


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
        _choice(where, "rope_type", self.kind, ROPE_KINDS)
        _number(where, "rope_theta", self.theta, 1e-6, 1e12)
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
                _number(where, name, value, 1e-6 if name == "factor" else 0.0, 1e9)
        if self.original_max_position_embeddings is not None:
            _integer(
                where,
                "original_max_position_embeddings",
                self.original_max_position_embeddings,
                1,
                MAX_DIMENSION,
            )
        if self.truncate is not None:
            _boolean(where, "truncate", self.truncate)
        needs = {
            "linear": ("factor",),
            "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("factor",),
        }
        for name in needs.get(self.kind, ()):
            if getattr(self, name) is None:
                raise SpecError(f"{where}: rope_type {self.kind} needs {name}, which is missing")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The layer stack of one Llama-shaped model: sizes are counts of elements, names those of `config.json`.

    Errors: SpecError when a size is out of range or heads do not divide.
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

    def __post_init__(self) -> None:
        where = "model"
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            _integer(where, name, getattr(self, name), 1, MAX_DIMENSION)
        _integer(where, "num_layers", self.num_layers, 1, MAX_LAYERS)
        for name in ("num_heads", "num_kv_heads"):
            _integer(where, name, getattr(self, name), 1, 1 << 16)
        _integer(where, "head_dim", self.head_dim, 2, 1 << 16)
        if self.head_dim % 2:
            raise SpecError(f"{where}: head_dim is {self.head_dim}, rotary embedding needs an even one")
        if self.num_heads % self.num_kv_heads:
            raise SpecError(
                f"{where}: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        _number(where, "rms_norm_eps", self.rms_norm_eps, 0.0, 1.0)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
            _boolean(where, name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class RecurrenceSpec:
    """How one token thinks: 2602.08220's halting recurrence. A stock model has `max_latents` 0.

    `halt_threshold` is tau: a token goes on while reach * gate > tau, strictly. Errors: SpecError.
    """

    max_latents: int = 0
    halt_threshold: float = 1e-4
    router_type: str = "linear"
    router_hidden_size: int | None = None
    router_shared: bool = True
    embedding_scale: float = 1.0

    def __post_init__(self) -> None:
        where = "recurrence"
        _integer(where, "max_latents", self.max_latents, 0, MAX_LATENTS)
        _number(where, "halt_threshold", self.halt_threshold, 0.0, 1e9)
        _choice(where, "router_type", self.router_type, ROUTER_KINDS)
        if self.router_type == "mlp" or self.router_hidden_size is not None:
            _integer(where, "router_hidden_size", self.router_hidden_size, 1, MAX_DIMENSION)
        _boolean(where, "router_shared", self.router_shared)
        _number(where, "embedding_scale", self.embedding_scale, -1e6, 1e6)

    @property
    def max_steps(self) -> int:
        """Most forward passes one token can take."""
        return self.max_latents + 1


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """The cache. `onnx`: per layer K and V `[batch, kv heads, slots, head_dim]`, append-only, `slots` None.

    There a slot is the number of rows its sequence has run so far; `slot_position` and `slot_step` `[batch, slots]` say
    which (token position, step) wrote it. `ort`: one pool `[layers, 2, slots, kv heads, lanes]` for all sequences, of which
    a (position, step) pair takes a slot and gives it back; `slots` is how many a host makes unless told otherwise.
    Errors: SpecError.
    """

    dtype: str = "float32"
    max_seq_len: int = 2048
    max_batch: int = 64
    slots: int | None = None

    def __post_init__(self) -> None:
        _choice("cache", "dtype", self.dtype, tuple(DTYPE_BYTES))
        if self.slots is not None:
            _integer("cache", "slots", self.slots, 1, MAX_SLOTS)
        _integer("cache", "max_seq_len", self.max_seq_len, 1, MAX_DIMENSION)
        _integer("cache", "max_batch", self.max_batch, 1, 1 << 16)

    def bytes_per_slot(self, model: ModelSpec) -> int:
        """Bytes of keys and values that one executed (token, step) pair keeps over all layers, padding included."""
        return 2 * model.num_layers * model.num_kv_heads * self.lanes(model) * DTYPE_BYTES[self.dtype]

    def lanes(self, model: ModelSpec) -> int:
        """Numbers of a head in one slot: head_dim, in a pool rounded up to a multiple of LANES."""
        return model.head_dim if self.slots is None else -(-model.head_dim // LANES) * LANES


def to_json(spec: ModelSpec | RecurrenceSpec | CacheSpec | RopeSpec) -> dict[str, Any]:
    """A spec as plain JSON values; absent (None) fields are left out."""
    return {
        name: to_json(value) if isinstance(value, RopeSpec) else value
        for name, value in ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
        if value is not None
    }


def from_json(kind: type, data: Any, where: str) -> Any:
    """The inverse of `to_json`. Errors: SpecError on unknown or missing fields and on values out of range."""
    if not isinstance(data, dict):
        raise SpecError(f"{where}: expected an object with the fields of {kind.__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(f"{where}: unknown field {unknown[0]!r}")
    values = dict(data)
    if kind is ModelSpec and "rope" in values:
        values["rope"] = from_json(RopeSpec, values["rope"], f"{where}.rope")
    try:
        return kind(**values)
    except TypeError as error:
        raise SpecError(f"{where}: {error}") from None
