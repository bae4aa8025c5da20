"""How one token thinks, as a frozen fact: every family of models is a setting of these switches.

Equations: recurrence `adaptive_latent_cot` of arXiv 2602.08220; what other families set is said in docs/families.md.
"""

from __future__ import annotations

import dataclasses

from .fields import (
    MAX_DIMENSION,
    MAX_LATENTS,
    SpecError,
    added,
    check_boolean,
    check_choice,
    check_integer,
    check_number,
)

# `decider` reads the hidden states of several layers and the largest logits: see DeciderSpec.
ROUTER_KINDS = ("linear", "mlp", "decider")
ROUTER_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
# What a row (t, k) reads of its sequence's entries (t_j, k_j), t_j <= t:
#   duo     k_j <= k
#   all     every entry of earlier tokens; of its own k_j <= k
#   same    k_j == k
#   newest  of each token the newest entry with k_j <= k
VISIBILITIES = ("duo", "all", "same", "newest")
# Whether a row goes on after step k < max_steps, g being its gate:
#   reach   reach * g > tau, reach the product of the gates before
#   gate    g > tau
#   count   always; there is no router
#   tail    w_(k+1) > tau, where the router of step 1 has max_steps outputs, s their softmax and w_k = s_k + s_(k+1) + ...;
#           keys and values of step k enter every attention with log w_k added to their score
STOPS = ("reach", "gate", "count", "tail")
# What the head reads of a token's latent thoughts z_1 .. z_depth:
#   mixture  sum of exit probability * z, the residual going to the last
#   last     z_depth
#   sum      z_1 + ... + z_depth (so do the logits of a head without bias)
#   shares   sum of exit probability * z, the residual lost
#   final    z of step max_steps: a halted token runs on, its input frozen, without keys and values of its own
READOUTS = ("mixture", "last", "sum", "shares", "final")
# Linears that an adapter may add to.
ADAPTABLE = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


@dataclasses.dataclass(frozen=True)
class FeedbackSpec:
    """The next step reads an expected embedding instead of the latent thought.

    P = softmax of the logits of the readout so far, of the `top_k` largest alone when given;
    x' = (x if `residual` else 0) + (g if `gated` else 1) * scale * P @ E. Errors: SpecError.
    """

    top_k: int | None = None
    residual: bool = True
    gated: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        where = "feedback"
        if self.top_k is not None:
            check_integer(where, "top_k", self.top_k, 1, MAX_DIMENSION)
        check_boolean(where, "residual", self.residual)
        check_boolean(where, "gated", self.gated)
        check_number(where, "scale", self.scale, -1e6, 1e6)


@dataclasses.dataclass(frozen=True)
class DeciderSpec:
    """A router that reads the states of `layers` (0: the input, j: after block j, num_layers: after the final norm too).

    x = combined([states ; logits_in(the `top_k` largest logits of the readout so far, falling)]); then x = input(x), per
    block of width w to the next, x = change(x) + out(gelu(in(norm(x)))) with `expansion` * w between, and
    output(norm(x)). `normalize`: a norm of the states, and a softmax over those logits. Errors: SpecError.
    """

    layers: tuple[int, ...]
    top_k: int
    widths: tuple[int, ...]
    expansion: int = 4
    normalize: bool = False

    def __post_init__(self) -> None:
        where = "decider"
        for name in ("layers", "widths"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not 1 <= len(values) <= 1024:
                raise SpecError(f"{where}: {name} is {values!r}, it must be a list of 1 to 1024 integers")
            for value in values:
                check_integer(where, name, value, 0 if name == "layers" else 1, MAX_DIMENSION)
            object.__setattr__(self, name, tuple(values))
        check_integer(where, "top_k", self.top_k, 1, MAX_DIMENSION)
        check_integer(where, "expansion", self.expansion, 1, 1024)
        check_boolean(where, "normalize", self.normalize)


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """A low-rank addition to linears from step 2 on: y = W x + B (A x), scaling in B. Errors: SpecError.

    modules: names of linears in every layer, e.g. `self_attn.q_proj`; A `[rank, in]` is `<linear>.adapter_in.weight`, B
    `[out, rank]` `<linear>.adapter_out.weight`.
    """

    rank: int
    modules: tuple[str, ...] = ADAPTABLE

    def __post_init__(self) -> None:
        where = "adapter"
        check_integer(where, "rank", self.rank, 1, MAX_DIMENSION)
        if not isinstance(self.modules, list | tuple) or not self.modules:
            raise SpecError(f"{where}: modules is {self.modules!r}, it must be a list of linears")
        for module in self.modules:
            check_choice(where, "modules", module, ADAPTABLE)
        object.__setattr__(self, "modules", tuple(name for name in ADAPTABLE if name in self.modules))


@dataclasses.dataclass(frozen=True)
class RecurrenceSpec:
    """How one token thinks. A stock model has `max_latents` 0; the defaults are 2602.08220's halting recurrence.

    `halt_threshold` is tau: a token goes on while what `stop` names exceeds it, strictly. `skip_halted` False runs every
    step of every token and lets the stop rule choose only what is read out. Errors: SpecError.
    """

    max_latents: int = 0
    halt_threshold: float = 1e-4
    router_type: str = "linear"
    router_hidden_size: int | None = None
    router_shared: bool = True
    embedding_scale: float = 1.0
    router_activation: str = added("relu")
    visibility: str = added("duo")
    stop: str = added("reach")
    readout: str = added("mixture")
    skip_halted: bool = added(True)
    feedback: FeedbackSpec | None = added(None)
    decider: DeciderSpec | None = added(None)
    adapter: AdapterSpec | None = added(None)

    def __post_init__(self) -> None:
        where = "recurrence"
        check_integer(where, "max_latents", self.max_latents, 0, MAX_LATENTS)
        check_number(where, "halt_threshold", self.halt_threshold, 0.0, 1e9)
        check_choice(where, "router_type", self.router_type, ROUTER_KINDS)
        if self.router_type == "mlp" or self.router_hidden_size is not None:
            check_integer(where, "router_hidden_size", self.router_hidden_size, 1, MAX_DIMENSION)
        check_boolean(where, "router_shared", self.router_shared)
        check_boolean(where, "skip_halted", self.skip_halted)
        check_number(where, "embedding_scale", self.embedding_scale, -1e6, 1e6)
        for name, choices in (
            ("router_activation", ROUTER_ACTIVATIONS),
            ("visibility", VISIBILITIES),
            ("stop", STOPS),
            ("readout", READOUTS),
        ):
            check_choice(where, name, getattr(self, name), choices)
        if self.stop == "gate" and self.readout in ("mixture", "shares"):
            raise SpecError(f"{where}: readout is {self.readout}, whose weights the stop rule gate does not define")
        if self.readout == "final" and self.visibility != "newest":
            raise SpecError(
                f"{where}: readout is final and visibility {self.visibility}; where a token has no keys its newest "
                "ones are read, visibility must be newest"
            )
        if self.visibility == "newest" and not self.skip_halted and self.readout != "final":
            raise SpecError(
                f"{where}: visibility is newest, which is same where skip_halted is false and every token has every plane"
            )
        if (self.router_type == "decider") != (self.decider is not None):
            raise SpecError(f"{where}: router_type is {self.router_type}, a decider is given for decider and no other")
        if self.stop == "tail" and (self.router_type == "decider" or not self.router_shared):
            raise SpecError(
                f"{where}: stop is tail, whose one router is read at step 1; it is linear or mlp, and shared"
            )
        if self.visibility == "same" and self.skip_halted and self.stop != "count":
            raise SpecError(
                f"{where}: visibility is same, which leaves holes where a token halts early; it needs stop count, or "
                "skip_halted false"
            )

    @property
    def max_steps(self) -> int:
        """Most forward passes one token can take."""
        return self.max_latents + 1

    @property
    def gated(self) -> bool:
        """Whether there are router tensors."""
        return self.max_latents > 0 and self.stop != "count"

    @property
    def tailed(self) -> bool:
        """Whether step 1 tells the weights of all steps."""
        return self.stop == "tail" and self.gated

    @property
    def runs_on(self) -> bool:
        """Whether a halted token runs on to the last step."""
        return not self.skip_halted or self.readout == "final"

    @property
    def token_major(self) -> bool:
        """Whether a token may start only when every earlier token of its sequence has halted."""
        return self.visibility == "all" and self.max_latents > 0
