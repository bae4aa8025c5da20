"""Columns and entries of the tables of the native engine, as latentcot_export/ops/packed_tables.py has them."""

from __future__ import annotations

import enum


class Column(enum.IntEnum):
    """Columns of `sequences` int32 `[B, 8]`."""

    STATUS = 0
    NEXT_POSITION = 1
    PAUSE = 2
    END = 3
    STOPPED = 4
    LIVE_ROWS = 5
    TOP_K = 6
    LENGTH = 7


class Status(enum.IntEnum):
    """What a place holds: nothing, a sequence that runs, or one whose every row has halted and whose slots are free."""

    EMPTY = 0
    RUNNING = 1
    DONE = 2


class Control(enum.IntEnum):
    """Entries of `control` int32 `[4]`."""

    MAX_ROWS = 0
    SEQUENCE_ROWS = 1
    LOCKSTEP = 2
    YIELD_WHEN_DONE = 3


class Counter(enum.IntEnum):
    """Entries of `counters` int64 `[8]`."""

    FREE_SLOTS = 0
    RESERVED = 1
    PASSES = 2
    EXECUTED_ROWS = 3
    FINISHED = 4
    STALLED = 5
    MOST_SLOTS = 6
    HEAD_ROWS = 7
