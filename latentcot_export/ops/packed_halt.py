"""RaggedHalt on packed rows: the halting recurrence, then rows that go on and halted rows for the head, compacted.

Contract (arXiv 2602.08220; the recurrence is that of `ragged_halt.py`; tables in `packed_tables.py`)
    In: z float32 `[r, D]`, gate_logits float32 `[r, J]` (J = 1 shared, or K - 1; absent when K is 1), rows int32 `[r, 4]`,
    reach float32 `[c]`, mix float32 `[c, D]` (rows from c on are fresh: step 1, reach 1, mix 0), then the tables sequences,
    depths, forced_depth, logits (only P is read) and counters. Attributes tau (float >= 0), max_steps (int >= 1).
        gate   = 1 / (1 + exp(-gate_logits[column min(step, J) - 1]))    in float64: a small gate stays accurate
        next   = reach * gate                                          in float32
        go_on  = next > tau and step < K          (strict >; forced: step < forced_depth)
        p_exit = reach - next if go_on else reach (the residual goes to the last executed step)
        mix   += p_exit * z
    Out, both in the order of the input rows: for rows that go on next_rows int32 `[c', 4]` (step + 1, slot -1),
    next_latent float32 `[c', D]` (= z), next_reach float32 `[c']`, next_mix float32 `[c', D]`; for halted rows that need
    the head head_rows int32 `[h, 4]` and head_mix float32 `[h, D]`. A halted row needs it when the token after it is to
    be chosen (`chooses_next`) or its position is below P.
    Tables: depths of halted rows = their step, live_rows falls by them; counters PASSES + 1, EXECUTED_ROWS + r,
    HEAD_ROWS + h. live_rows must count the rows of every running sequence, and next may not be NaN.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .packed_tables import Column, Counter, Row, Tables, chooses_next


@dataclasses.dataclass(frozen=True)
class Halted:
    """What RaggedHalt gives; `decided` is the least |next / tau - 1| that a learned row's halting hung on."""

    next_rows: np.ndarray
    next_latent: np.ndarray
    next_reach: np.ndarray
    next_mix: np.ndarray
    head_rows: np.ndarray
    head_mix: np.ndarray
    decided: float


def packed_halt(
    z: np.ndarray,
    gate_logits: np.ndarray | None,
    rows: np.ndarray,
    reach: np.ndarray,
    mix: np.ndarray,
    tables: Tables,
    *,
    tau: float,
    max_steps: int,
) -> Halted:
    """See the contract; everything is computed in float64 and the outputs are float32."""
    sequences, positions = tables["sequences"], tables["tokens"].shape[1]
    fresh = len(rows) - len(reach)
    old_reach = np.concatenate((reach.astype(np.float64), np.ones(fresh)))
    new_mix = np.concatenate((mix.astype(np.float64), np.zeros((fresh, z.shape[1]))))
    next_reach = np.zeros(len(rows))
    going: list[int] = []
    head: list[int] = []
    decided = np.inf
    for i, (place, position, step, _) in enumerate(rows.tolist()):
        forced = int(tables["forced_depth"][place, position])
        go_on = False
        if step < max_steps:
            assert gate_logits is not None
            column = min(step, gate_logits.shape[1]) - 1
            next_reach[i] = old_reach[i] / (1.0 + np.exp(-float(gate_logits[i, column])))
            go_on = step < forced if forced > 0 else bool(next_reach[i] > np.float32(tau))
            if forced <= 0 and tau > 0:
                decided = min(decided, abs(next_reach[i] / np.float32(tau) - 1.0))
        new_mix[i] += (old_reach[i] - next_reach[i] if go_on else old_reach[i]) * z[i]
        if go_on:
            going.append(i)
            continue
        tables["depths"][place, position] = step
        sequences[place, Column.LIVE_ROWS] -= 1
        if position < tables["logits"].shape[1] or chooses_next(sequences[place], position, positions):
            head.append(i)
    counters = tables["counters"]
    counters[Counter.PASSES] += 1
    counters[Counter.EXECUTED_ROWS] += len(rows)
    counters[Counter.HEAD_ROWS] += len(head)
    next_rows = rows[going].copy()
    next_rows[:, Row.STEP] += 1
    next_rows[:, Row.SLOT] = -1
    return Halted(
        next_rows,
        z[going],
        next_reach[going].astype(np.float32),
        new_mix[going].astype(np.float32),
        rows[head],
        new_mix[head].astype(np.float32),
        decided,
    )
