"""Routers, deciders and the embedding that a step expects, as modules of the portable graph; gates are float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..spec import FeedbackSpec, RecurrenceSpec
from .layers import CentredNorm, Matrix

LAYER_NORM_EPS = 1e-5  # of a decider's norms: torch's own, which the checkpoints do not tell

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    # not torch's silu and sigmoid, see _probability
    "silu": lambda x: x * _probability(x),
    "tanh": torch.tanh,
}


class PassRouter(nn.Module):
    """The gate of every row, float32 in every precision of the other weights."""

    def __init__(self, tensors: dict[str, torch.Tensor], spec: RecurrenceSpec) -> None:
        super().__init__()
        self.spec = spec
        names = ["router"] if spec.router_shared else [f"router.{j}" for j in range(spec.max_latents)]
        for name in names:
            parts = [name] if spec.router_type == "linear" else [f"{name}.in", f"{name}.out"]
            for part in parts:
                self.add_module(part.replace(".", "_"), Matrix(tensors, part, torch.float32))
        self.names = [name.replace(".", "_") for name in names]

    def _logits(self, z: torch.Tensor) -> list[torch.Tensor]:
        if self.spec.router_type == "linear":
            return [self.get_submodule(name)(z) for name in self.names]
        act = _ACTIVATIONS[self.spec.router_activation]
        return [self.get_submodule(f"{name}_out")(act(self.get_submodule(f"{name}_in")(z))) for name in self.names]

    def forward(self, z: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Probability of going on float32 `[B, R]` of z float32 `[B, R, D]` after step int64 `[B, R]`."""
        logits = self._logits(z)
        if len(logits) == 1:
            return _probability(logits[0].squeeze(-1))
        own = (step - 1).clamp(0, self.spec.max_latents - 1).unsqueeze(-1)
        return _probability(torch.cat(logits, dim=-1).gather(-1, own).squeeze(-1))

    def tail(self, z: torch.Tensor) -> torch.Tensor:
        """Weights of all steps float32 `[B, R, max_steps]` of z after step 1, see STOPS of the spec."""
        shares = torch.softmax(self._logits(z)[0], dim=-1)
        # sums from the last to each: a product with a triangle, which every parser knows
        steps = shares.shape[-1]
        weights = shares @ torch.tril(torch.ones(steps, steps))
        return torch.cat((torch.ones_like(weights[..., :1]), weights[..., 1:]), dim=-1)


class DeciderBlock(nn.Module):
    """One block of `latentcot_export.model.decider`, float32."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        super().__init__()
        self.norm = CentredNorm(tensors, f"{name}.norm", LAYER_NORM_EPS, torch.float32)
        # not `in`, its name in a checkpoint: torch writes Python that reads attributes by their names
        self.inner = Matrix(tensors, f"{name}.in", torch.float32)
        self.out = Matrix(tensors, f"{name}.out", torch.float32)
        changes = f"{name}.change.weight" in tensors
        self.change = Matrix(tensors, f"{name}.change", torch.float32) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., following]` of x `[..., width]`."""
        return self.change(x) + self.out(F.gelu(self.inner(self.norm(x))))


class PassDecider(nn.Module):
    """The gate of every row by `latentcot_export.model.decider`, float32."""

    def __init__(self, tensors: dict[str, torch.Tensor], spec: RecurrenceSpec) -> None:
        super().__init__()
        assert spec.decider is not None
        self.spec = spec.decider
        self.logits_in, self.combined, self.input, self.out = (
            Matrix(tensors, f"router.{name}", torch.float32) for name in ("logits_in", "combined", "input", "out")
        )
        self.states_norm, self.norm = (
            CentredNorm(tensors, f"router.{name}", LAYER_NORM_EPS, torch.float32)
            if f"router.{name}.weight" in tensors
            else nn.Identity()
            for name in ("states_norm", "norm")
        )
        self.blocks = nn.ModuleList(
            DeciderBlock(tensors, f"router.blocks.{index}") for index in range(len(self.spec.widths))
        )

    def forward(self, states: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Probability of going on `[B, R]`; states after each layer `[B, R, D]`, logits `[B, R, V]`."""
        wide = torch.cat([states[index] for index in self.spec.layers], dim=-1)
        largest = logits.topk(self.spec.top_k, dim=-1).values
        if self.spec.normalize:
            wide, largest = self.states_norm(wide), torch.softmax(largest, dim=-1)
        x = self.input(self.combined(torch.cat((wide, self.logits_in(largest)), dim=-1)))
        for block in self.blocks:
            x = block(x)
        return _probability(self.out(self.norm(x)).squeeze(-1))


def expected_embedding(
    feedback: FeedbackSpec, table: torch.Tensor, logits: torch.Tensor, x: torch.Tensor, gate: torch.Tensor | None
) -> torch.Tensor:
    """What the next step reads `[B, R, D]`, see FeedbackSpec; logits float32 `[B, R, V]`, x `[B, R, D]`, gate `[B, R]`."""
    if feedback.top_k is None or feedback.top_k >= logits.shape[-1]:
        mixture = torch.softmax(logits, dim=-1).to(table.dtype) @ table
    else:
        largest, ids = logits.topk(feedback.top_k, dim=-1)
        weights = torch.softmax(largest, dim=-1).to(table.dtype)
        mixture = (weights.unsqueeze(-2) @ F.embedding(ids, table)).squeeze(-2)
    mixture = feedback.scale * mixture
    if feedback.gated and gate is not None:
        mixture = gate.to(mixture.dtype).unsqueeze(-1) * mixture
    return x + mixture if feedback.residual else mixture


def _probability(logit: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-logit)), right to float32 rounding for small probabilities too.

    ONNX Runtime's Sigmoid on the CPU is a rational approximation: measured in 1.32, it is off by 3e-4 of the value at 1e-4,
    where a usual tau lies, and exactly 0 below 1e-8.
    """
    return torch.reciprocal(torch.exp(-logit) + 1.0)
