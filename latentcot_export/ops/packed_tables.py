"""The tables that the packed ops share, and the ops' names, inputs, outputs and attributes in order.

A packed graph (`--target ort`) captures these arrays from outside its Loop and its ops change them in place. A pass runs
`r` packed rows: `c` rows that go on with a later step, then `f` fresh ones, whose token runs step 1. Letters: B places for
sequences, T positions of a place, K `max_steps`, N cache slots, L layers, G kv heads, hs head_dim rounded up to a multiple
of 16, S stop ids, P recorded positions, V vocabulary, D hidden size.

    control       int32 `[4]`             see `Control`
    order         int32 `[B]`             places in order of admission, then -1; holds every running place
    sequences     int32 `[B, 8]`          see `Column`
    sampling      float32 `[B, 2]`        temperature (0 greedy), top_p (1 off)
    tokens        int32 `[B, T]`          -1 = not known yet
    depths        int32 `[B, T]`          steps a token ran, 0 = not halted yet
    forced_depth  int32 `[B, T]`          0 = learned, d > 0 = min(d, K) steps
    uniform       float32 `[B, T]`        in [0, 1): what the token at that position is drawn by
    stop_tokens   int32 `[B, S]`          padded with -1
    slots         int32 `[B, K, T]`       cache slot of step k + 1 of position t, -1 = none
    free_slots    int32 `[N]`             a stack; the first counters[FREE_SLOTS] are free
    counters      int64 `[8]`             see `Counter`
    cache         float32, float16 or bfloat16 `[L, 2, N, G, hs]`  keys (0), values (1); lanes from head_dim on are 0
    logits        float32 `[B, P, V]`     recorded logits of positions below P
    weights       float32 `[B, T, K]`     only of stop rule tail: weight of step k + 1, written by step 1
    rows          int32 `[r, 4]`          see `Row`; carried; slot -2: a row that reads and has no keys of its own
    fresh         int32 `[f]`             tokens of the last f rows; carried
    latent, mix   float32 `[c, D]`, reach float32 `[c]`  of the first c rows; carried (a fresh row has reach 1 and mix 0)

The fixed form (attribute `fixed` of RaggedAdvance, RaggedHalt, ChooseToken and RaggedAttention) is the same pass in
shapes that depend on no value, as a GPU runs it again and again. Its rows are always R, the live ones first and dead ones
behind them: all columns of a dead row are -1, the first alone says so, and what stands in other tensors at its index is
never read. A pass begins with RaggedAdvance, so its fresh rows run in it and `fresh` is no more carried. Carried are rows
`[R, 4]`, latent and mix `[R, D]` and reach `[R]`, zeros where rows are dead; RaggedAdvance leaves live rows at their index
and puts those that start behind them, so latent, reach and mix keep belonging to the rows. Of the live rows, tables
and counters become exactly what they become in the dynamic form.

Every op checks types, shapes, whatever it indexes with, that tables agree with each other, and that a table it writes
shares no memory with another input. A fault fails the call with one sentence (op, input, value, limit) and changes nothing.
On a GPU, which cannot say it, a row with a fault becomes a dead one and counters[STALLED] the `Fault` of the op.
The references beside this file trust their input.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

import numpy as np

DOMAIN = "latentcot"
VERSION = 1
NO_SLOT, READS_ONLY = -1, -2  # what stands for a row's slot before it has one, and where it never gets one
DEAD = -1  # every column of a dead row of the fixed form
ROUND_TOKENS = 16  # prompt tokens that one sequence starts before the next one's turn

Tables = Mapping[str, np.ndarray]  # by name, as above; numpy arrays that a reference changes in place


class Column(enum.IntEnum):
    """Columns of `sequences`."""

    STATUS = 0  # a Status
    NEXT_POSITION = 1  # next position to start
    PAUSE = 2  # positions start only below it
    END = 3  # positions below it are run
    STOPPED = 4  # 1 once a stop token was chosen
    LIVE_ROWS = 5  # rows of the sequence in flight
    TOP_K = 6  # 0 = off
    LENGTH = 7  # tokens known: prompt and chosen


class Status(enum.IntEnum):
    """What a place holds: nothing, a running sequence, or one that is done and whose slots are free."""

    EMPTY = 0
    RUNNING = 1
    DONE = 2


class Row(enum.IntEnum):
    """Columns of `rows`: sequence (its place), position, step to run (1-based), slot (-1 = not given yet)."""

    SEQUENCE = 0
    POSITION = 1
    STEP = 2
    SLOT = 3


class Control(enum.IntEnum):
    """Entries of `control`."""

    MAX_ROWS = 0  # prompt tokens start only while there are fewer rows
    SEQUENCE_ROWS = 1  # most live rows of one sequence, at least 1
    LOCKSTEP = 2  # 1: nothing starts while a row is live
    YIELD_WHEN_DONE = 3  # 1: a burst ends once a sequence has finished


class Counter(enum.IntEnum):
    """Entries of `counters`."""

    FREE_SLOTS = 0
    RESERVED = 1  # slots that live rows may still ask for
    PASSES = 2
    EXECUTED_ROWS = 3
    FINISHED = 4  # sequences
    STALLED = 5  # 1: nothing runs although tokens could start; below 0: a Fault
    MOST_SLOTS = 6  # most slots in use
    HEAD_ROWS = 7  # rows the head ran on


class Fault(enum.IntEnum):
    """What counters[STALLED] holds after a fault in values on a GPU; the first one stays.

    RaggedAttention and ChooseToken are given counters for this alone, in the fixed form: a graph may leave them out, on a
    CPU nothing is lost by it.
    """

    HALT = -1
    ADVANCE = -2
    CHOOSE = -3
    ATTENTION = -4


@dataclasses.dataclass(frozen=True)
class OpSignature:
    """An op of the domain: its inputs, outputs and attributes in order; inputs in `written` change in place."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


RAGGED_ATTENTION = OpSignature(
    "RaggedAttention",
    # weights is "" but for the stop rule tail, the norms are where heads have none; counters: see `Fault`
    ("qkv", "cos", "sin", "rows", "slots", "cache", "weights", "q_norm", "k_norm", "counters"),
    ("attended",),
    ("layer", "num_heads", "num_kv_heads", "head_dim", "visibility", "epsilon", "fixed"),
    ("cache", "counters"),
)
RAGGED_HALT = OpSignature(
    "RaggedHalt",
    (
        *("z", "gate_logits", "rows", "reach", "mix", "sequences", "depths", "forced_depth", "logits", "counters"),
        *("next_input", "x", "weights"),
    ),  # gate_logits and the last three are "" where the rules need none
    ("next_rows", "next_latent", "next_reach", "next_mix", "head_rows", "head_mix", "head_index"),
    ("tau", "max_steps", "stop", "readout", "skip_halted", "fixed"),
    ("sequences", "depths", "counters", "weights"),
)
CHOOSE_TOKEN = OpSignature(
    "ChooseToken",
    ("logits", "rows", "sequences", "sampling", "tokens", "uniform", "stop_tokens", "record", "counters"),
    ("chosen",),
    ("fixed",),
    ("sequences", "tokens", "record", "counters"),
)
RAGGED_ADVANCE = OpSignature(
    "RaggedAdvance",
    (
        *("rows", "fresh", "chosen", "sequences", "tokens", "forced_depth", "slots", "free_slots", "order", "control"),
        "counters",
    ),
    ("next_rows", "next_fresh", "again"),
    ("max_steps", "runs_on", "token_major", "fixed", "jacobi"),
    ("sequences", "slots", "free_slots", "counters"),
)
ADD_NORM = OpSignature("AddNorm", ("x", "residual", "weight"), ("normed", "total"), ("epsilon",))
GATED_UNIT = OpSignature("GatedUnit", ("gate_up",), ("gated",))
OPS = (RAGGED_ATTENTION, RAGGED_HALT, CHOOSE_TOKEN, RAGGED_ADVANCE, ADD_NORM, GATED_UNIT)


def live_rows(rows: np.ndarray, fixed: bool) -> int:
    """How many of `[R, 4]` are live: in the dynamic form all, in the fixed form those before the first dead one."""
    dead = rows[:, Row.SEQUENCE] == DEAD
    return int(dead.argmax()) if fixed and dead.any() else len(rows)


def padded(values: np.ndarray, count: int, filler: float = 0) -> np.ndarray:
    """`values` `[n, ...]` with as many entries of `filler` behind them as `count` wants."""
    behind = np.full((count - len(values), *values.shape[1:]), filler, values.dtype)
    return np.concatenate((values, behind))


def depth_limit(forced_depth: int, max_steps: int) -> int:
    """The steps a token may run."""
    return min(forced_depth, max_steps) if forced_depth > 0 else max_steps


def chooses_next(sequence: np.ndarray, position: int, positions: int) -> bool:
    """Whether the token after `position` is to be chosen once the row there halts; sequence int32 `[8]`, positions = T."""
    following = position + 1
    return bool(
        sequence[Column.STATUS] == Status.RUNNING
        and not sequence[Column.STOPPED]
        and following == sequence[Column.LENGTH]
        and following < positions
        and following <= sequence[Column.END]
    )
