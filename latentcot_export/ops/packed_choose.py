"""ChooseToken on packed rows: the next token of every halted row that is to choose one, and the recorded logits.

Contract (tables in `packed_tables.py`)
    In: logits float32 `[h, V]`, rows int32 `[h, 4]` (head_rows of RaggedHalt), then the tables sequences, sampling,
    tokens, uniform, stop_tokens and record (the `logits` table). Out: chosen int32 `[h]`, -1 where a row only records.
    A row at position t of place s chooses when `chooses_next` says so, by the rule of `choose_token.py` with
    temperature, top_p = sampling[s], top_k = sequences[s], u = uniform[s, t + 1], each row by itself. NaN is never chosen.
    Greedy fails when no logit is finite, sampling when the largest is not; the op fails as a whole, before it writes.
    temperature is finite and >= 0; where it is > 0: 0 < top_p <= 1, top_k >= 0, 0 <= u < 1.
    Tables: tokens[s, t + 1] = the token, length = t + 2, stopped = 1 if it is among stop_tokens[s];
    record[s, t] = the row's logits where t < P.
    With the attribute fixed (0 or 1): h is R, and dead rows choose and record nothing, chosen -1.
"""

from __future__ import annotations

import numpy as np
import torch

from .choose_token import choose_reference
from .packed_tables import Column, Tables, chooses_next, live_rows


def packed_choose(logits: np.ndarray, rows: np.ndarray, tables: Tables, *, fixed: bool = False) -> np.ndarray:
    """See the contract; chosen int32 `[h]`. Logits of live rows are finite; sampling is by sorting, in float64."""
    record = tables["logits"]
    chosen = np.full(len(rows), -1, np.int32)
    for i, (place, position, _, _) in enumerate(rows[: live_rows(rows, fixed)].tolist()):
        sequence = tables["sequences"][place]
        following = position + 1
        if chooses_next(sequence, position, tables["tokens"].shape[1]):
            temperature, top_p = (float(number) for number in tables["sampling"][place])
            uniform = float(tables["uniform"][place, following])
            row = torch.from_numpy(logits[i])
            chosen[i], _ = choose_reference(row, temperature, int(sequence[Column.TOP_K]), top_p, uniform)
            tables["tokens"][place, following] = chosen[i]
            sequence[Column.LENGTH] = following + 1
            if chosen[i] in tables["stop_tokens"][place]:
                sequence[Column.STOPPED] = 1
        if position < record.shape[1]:
            record[place, position] = logits[i]
    return chosen
