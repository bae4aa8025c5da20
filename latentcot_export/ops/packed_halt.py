"""RaggedHalt on packed rows: the stop rule and the readout; rows that go on and halted rows for the head, compacted.

Contract (arXiv 2602.08220 and the rules of spec/recurrence.py; tables in `packed_tables.py`)
    In: z float32 `[r, D]`, gate_logits float32 `[r, J]` (J = 1 shared, or K - 1; tail: K; absent for count and where K is
    1), rows int32 `[r, 4]`, reach float32 `[c]`, mix float32 `[c, D]` (rows from c on are fresh: step 1, reach 1, mix 0),
    the tables sequences, depths, forced_depth, logits (only P is read) and counters, then next_input float32 `[r, D]`
    (absent: z), x float32 `[r, D]` (what the row read; only for final) and the table weights (only for tail). Attributes
    tau (float >= 0), max_steps (int >= 1), stop and readout (indices of STOPS and READOUTS), skip_halted (0 or 1).
        gate    = 1 / (1 + exp(-gate_logits[column min(step, J) - 1]))   in float64: a small gate stays accurate
        next    = reach * gate (reach), gate (gate), reach (count), weights[s, t, step] (tail); float32
        goes on = next > tau and step < K          (strict >; count: step < K; forced: step < forced_depth)
        share   = 1 if sum; 1 if goes on ends here else 0 for last and count; reach - next if shares, next 0 at step K;
                  else reach - next if goes on else reach (the residual goes to the last step)
        mix    += share * z
    Tail: rows of step 1 write weights[s, t, j] = sum of softmax(gate_logits)[j:], 1 for j = 0.
    A row that goes on for the first time no more has ended: depths = its step. With skip_halted and a readout other than
    final it leaves here. Otherwise it runs on to step K with reach -1, share 0 (final: 1 at step K) and, for final, with x
    as its next input and slot -2: it has keys and values no more.
    Out, both in the order of the input rows: for rows that run on next_rows int32 `[c', 4]` (step + 1, slot -1),
    next_latent float32 `[c', D]` (= next_input), next_reach float32 `[c']`, next_mix float32 `[c', D]`; for rows that leave
    and need the head head_rows int32 `[h, 4]`, head_mix float32 `[h, D]` and head_index int64 `[h]`, which rows they are. A
    row needs it when the token after it is to be chosen (`chooses_next`) or its position is below P.
    Tables: live_rows falls by the rows that leave; counters PASSES + 1, EXECUTED_ROWS + r, HEAD_ROWS + h. live_rows must
    count the rows of every running sequence, and next may not be NaN.
    With the attribute fixed (0 or 1): all inputs and outputs have R rows, reach float32 `[R]` and mix float32 `[R, D]`
    among them. A live row is fresh where its step is 1, and its reach and mix are not read. The outputs hold what is said
    above in front; behind, rows are dead and all else is 0, head_index too. EXECUTED_ROWS counts live rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .packed_tables import DEAD, NO_SLOT, READS_ONLY, Column, Counter, Row, Tables, chooses_next, live_rows, padded


@dataclasses.dataclass(frozen=True)
class Halted:
    """What RaggedHalt gives; `decided` is the least |next / tau - 1| that a learned row's halting hung on."""

    next_rows: np.ndarray
    next_latent: np.ndarray
    next_reach: np.ndarray
    next_mix: np.ndarray
    head_rows: np.ndarray
    head_mix: np.ndarray
    head_index: np.ndarray
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
    stop: str = "reach",
    readout: str = "mixture",
    skip_halted: bool = True,
    next_input: np.ndarray | None = None,
    x: np.ndarray | None = None,
    fixed: bool = False,
) -> Halted:
    """See the contract; everything is computed in float64 and the outputs are float32."""
    sequences, positions = tables["sequences"], tables["tokens"].shape[1]
    capacity = len(rows)
    rows = rows[: live_rows(rows, fixed)]
    if fixed:
        started = rows[:, Row.STEP] == 1
        reach = np.where(started, 1, reach[: len(rows)])
        mix = np.where(started[:, np.newaxis], 0, mix[: len(rows)])
    fresh = len(rows) - len(reach)
    old_reach = np.concatenate((reach.astype(np.float64), np.ones(fresh)))
    new_mix = np.concatenate((mix.astype(np.float64), np.zeros((fresh, z.shape[1]))))
    latent = (z if next_input is None else next_input).copy()
    next_reach = np.zeros(len(rows))
    runs_on = not skip_halted or readout == "final"
    going: list[int] = []
    frozen: list[int] = []
    head: list[int] = []
    decided = np.inf
    for i, (place, position, step, _) in enumerate(rows.tolist()):
        ended = old_reach[i] < 0
        forced = int(tables["forced_depth"][place, position])
        goes_on = False
        if stop == "tail" and step == 1 < max_steps:
            assert gate_logits is not None
            parts = np.exp(gate_logits[i].astype(np.float64) - gate_logits[i].max())
            tails = np.cumsum(parts[::-1])[::-1] / parts.sum()
            tables["weights"][place, position] = np.concatenate(([1.0], tails[1:]))
        if step < max_steps and not ended:
            next_reach[i] = old_reach[i]
            if stop == "tail":
                next_reach[i] = tables["weights"][place, position, step]
            elif stop != "count":
                assert gate_logits is not None
                column = min(step, gate_logits.shape[1]) - 1
                gate = 1.0 / (1.0 + np.exp(-float(gate_logits[i, column])))
                next_reach[i] = gate if stop == "gate" else old_reach[i] * gate
            goes_on = step < forced if forced > 0 else stop == "count" or bool(next_reach[i] > np.float32(tau))
            if forced <= 0 and tau > 0 and stop != "count":
                decided = min(decided, abs(next_reach[i] / np.float32(tau) - 1.0))
        share = old_reach[i] - next_reach[i] if goes_on or readout == "shares" else old_reach[i]
        if readout == "sum":
            share = 1.0
        elif readout == "last" or stop == "count":
            share = 0.0 if goes_on else 1.0
        if ended:
            share = 0.0
        if readout == "final":
            share = float(step == max_steps)
        new_mix[i] += share * z[i]
        if not ended and not goes_on:
            tables["depths"][place, position] = step
        if not goes_on and readout == "final" and step < max_steps:
            assert x is not None
            latent[i] = x[i]
            frozen.append(i)
        if ended or not goes_on:
            next_reach[i] = -1.0
        elif stop in ("gate", "count"):
            next_reach[i] = 1.0
        if goes_on or (runs_on and step < max_steps):
            going.append(i)
            continue
        sequences[place, Column.LIVE_ROWS] -= 1
        if position < tables["logits"].shape[1] or chooses_next(sequences[place], position, positions):
            head.append(i)
    counters = tables["counters"]
    counters[Counter.PASSES] += 1
    counters[Counter.EXECUTED_ROWS] += len(rows)
    counters[Counter.HEAD_ROWS] += len(head)
    next_rows = rows.copy()
    next_rows[:, Row.STEP] += 1
    next_rows[:, Row.SLOT] = NO_SLOT
    next_rows[frozen, Row.SLOT] = READS_ONLY
    next_count, head_count = (capacity, capacity) if fixed else (len(going), len(head))
    return Halted(
        padded(next_rows[going], next_count, DEAD),
        padded(latent[going], next_count),
        padded(next_reach[going].astype(np.float32), next_count),
        padded(new_mix[going].astype(np.float32), next_count),
        padded(rows[head], head_count, DEAD),
        padded(new_mix[head].astype(np.float32), head_count),
        padded(np.array(head, np.int64), head_count),
        decided,
    )
