"""The router: after every step but the last, the probability that a token goes on thinking.

g = sigmoid(router(z)), linear or a two-layer ReLU MLP, shared or one per step (arXiv 2602.08220, section on the router).
Everything here is float32 or better: a threshold compare flips in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import RecurrenceSpec
from .decider import Decider


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _one(hidden_size: int, spec: RecurrenceSpec) -> nn.Module:
    outputs = spec.max_steps if spec.stop == "tail" else 1
    if spec.router_type == "linear":
        return nn.Linear(hidden_size, outputs)
    assert spec.router_hidden_size is not None
    return nn.ModuleDict(
        {"in": nn.Linear(hidden_size, spec.router_hidden_size), "out": nn.Linear(spec.router_hidden_size, outputs)}
    )


def build_router(hidden_size: int, spec: RecurrenceSpec) -> nn.Module:
    """Modules whose parameters are named as families.md's checkpoint layout names them."""
    if spec.decider is not None:
        return Decider(hidden_size, spec.decider)
    if spec.router_shared:
        return _one(hidden_size, spec)
    return nn.ModuleList(_one(hidden_size, spec) for _ in range(spec.max_latents))


# What stands between the two layers of an mlp router.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def _logit(router: nn.Module, activation: str, z: torch.Tensor) -> torch.Tensor:
    def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))

    if isinstance(router, nn.Linear):
        return linear(router, z)
    assert isinstance(router, nn.ModuleDict)
    hidden = ACTIVATIONS[activation](linear(router["in"], z))  # type: ignore[arg-type]
    return linear(router["out"], hidden)  # type: ignore[arg-type]


def gate(router: nn.Module, spec: RecurrenceSpec, z: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Probabilities of going on `[B, R]`, float32 or better, of rows z `[B, R, D]` after their step int64 `[B, R]`."""
    z = wide(z)
    if spec.router_shared:
        return torch.sigmoid(_logit(router, spec.router_activation, z).squeeze(-1))
    # every router on every row, then each row's own: routers are a few thousand multiplications
    assert isinstance(router, nn.ModuleList)
    logits = torch.cat([_logit(each, spec.router_activation, z) for each in router], dim=-1)
    own = (step - 1).clamp(0, spec.max_latents - 1).unsqueeze(-1)
    return torch.sigmoid(logits.gather(-1, own).squeeze(-1))


def tail(router: nn.Module, spec: RecurrenceSpec, z: torch.Tensor) -> torch.Tensor:
    """Weights w `[B, R, max_steps]` of the steps of rows z `[B, R, D]` of step 1: w_k = s_k + s_(k+1) + ..., w_1 = 1.

    s is the softmax of the router's outputs (PonderLM-3, arXiv 2603.02023).
    """
    shares = torch.softmax(_logit(router, spec.router_activation, wide(z)), dim=-1)
    weights = shares.flip(-1).cumsum(-1).flip(-1)
    return torch.cat((torch.ones_like(weights[..., :1]), weights[..., 1:]), dim=-1)
