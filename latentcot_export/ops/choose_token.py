"""ChooseToken: greedy, temperature, top-k and top-p from a given uniform number, without a sort.

Contract
    logits float32 `[S, V]`, temperature float32 `[S]` (0 = greedy), top_k int64 `[S]` (0 = off), top_p float32 `[S]`
    (1 = off), uniform float32 `[S]` in [0, 1). Chosen ids int64 `[S]`.
    Greedy takes the largest logit, the lowest id among equals. Otherwise, with w = exp((logit - max) / temperature):
    top-k keeps every w >= the k-th largest (equals stay); top-p then keeps the smallest set {w >= c} that has at least
    top_p of the kept mass (equals stay); the choice is the first kept id, in id order, whose running sum of w exceeds
    uniform * total. Each row is chosen by itself, so a batch neighbour cannot change it.
"""

from __future__ import annotations

import torch


def _threshold(score: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """The largest c `[S]` with sum(weight[score >= c]) >= target, for scores `[S, V]` <= 0; below them all if inactive.

    Bisection on the value until low and high are neighbouring floats: exact, and it never sorts. The trip count is decided
    by the data: none at all when no row is active.
    """
    low = score.amin(dim=1) - 1.0
    high = torch.where(active, torch.ones_like(low), low)

    def between(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        middle = (low + high) * 0.5
        # a sum, not any(): that becomes a maximum, which has no value when there are no rows
        return ((middle > low) & (middle < high)).to(torch.int64).sum() > 0

    def halve(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle = (low + high) * 0.5
        mass = torch.where(score >= middle.unsqueeze(1), weight, 0.0).sum(dim=1)
        enough = mass >= target
        return torch.where(enough, middle, low), torch.where(enough, high, middle)

    low, _ = torch.while_loop(between, halve, (low, high))
    return low


def sample_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Chosen ids int64 `[S]` of rows with temperature > 0."""
    score = (logits - logits.amax(dim=1, keepdim=True)) / temperature.unsqueeze(1)
    floor = _threshold(score, torch.ones_like(score), top_k.to(score.dtype), top_k > 0)
    weight = torch.where(score >= floor.unsqueeze(1), score.exp(), 0.0)
    floor = _threshold(score, weight, top_p * weight.sum(dim=1), top_p < 1.0)
    weight = torch.where(score >= floor.unsqueeze(1), weight, 0.0)
    running = weight.cumsum(dim=1)
    total = running[:, -1:]
    # the second condition keeps a product that rounds up to the total from running past the last kept id
    passed = (running <= uniform.unsqueeze(1) * total) & (running < total)
    return passed.to(torch.int64).sum(dim=1)


def choose_reference(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, uniform: float
) -> tuple[int, torch.Tensor]:
    """The contract by sorting, in float64, for one row `[V]`: the chosen id and the probabilities `[V]` it came from."""
    logits = logits.double()
    if temperature == 0:
        return int(logits.argmax()), torch.nn.functional.one_hot(logits.argmax(), logits.numel()).double()
    weight = ((logits - logits.max()) / temperature).exp()
    if top_k > 0:
        weight = weight.where(weight >= weight.sort(descending=True).values[min(top_k, logits.numel()) - 1], 0.0)
    if top_p < 1:
        ordered = weight.sort(descending=True).values
        enough = ordered.cumsum(0) >= top_p * weight.sum()
        weight = weight.where(weight >= ordered[int(enough.to(torch.int64).argmax())], 0.0)
    running = weight.cumsum(0)
    chosen = int(((running <= uniform * running[-1]) & (running < running[-1])).sum())
    return chosen, weight / weight.sum()
