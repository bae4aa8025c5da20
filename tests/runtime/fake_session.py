"""The ops of the packed graph in plain Python over a NativeState, with made-up tokens and depths: no model, all scheduling.

A token and a depth are a hash of everything before them, so that a sequence that loses or repeats a token goes another
way. Each row writes a fingerprint into its slot and reads those of all rows it attends to; thoughts carry one too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from latentcot_export.errors import LatentCoTError
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import Column, Control, Counter, Status
from latentcot_export.spec import ModelSpec, RecurrenceSpec

VOCAB = 50
_MODEL = ModelSpec(
    vocab_size=VOCAB,
    hidden_size=4,
    intermediate_size=4,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
)
_RECURRENCE = RecurrenceSpec(max_latents=3)
_ROUND = 16  # prompt tokens of one sequence that start before another's turn
Row = list[int]  # sequence, position, step, slot


@dataclasses.dataclass(frozen=True)
class FakeCache:
    """The fields of a manifest's cache that an engine reads."""

    max_seq_len: int = 256
    max_batch: int = 4
    slots: int = 2000
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class FakeManifest:
    """The fields of a manifest that an engine reads."""

    cache: FakeCache = FakeCache()
    model: ModelSpec = _MODEL
    recurrence: RecurrenceSpec = _RECURRENCE
    eos_token_ids: tuple[int, ...] = ()
    target: str = "ort"
    rounds: int | None = None


def digest(tokens: Any, value: int = 7) -> int:
    """A number below 2**24, exact in float32, of a list of tokens; `value` is that of the tokens before them."""
    for token in tokens:
        value = (value * 6151 + int(token) + 1) % 16777213
    return value


def depth_of(tokens: Any, forced: int = 0) -> int:
    """Steps of the last of these tokens."""
    return _depth(digest(tokens), forced)


def next_of(tokens: Any, temperature: float = 0.0, u: float = 0.0) -> int:
    """The token after these."""
    return _next(digest(tokens), temperature, u)


def _depth(value: int, forced: int) -> int:
    return min(forced, _RECURRENCE.max_steps) if forced > 0 else 1 + value // 7 % _RECURRENCE.max_steps


def _next(value: int, temperature: float, u: float) -> int:
    return (value // 31 + (int(u * VOCAB) if temperature > 0 else 0)) % VOCAB


class FakeSession:
    """Stands for a NativeSession. `before` is called with the state before every burst, `passes` counts per burst."""

    def __init__(self, manifest: FakeManifest | None = None) -> None:
        self.manifest: Any = manifest or FakeManifest()
        self.before: Callable[[NativeState], None] = lambda _state: None
        self.bursts: list[int] = []
        self.controls: list[list[int]] = []
        self.widest = 0
        self.read = 0

    def has_read(self, tokens: int) -> None:
        """See OrtSession."""
        self.read += tokens

    def run(self, state: NativeState, max_passes: int) -> None:
        """See NativeSession."""
        self.before(state)
        self.bursts.append(max_passes)
        self.controls.append(state.arrays["control"].tolist())
        machine = _Machine(state)
        thoughts = state.carried["latent"]
        rows, again = machine.advance(state.carried["rows"].tolist(), [])
        for _ in range(max_passes):
            if not again:
                break
            self.widest = max(self.widest, len(rows))
            going_on, thoughts = machine.execute(rows, thoughts)
            rows, again = machine.advance(going_on, [])
        old = len(thoughts)
        state.carried = {
            "rows": np.array(rows, np.int32).reshape(-1, 4),
            "fresh": np.array([state.arrays["tokens"][r[0], r[1]] for r in rows[old:]], np.int32),
            "latent": thoughts,
            "reach": np.ones(old, np.float32),
            "mix": np.zeros_like(thoughts),
        }


class _Machine:
    """RaggedAttention (its reading and writing), RaggedHalt, ChooseToken and RaggedAdvance on the tables of a state."""

    def __init__(self, state: NativeState) -> None:
        self.state, self.a, self.counters = state, state.arrays, state.counters
        self.steps = state.max_steps
        self.digests: dict[int, np.ndarray] = {}

    def fingerprint(self, place: int, position: int, step: int) -> list[int]:
        if place not in self.digests:
            tokens = self.a["tokens"][place, : self.state.sequences[place, Column.LENGTH]]
            values = itertools.accumulate(tokens, lambda value, token: digest([token], value), initial=7)
            self.digests[place] = np.array([*values][1:])
        return [int(self.digests[place][position]), position, step]

    def execute(self, rows: list[Row], thoughts: np.ndarray) -> tuple[list[Row], np.ndarray]:
        """One pass: the rows that go on, and their thoughts."""
        cache = self.a["cache"][0, 0, :, 0]
        for i, (place, position, step, slot) in enumerate(rows):
            assert (step == 1) == (i >= len(thoughts))
            if step > 1:
                assert thoughts[i, :3].tolist() == self.fingerprint(place, position, step - 1), (
                    "a thought of another row"
                )
            assert self.a["slots"][place, step - 1, position] == slot
            cache[slot, :3] = self.fingerprint(place, position, step)
        for place, position, step, _ in rows:
            self.attend(cache, place, position, step)
        self.counters[Counter.PASSES] += 1
        self.counters[Counter.EXECUTED_ROWS] += len(rows)
        going_on = [row for row in rows if not self.halt(*row[:3])]
        after = np.zeros((len(going_on), thoughts.shape[1]), np.float32)
        for i, (place, position, step, _) in enumerate(going_on):
            after[i, :3] = self.fingerprint(place, position, step)
        return [[place, position, step + 1, -1] for place, position, step, _ in going_on], after

    def attend(self, cache: np.ndarray, place: int, position: int, step: int) -> None:
        slots = self.a["slots"][place, :step, : position + 1]
        there = slots >= 0
        planes, places = np.nonzero(there)
        self.fingerprint(place, position, step)
        wanted = np.stack([self.digests[place][places], places, planes + 1], axis=1)
        assert (cache[slots[there], :3] == wanted).all(), "a slot was given to two rows"
        depths = self.a["depths"][place, : position + 1]
        halted = (depths > 0) & (depths <= np.arange(step)[:, None])
        assert (there | halted).all(), "a row ran before what it reads"

    def halt(self, place: int, position: int, step: int) -> bool:
        tokens, row = self.a["tokens"][place], self.state.sequences[place]
        known = self.fingerprint(place, position, step)[0]
        if step < _depth(known, self.a["forced_depth"][place, position]):
            return False
        self.a["depths"][place, position] = step
        row[Column.LIVE_ROWS] -= 1
        chosen = position + 1
        wanted = row[Column.STATUS] == Status.RUNNING and not row[Column.STOPPED] and chosen == row[Column.LENGTH]
        if wanted and chosen < len(tokens) and chosen <= row[Column.END]:
            token = _next(known, self.a["sampling"][place, 0], self.a["uniform"][place, chosen])
            tokens[chosen] = token
            self.digests[place] = np.append(self.digests[place], digest([token], known))
            row[Column.LENGTH] = chosen + 1
            row[Column.STOPPED] = token in self.a["stop_tokens"][place]
        return True

    def advance(self, rows: list[Row], started: list[Row]) -> tuple[list[Row], bool]:
        sequences, control = self.state.sequences, self.a["control"]
        order = [int(place) for place in self.a["order"] if place >= 0]
        for place in order:
            row = sequences[place]
            ended = row[Column.STOPPED] or row[Column.NEXT_POSITION] >= row[Column.END]
            if row[Column.STATUS] == Status.RUNNING and row[Column.LIVE_ROWS] == 0 and ended:
                table = self.a["slots"][place]
                for slot in table[:, : row[Column.NEXT_POSITION]].ravel():
                    if slot >= 0:
                        self.push(int(slot))
                table[:, : row[Column.NEXT_POSITION]] = -1
                row[Column.STATUS] = Status.DONE
                self.counters[Counter.FINISHED] += 1
        reserved = 0
        for row in rows:
            if row[3] < 0:
                self.give(row)
            reserved += self.limit(row[0], row[1]) - row[2]
        locked = control[Control.LOCKSTEP] and rows
        if order and not locked:
            reserved = self.start(rows, started, order, reserved)
        started.sort(key=lambda row: (order.index(row[0]), row[1]))
        rows = rows + started
        self.counters[Counter.RESERVED] = reserved
        self.counters[Counter.STALLED] = int(not rows and any(self.startable(place) > 0 for place in order))
        used = self.state.slots - self.state.free_slots
        self.counters[Counter.MOST_SLOTS] = max(self.counters[Counter.MOST_SLOTS], used)
        done = control[Control.YIELD_WHEN_DONE] and self.counters[Counter.FINISHED] > 0
        return rows, bool(rows) and not done

    def start(self, rows: list[Row], started: list[Row], order: list[int], reserved: int) -> int:
        sequences, control = self.state.sequences, self.a["control"]
        blocked: set[int] = set()

        def begin(place: int) -> bool:
            nonlocal reserved
            row = sequences[place]
            position = int(row[Column.NEXT_POSITION])
            limit = self.limit(place, position)
            if row[Column.LIVE_ROWS] >= control[Control.SEQUENCE_ROWS]:
                return False
            if self.state.free_slots - reserved < limit:
                blocked.add(place)
                return False
            new = [place, position, 1, -1]
            self.give(new)
            reserved += limit - 1
            row[Column.LIVE_ROWS] += 1
            row[Column.NEXT_POSITION] += 1
            started.append(new)
            return True

        for place in order:
            if (
                self.startable(place) == 1
                and sequences[place, Column.NEXT_POSITION] == sequences[place, Column.LENGTH] - 1
            ):
                begin(place)
        first = int(self.counters[Counter.PASSES]) % len(order)
        turns = order[first:] + order[:first]
        moved = True
        while moved:
            moved = False
            for place in turns:
                for _ in range(_ROUND):
                    if len(rows) + len(started) >= control[Control.MAX_ROWS] or place in blocked:
                        break
                    if self.startable(place) <= 0 or not begin(place):
                        break
                    moved = True
        return reserved

    def startable(self, place: int) -> int:
        row = self.state.sequences[place]
        if row[Column.STATUS] != Status.RUNNING or row[Column.STOPPED]:
            return 0
        return int(min(row[Column.LENGTH], row[Column.PAUSE], row[Column.END]) - row[Column.NEXT_POSITION])

    def limit(self, place: int, position: int) -> int:
        forced = int(self.a["forced_depth"][place, position])
        return min(forced, self.steps) if forced > 0 else self.steps

    def give(self, row: Row) -> None:
        free = self.state.free_slots
        if free <= 0:
            raise LatentCoTError("no slot is left for a row that goes on")
        self.counters[Counter.FREE_SLOTS] = free - 1
        row[3] = int(self.a["free_slots"][free - 1])
        assert self.a["slots"][row[0], row[2] - 1, row[1]] == -1
        self.a["slots"][row[0], row[2] - 1, row[1]] = row[3]

    def push(self, slot: int) -> None:
        self.a["free_slots"][self.state.free_slots] = slot
        self.counters[Counter.FREE_SLOTS] += 1
