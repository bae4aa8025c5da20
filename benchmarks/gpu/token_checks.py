"""Tokens and depths of whole passes on the device against the oracle, in float32, with continuous admission."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gpu.device_pass import DevicePass
from gpu.device_state import DeviceState
from gpu.kernel_checks import Ops, line
from gpu.sizes import Weights
from latentcot_export.checkpoint.random import random_tensors
from latentcot_export.errors import CheckFailed
from latentcot_export.model import LatentCoT
from latentcot_export.model import run as truth_of
from latentcot_export.ops.packed_tables import Column, Status
from latentcot_export.spec import ModelSpec, RecurrenceSpec

BURST = 8
# What float32 may decide otherwise than float64: a halting within this share of tau, a logit within this of the best.
NEAR_DEPTH, NEAR_LOGIT = 1e-4, 1e-3
MODELS = {
    "heads of 64": (ModelSpec(97, 128, 192, 3, 2, 2, 64, 1e-5, 4096), RecurrenceSpec(3, 0.05)),
    "groups, one router a step": (
        ModelSpec(97, 96, 128, 2, 4, 2, 32, 1e-5, 4096, qk_norm=True, tie_word_embeddings=True),
        RecurrenceSpec(5, 0.02, router_shared=False, embedding_scale=1.5),
    ),
}


def check_tokens(ops: Ops, small: bool, seed: int) -> list[dict[str, Any]]:
    """One line for each model."""
    size = (4, 6) if small else (40, 80)
    return [
        line(f"tokens and depths, {name}", lambda specs=specs: _check(ops, *specs, *size, seed))
        for name, specs in MODELS.items()
    ]


def _check(
    ops: Ops, model: ModelSpec, recurrence: RecurrenceSpec, count: int, new: int, seed: int
) -> tuple[int, float, str]:
    random = np.random.default_rng(seed)
    tensors = random_tensors(model, recurrence, seed)
    prompts = [random.integers(0, model.vocab_size, int(random.integers(1, new // 2 + 2))) for _ in range(count)]
    ends = [len(prompt) + int(random.integers(1, new + 1)) for prompt in prompts]
    places, rows = max(2, count // 5), max(2, count // 4)
    weights = Weights.of(model, recurrence, tensors, ops.device, torch.float32)
    length = max(ends) + 1
    state = DeviceState(
        model,
        recurrence,
        places=places,
        length=length,
        slots=places * length * recurrence.max_steps,
        device=ops.device,
    )
    found = generate(DevicePass(state, weights, ops, rows, prompt=True), prompts, ends)
    oracle = LatentCoT.from_tensors(model, recurrence, tensors, torch.float64)
    compared = 0
    for number, (tokens, depths) in enumerate(found):
        compared += _same_as_oracle(oracle, number, len(prompts[number]), tokens, depths)
    if compared < sum(ends) // 2:
        raise CheckFailed(f"only {compared} of {sum(ends)} tokens are decided clearly; take another seed")
    return compared, 0.0, f"tokens of {count} sequences"


def generate(passes: DevicePass, prompts: list[np.ndarray], ends: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens `[end + 1]` and depths `[end]` of every request; each enters as soon as there is a place."""
    state, host = passes.state, passes.state.host
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    running: dict[int, int] = {}
    waiting = list(range(len(prompts)))
    host.control(passes.count)
    state.push()
    passes.capture()
    for _ in range(sum(ends) * host.max_steps):
        entered = []
        while waiting and host.free_place() is not None:
            number = waiting.pop(0)
            place = host.add(prompts[number], ends[number])
            running[place] = number
            entered.append(place)
        if entered:
            state.enter(entered)
        passes.burst(BURST)
        state.pull()
        if host.counters.min() < 0:
            raise CheckFailed("counters hold a fault of an operator")
        for place, number in [*running.items()]:
            if host.sequences[place, Column.STATUS] == Status.DONE:
                end = ends[number]
                tokens, depths = host.arrays["tokens"][place], host.arrays["depths"][place]
                found[number] = (tokens[: end + 1].copy(), depths[:end].copy())
                del running[place]
                state.leave(place)
        if not waiting and not running:
            return [found[number] for number in range(len(prompts))]
    raise CheckFailed(f"{len(waiting) + len(running)} of {len(prompts)} sequences never end")


def _same_as_oracle(oracle: LatentCoT, number: int, known: int, tokens: np.ndarray, depths: np.ndarray) -> int:
    """How many tokens are the oracle's, up to the first that float32 may decide otherwise. Errors: CheckFailed."""
    run = torch.from_numpy(tokens[:-1].astype(np.int64))[None]
    with torch.inference_mode():
        truth = truth_of(oracle, run)
        logits = oracle.head(truth.mix)[0]
    tau = oracle.recurrence.halt_threshold
    margin = (truth.next_reach[0] / tau - 1).abs().nan_to_num(nan=torch.inf).amin(-1)
    best = logits.topk(2, dim=-1)
    for t in range(len(depths)):
        if margin[t] < NEAR_DEPTH:
            return t  # later keys may be others
        if int(truth.depths[0, t]) != depths[t]:
            raise CheckFailed(
                f"sequence {number}, token {t}: depth {depths[t]}, the oracle has {int(truth.depths[0, t])}"
            )
        apart = float(best.values[t, 0] - best.values[t, 1])
        if t + 1 >= known and apart > NEAR_LOGIT and int(best.indices[t, 0]) != tokens[t + 1]:
            wanted = int(best.indices[t, 0])
            raise CheckFailed(f"sequence {number}, token {t + 1}: {tokens[t + 1]}, the oracle chooses {wanted}")
    return len(depths)
