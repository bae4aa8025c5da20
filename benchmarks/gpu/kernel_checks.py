"""Every kernel against its reference: the state ops and attention on ragged states, long contexts, and the row kernels."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from gpu.compare import TOLERANCES, close, poisoned, said, same
from gpu.device_state import DeviceState
from gpu.kernels import Kernels
from gpu.references import References
from gpu.simulate import Case, Simulation
from gpu.sizes import latents
from latentcot_export.errors import CheckFailed
from latentcot_export.ops.packed_tables import DEAD
from latentcot_export.spec import ModelSpec, RecurrenceSpec

Ops = Kernels | References
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TAU = 0.3
# Every stop rule, readout and visibility, with what each needs (spec/recurrence.py).
RULES = {
    "reach, duo": RecurrenceSpec(3, TAU),
    "reach, one router a step, newest": RecurrenceSpec(5, 1e-3, router_shared=False, visibility="newest"),
    "reach, runs on, same, shares": RecurrenceSpec(2, TAU, visibility="same", skip_halted=False, readout="shares"),
    "reach, final": RecurrenceSpec(3, TAU, visibility="newest", readout="final"),
    "gate, last": RecurrenceSpec(3, 0.6, stop="gate", readout="last"),
    "count, all, sum": RecurrenceSpec(2, TAU, stop="count", visibility="all", readout="sum"),
    "tail, all": RecurrenceSpec(3, TAU, stop="tail", visibility="all", readout="shares"),
    "one step": RecurrenceSpec(0, TAU),
}


def heads(count: int, kv: int, size: int, qk_norm: bool = False) -> ModelSpec:
    """A model of which only the heads matter, hidden 40."""
    return ModelSpec(61, 40, 8, 2, count, kv, size, 1e-5, 1 << 15, qk_norm=qk_norm)


# Heads of every kernel: up to 128 lanes go to tensor cores in 16 bits, float32 does not; with groups and without.
SHAPES = (heads(2, 2, 64), heads(4, 1, 128, qk_norm=True), heads(3, 3, 80), heads(4, 2, 20))
TYPES = ((F32, F32), (F32, F16), (F16, F16), (BF16, BF16), (F32, BF16))


def states(small: bool) -> Iterator[tuple[str, Case]]:
    """What is simulated, by name."""
    sizes: dict[str, Any] = {"passes": 6 if small else 40}
    for name, recurrence in RULES.items():
        yield f"state, {name}", Case(recurrence, SHAPES[3], sampled=True, recorded=4, **sizes)
    if small:
        wide = dataclasses.replace(SHAPES[3], vocab_size=8196)  # just more than a small block reads, 4 at a time
        yield "state, wide", Case(latents(3), wide, sampled=True, rows=8, places=4, passes=4)
    else:
        wide = dataclasses.replace(SHAPES[3], vocab_size=50304, hidden_size=2048)
        more = {"rows": 200, "places": 64, "length": 40, "passes": 40}
        yield "state, 200 rows", Case(latents(3), SHAPES[3], sampled=True, **more)
        yield "state, wide", Case(latents(3), wide, sampled=True, rows=8, places=4, passes=10)
    for index, shape in enumerate(SHAPES):
        for data, stored in TYPES[index % 2 :: 2] if small else TYPES:
            kinds = f"{_short(data)} over {_short(stored)}"
            name = f"attention, heads {shape.num_heads}/{shape.num_kv_heads} of {shape.head_dim}, {kinds}"
            rules = RULES["reach, duo" if index % 2 else "reach, one router a step, newest"]
            more = {"data": data, "stored": stored, "prompt": index % 2 == 1, "passes": 2 if small else 30}
            yield name, Case(rules, shape, **more)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_states(ops: Ops, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """One line for each simulated case. Nothing is raised: a line says what failed."""
    for name, case in states(small):
        yield line(name, lambda case=case: _simulate(case, ops, seed))


def _simulate(case: Case, ops: Ops, seed: int) -> tuple[int, float, str]:
    simulation = Simulation(case, ops, seed)
    simulation.run()
    floats = [value for op, value in simulation.distances.items() if case.data == F32 or op.startswith("RaggedAtt")]
    return simulation.executed, max(floats, default=0.0), "rows"


def line(name: str, check: Callable[[], tuple[int, float, str]]) -> dict[str, Any]:
    """Name, what was compared, the largest relative distance, and whether it passed."""
    try:
        count, distance, unit = check()
    except Exception as error:  # a fault of one comparison says nothing about the next
        if not isinstance(error, CheckFailed):
            traceback.print_exception(error)
        return {"check": name, "compared": "", "distance": None, "passed": False, "why": said(error)}
    return {"check": name, "compared": f"{count} {unit}", "distance": distance, "passed": True, "why": ""}


def check_contexts(ops: Ops, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Attention over contexts of many chunks: decoding, prompts, both the same bits, a row alone, too."""
    context = 70 if small else 1500
    # beyond 128 rows blocks work on a prompt's tiles (attention_call.cuh)
    sizes = ((3, False), (10, True), (150, True)) if small else ((6, False), (48, True), (200, True))
    kinds = ((F16, F16), (BF16, BF16), (F32, F32))
    for index, shape in enumerate(SHAPES[: len(kinds)] if small else SHAPES):
        for data, stored in kinds[index : index + 1] if small else TYPES:
            for rows, prompt in sizes:
                words = f"{rows} rows of a prompt" if prompt else f"{rows} rows that decode"
                name = f"context {context}, {words}, head {shape.head_dim}, {_short(data)} over {_short(stored)}"
                given = (shape, context, rows, prompt, data, stored, seed + rows)
                yield line(name, lambda given=given: _context(ops, *given))


def ragged_rows(depths: np.ndarray, slots: np.ndarray, count: int, prompt: bool, seed: int) -> np.ndarray:
    """Rows `[count, 4]` at the last step of tokens that have run, depths `[B, T]`, slots `[B, K, T]`.

    A prompt's are stretches of one sequence, by step, then by position; others are anywhere.
    """
    random = np.random.default_rng(seed)
    places, run = len(depths), int((slots[0, 0] >= 0).sum())
    if prompt:
        each = -(-count // places)
        starts = random.integers(0, run - each + 1, places)
        cells = [(place, starts[place] + i) for place in range(places) for i in range(each)][:count]
    else:
        cells = [(place % places, int(random.integers(run))) for place in range(count)]
    cells = sorted(set(cells), key=lambda cell: (cell[0], depths[cell], cell[1]))  # a slot is written once in a call
    return np.array([(*cell, depths[cell], slots[cell[0], depths[cell] - 1, cell[1]]) for cell in cells], np.int32)


def _context(
    ops: Ops,
    model: ModelSpec,
    context: int,
    count: int,
    prompt: bool,
    data: torch.dtype,
    stored: torch.dtype,
    seed: int,
) -> tuple[int, float, str]:
    recurrence, random, places = latents(3), np.random.default_rng(seed), 3 if prompt else count
    model = dataclasses.replace(model, num_layers=1)
    depths = random.integers(1, 5, (places, context + 1))
    wanted, found = (
        DeviceState(
            model,
            recurrence,
            places=places,
            length=context + 1,
            slots=int(depths.sum()) + 8,
            device=device,
            dtype=stored,
        )
        for device in (torch.device("cpu"), ops.device)
    )
    wanted.fill(context, depths, context, seed)
    for name, table in wanted.tables.items():
        found.tables[name].copy_(table)
    rows = torch.from_numpy(ragged_rows(depths, wanted.host.arrays["slots"], count, prompt, seed))
    live = len(rows)
    rows = torch.cat((rows, torch.full((3, 4), DEAD, dtype=torch.int32)))
    generator = torch.Generator().manual_seed(seed)
    width = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    angles = torch.rand(len(rows), model.head_dim // 2, generator=generator) * 6
    qkv = torch.randn(len(rows), width, generator=generator)
    qkv[live:] = torch.nan
    row: dict[str, torch.Tensor | None] = {"qkv": qkv.to(data), "cos": angles.cos(), "sin": angles.sin(), "rows": rows}
    if model.qk_norm:
        row |= {name: 1 + torch.randn(model.head_dim, generator=generator) / 4 for name in ("q_norm", "k_norm")}
    there = {name: value.to(ops.device) for name, value in row.items() if value is not None}
    outs = []
    for rule in (prompt, not prompt):
        outs.append(poisoned(torch.zeros(len(rows), model.num_heads * model.head_dim, dtype=data, device=ops.device)))
        ops.attention(there, found.tables, outs[-1], 0, model, recurrence, rule)
    same(outs[1], outs[0].cpu(), "RaggedAttention, decoding and prompts")
    expected = torch.zeros(outs[0].shape, dtype=torch.float64)
    References().attention(row, wanted.tables, expected, 0, model, recurrence, prompt)
    kind = min((data, stored), key=lambda each: (each.itemsize, each == F16))
    distance = close(outs[0], expected, "RaggedAttention", TOLERANCES[kind])
    close(found.tables["cache"], wanted.tables["cache"], "RaggedAttention cache")
    alone = {name: value[:1].contiguous() if len(value) == len(rows) else value for name, value in there.items()}
    lone = poisoned(torch.zeros_like(outs[0][:1]))
    ops.attention(alone, found.tables, lone, 0, model, recurrence, False)
    same(lone, outs[0][:1].cpu(), "RaggedAttention, a row alone")
    return live, distance, "rows"


def check_rows(ops: Ops, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """AddNorm and GatedUnit."""
    widths = (64, 100) if small else (64, 100, 1024, 2048, 5632)
    for dtype in (F32, F16, BF16):
        for width in widths:
            name = f"AddNorm and GatedUnit, width {width}, {_short(dtype)}"
            yield line(name, lambda width=width, dtype=dtype: _rows(ops, width, dtype, seed))


def _rows(ops: Ops, width: int, dtype: torch.dtype, seed: int) -> tuple[int, float, str]:
    generator = torch.Generator().manual_seed(seed)
    x, gate_up = (torch.randn(9, n, generator=generator).to(dtype) for n in (width, 2 * width))
    residual, weight = torch.randn(9, width, generator=generator), 1 + torch.randn(width, generator=generator) / 4
    gate_up = gate_up * 4
    wanted = [torch.zeros(9, width, dtype=torch.float64) for _ in range(3)]
    found = [poisoned(torch.zeros(9, width, dtype=of, device=ops.device)) for of in (dtype, F32, dtype)]
    References().add_norm(x, residual, weight, wanted[:2], 1e-5)
    References().gated_unit(gate_up, wanted[2])
    there = [each.to(ops.device) for each in (x, residual, weight, gate_up)]
    ops.add_norm(*there[:3], found[:2], 1e-5)
    ops.gated_unit(there[3], found[2])
    names = ("AddNorm normed", "AddNorm total", "GatedUnit")
    return 9, max(close(one, other, name) for one, other, name in zip(found, wanted, names, strict=True)), "rows"
