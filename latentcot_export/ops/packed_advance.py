"""RaggedAdvance: finished sequences give their slots back, rows get a slot, tokens start while slots and rows last.

Contract (tables in `packed_tables.py`)
    In: rows int32 `[m, 4]` (the last f0 fresh: step 1), fresh int32 `[f0]` their tokens, chosen int32 `[any]` (an edge of
    the graph, never read), then the tables sequences, tokens, forced_depth, slots, free_slots, order, control, counters.
    Attributes max_steps (int >= 1), runs_on (0 or 1: rows run to max_steps whatever the depth of their token), token_major
    (0 or 1: a token starts only when its sequence has no live row, whatever SEQUENCE_ROWS says). Out: rows int32 `[r, 4]`
    (the input rows, then those that start), fresh int32 `[f]`, again bool `[]`.
    1. A running sequence without live rows that is stopped or has nothing left to run (next_position >= end) is done: its
       slots go on the stack (place by place, step by step, by position), its cells become -1, FINISHED + 1.
    2. A row without a slot (-1) takes the top of the stack; one that only reads (-2) gets none. RESERVED = sum over the
       others of limit - step, where limit is `depth_limit`, runs_on: max_steps: what live rows may still ask for. A row
       that goes on always finds a slot, because a token starts only while free - reserved >= its limit.
       With jacobi (0 or 1) rows of several steps of a token may be in flight, as where a prompt is refined: a row without
       a slot keeps the one of its cell, if any, and a token's part of RESERVED is the number of cells without a slot from
       its deepest row to its limit.
    3. Tokens start, unless lockstep is set and there are input rows. A place has min(length, pause, end) - next_position
       of them (none when stopped), in order of position and with at most SEQUENCE_ROWS live rows of one place; one that
       does not fit blocks the later ones of its place. First, whatever MAX_ROWS says, the newest token of each place that
       has just this one left (next_position == length - 1: decoding). Then prompts share what MAX_ROWS leaves, in rounds
       of 16 tokens a place that begin at order[PASSES mod n], n places being in order.
       The new rows stand place by place in `order`, positions ascending, and take their slots in that sequence.
    4. again = r > 0, and not (YIELD_WHEN_DONE and FINISHED > 0). STALLED = 1 if r is 0 and tokens could start.
       MOST_SLOTS = the larger of itself and N - FREE_SLOTS.
    Beyond types and ranges it is checked that the cell of a row's step holds the row's slot, the step before has one and
    the step after none (jacobi: any); that no cell has two rows; that live_rows counts the rows; that order holds every
    running place once; and that a position that starts has a token and no slot.
    With fixed (0 or 1): rows `[R, 4]`, no live one of step 1, and fresh `[0]`. Out: rows `[R, 4]`, live ones as above,
    fresh int32 `[R]` with the token of row i at i where it starts, else 0. No token starts once R rows live: it waits.
"""

from __future__ import annotations

import numpy as np

from .packed_tables import (
    DEAD,
    NO_SLOT,
    READS_ONLY,
    ROUND_TOKENS,
    Column,
    Control,
    Counter,
    Row,
    Status,
    Tables,
    depth_limit,
    live_rows,
    padded,
)


def _finish(tables: Tables) -> None:
    counters, free_slots = tables["counters"], tables["free_slots"]
    for place, sequence in enumerate(tables["sequences"]):
        if sequence[Column.STATUS] != Status.RUNNING or sequence[Column.LIVE_ROWS]:
            continue
        if not sequence[Column.STOPPED] and sequence[Column.NEXT_POSITION] < sequence[Column.END]:
            continue
        cells = tables["slots"][place, :, : sequence[Column.NEXT_POSITION]]
        held = cells[cells >= 0]  # row-major: step by step, by position
        free = int(counters[Counter.FREE_SLOTS])
        free_slots[free : free + len(held)] = held
        counters[Counter.FREE_SLOTS] += len(held)
        counters[Counter.FINISHED] += 1
        cells[:] = -1
        sequence[Column.STATUS] = Status.DONE


def _startable(sequence: np.ndarray) -> int:
    if sequence[Column.STATUS] != Status.RUNNING or sequence[Column.STOPPED]:
        return 0
    limit = min(sequence[Column.LENGTH], sequence[Column.PAUSE], sequence[Column.END])
    return max(0, int(limit - sequence[Column.NEXT_POSITION]))


def _take_slot(tables: Tables, place: int, step: int, position: int) -> int:
    tables["counters"][Counter.FREE_SLOTS] -= 1
    slot = int(tables["free_slots"][tables["counters"][Counter.FREE_SLOTS]])
    tables["slots"][place, step - 1, position] = slot
    return slot


class _Starts:
    """Tokens that start: how many of each place, decided before any takes its slot."""

    def __init__(
        self, tables: Tables, rows: int, reserved: int, limits: np.ndarray, most_live: int, most_rows: float
    ) -> None:
        self.tables, self.rows, self.reserved, self.limits = tables, rows, reserved, limits
        self.most_live, self.most_rows = most_live, most_rows
        self.free = int(tables["counters"][Counter.FREE_SLOTS])
        self.started = [0] * len(tables["sequences"])

    def start(self, place: int, most: int) -> None:
        """Starts up to `most` tokens of a place."""
        sequence = self.tables["sequences"][place]
        for _ in range(min(most, _startable(sequence) - self.started[place])):
            live = sequence[Column.LIVE_ROWS] + self.started[place]
            position = sequence[Column.NEXT_POSITION] + self.started[place]
            limit = int(self.limits[place, position])
            if live >= self.most_live or self.rows >= self.most_rows or self.free - self.reserved < limit:
                return
            self.free -= 1
            self.reserved += limit - 1
            self.started[place] += 1
            self.rows += 1


def _starts(
    tables: Tables, rows: int, reserved: int, limits: np.ndarray, token_major: bool, most_rows: float
) -> _Starts:
    most_live = 1 if token_major else int(tables["control"][Control.SEQUENCE_ROWS])
    starts = _Starts(tables, rows, reserved, limits, most_live, most_rows)
    order = [int(place) for place in tables["order"] if place >= 0]
    max_rows = int(tables["control"][Control.MAX_ROWS])
    if tables["control"][Control.LOCKSTEP] and rows > 0:
        return starts
    for place in order:
        sequence = tables["sequences"][place]
        if sequence[Column.NEXT_POSITION] == sequence[Column.LENGTH] - 1:
            starts.start(place, 1)
    first = int(tables["counters"][Counter.PASSES]) % len(order) if order else 0
    before = -1
    while before < starts.rows < max_rows:
        before = starts.rows
        for place in order[first:] + order[:first]:
            starts.start(place, max(0, min(ROUND_TOKENS, max_rows - starts.rows)))
    return starts


def packed_advance(
    rows: np.ndarray,
    fresh: np.ndarray,
    tables: Tables,
    *,
    max_steps: int,
    runs_on: bool = False,
    token_major: bool = False,
    fixed: bool = False,
    jacobi: bool = False,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """See the contract: rows int32 `[r, 4]`, fresh int32 `[f]`, again."""
    counters, sequences = tables["counters"], tables["sequences"]
    _finish(tables)
    reserved = 0
    forced = np.zeros_like(tables["forced_depth"]) if runs_on else tables["forced_depth"]
    limits = np.vectorize(depth_limit)(forced, max_steps)
    packed = rows[: live_rows(rows, fixed)].tolist()
    deepest: dict[tuple[int, int], int] = {}
    for row in packed:
        place, position, step, slot = row
        if slot == READS_ONLY:
            continue
        deepest[place, position] = max(step, deepest.get((place, position), 0))
        held = int(tables["slots"][place, step - 1, position])
        if slot == NO_SLOT:
            row[Row.SLOT] = held if jacobi and held >= 0 else _take_slot(tables, place, step, position)
    for (place, position), step in deepest.items():
        reserved += int((tables["slots"][place, step : limits[place, position], position] < 0).sum())
    starts = _starts(tables, len(packed), reserved, limits, token_major, len(rows) if fixed else np.inf)
    tokens = [0] * len(packed) if fixed else fresh.tolist()
    for place in tables["order"]:
        for _ in range(starts.started[place] if place >= 0 else 0):
            position = int(sequences[place, Column.NEXT_POSITION])
            packed.append([int(place), position, 1, _take_slot(tables, place, 1, position)])
            tokens.append(int(tables["tokens"][place, position]))
            sequences[place, Column.NEXT_POSITION] += 1
            sequences[place, Column.LIVE_ROWS] += 1
    counters[Counter.RESERVED] = starts.reserved
    counters[Counter.STALLED] = not packed and any(_startable(sequence) for sequence in sequences)
    used = len(tables["free_slots"]) - counters[Counter.FREE_SLOTS]
    counters[Counter.MOST_SLOTS] = max(counters[Counter.MOST_SLOTS], used)
    yields = bool(tables["control"][Control.YIELD_WHEN_DONE]) and counters[Counter.FINISHED] > 0
    count = len(rows) if fixed else len(packed)
    return (
        padded(np.array(packed, np.int32).reshape(-1, len(Row)), count, DEAD),
        padded(np.array(tokens, np.int32), len(rows)) if fixed else np.array(tokens, np.int32),
        len(packed) > 0 and not yields,
    )
