"""The tables of the native engine: numpy arrays that the ops of a `--target ort` graph change in place.

B places for sequences, T positions of a place, K max_steps, N cache slots, S stop ids, P recorded positions, V vocabulary,
D hidden. A slot holds the keys and values of one (position, step) pair in all layers; free ones lie on a stack. `r` packed
rows are in flight between two calls: `c` that go on with a later step, then `f` fresh ones, whose token starts.

The fixed form (`pass_session.py`) carries no fresh rows, and dead ones, of sequence -1, behind those that live.

Memory is taken as it is used: arrays begin as zero pages of the system, and a place is filled when a sequence enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import LatentCoTError
from ..spec import DTYPE_BYTES, LANES, ModelSpec, RecurrenceSpec
from .memory import zero_pages
from .native_tables import Column, Counter, Status
from .refining import Refining, as_array
from .sampling import SamplingParams, uniforms

_HOST = {"bfloat16": "uint16"}  # numpy has none
ALIGNMENT = 64  # bytes of a cache line: no vector of 16 float32 lies across two


class NativeState:
    """What the sequences of one engine carry from call to call.

    `arrays` are the tables by graph name; write to them between calls, never replace one. `carried` holds the tensors
    of the rows in flight by graph name, numpy arrays or ORT values. `layout` counts reallocations of tables, so that a
    session knows when to bind them again. For a session that keeps the tables on another device: `written` are the large
    ones that were changed here since it took them, and `bring` fetches those that it has changed. `refining` are the
    prompts that are refined in parallel, see refining.py.
    """

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        *,
        places: int,
        length: int,
        slots: int,
        dtype: str = "float32",
        logit_positions: int = 0,
        rounds: int | None = None,
    ) -> None:
        """B = `places` empty places of T = `length` positions, N = `slots` of `dtype`, P = `logit_positions`.

        `rounds`: R of prompts that are refined in parallel, None where they are run token by token.
        """
        max_steps = recurrence.max_steps
        assert dtype in DTYPE_BYTES and slots >= max_steps
        lanes = -(-model.head_dim // LANES) * LANES
        self.max_steps = max_steps
        self.layout = 0
        self.refining = Refining(max_steps, rounds)
        self.binding: Any = None  # the session's, which lasts as long as these arrays
        self.written: set[str] = set()
        self.bring: Callable[..., None] = lambda *_names: None
        self.computed_rows = 0  # dead ones among them, where a session counts those
        self.cleared = False  # True: slots of empty places are -1 already, and an admission need not look at them
        self.arrays: dict[str, np.ndarray] = {
            "max_passes": np.zeros((), np.int64),
            "control": np.array([1 << 20, 1 << 20, 0, 0], np.int32),
            "order": np.full(places, -1, np.int32),
            "sequences": np.zeros((places, len(Column)), np.int32),
            "sampling": np.zeros((places, 2), np.float32),
            "tokens": np.zeros((places, length), np.int32),
            "depths": np.zeros((places, length), np.int32),
            "forced_depth": np.zeros((places, length), np.int32),
            "uniform": np.zeros((places, length), np.float32),
            "stop_tokens": np.full((places, 1), -1, np.int32),
            "slots": np.zeros((places, max_steps, length), np.int32),
            # the lowest slots on top of the stack, so that the cache is used from its beginning
            "free_slots": np.arange(slots - 1, -1, -1, dtype=np.int32),
            "counters": np.zeros(len(Counter), np.int64),
            "cache": _aligned((model.num_layers, 2, slots, model.num_kv_heads, lanes), _HOST.get(dtype, dtype)),
            "logits": np.zeros((places, logit_positions, model.vocab_size), np.float32),
        }
        if recurrence.tailed:
            self.arrays["weights"] = np.zeros((places, length, max_steps), np.float32)
        self.counters[Counter.FREE_SLOTS] = slots
        hidden = model.hidden_size
        self.carried: dict[str, Any] = {
            "rows": np.zeros((0, 4), np.int32),
            "fresh": np.zeros(0, np.int32),
            "latent": np.zeros((0, hidden), np.float32),
            "reach": np.zeros(0, np.float32),
            "mix": np.zeros((0, hidden), np.float32),
        }

    @property
    def sequences(self) -> np.ndarray:
        """int32 `[B, 8]`, see `Column`."""
        return self.arrays["sequences"]

    @property
    def counters(self) -> np.ndarray:
        """int64 `[8]`, see `Counter`."""
        return self.arrays["counters"]

    @property
    def places(self) -> int:
        """Sequences that can run at a time, B."""
        return self.sequences.shape[0]

    @property
    def slots(self) -> int:
        """Slots of the cache, N."""
        return self.arrays["free_slots"].shape[0]

    @property
    def free_slots(self) -> int:
        """Slots that nobody holds."""
        return int(self.counters[Counter.FREE_SLOTS])

    @property
    def passes(self) -> int:
        """Passes taken so far."""
        return int(self.counters[Counter.PASSES])

    @property
    def live_rows(self) -> int:
        """Rows in flight, r."""
        return int((as_array(self.carried["rows"])[:, 0] >= 0).sum())

    def control(
        self, max_rows: int, sequence_rows: int | None = None, lockstep: bool = False, yield_when_done: bool = False
    ) -> None:
        """Sets what holds from the next call on; `sequence_rows` None: as many as `max_rows`."""
        self.arrays["control"][:] = (max_rows, sequence_rows or max_rows, int(lockstep), int(yield_when_done))

    def free_place(self) -> int | None:
        """The first empty place, None when all are taken."""
        empty = np.flatnonzero(self.sequences[:, Column.STATUS] == Status.EMPTY)
        return int(empty[0]) if empty.size else None

    def add(
        self,
        tokens: Sequence[int] | np.ndarray,
        end: int,
        *,
        forced_depth: Sequence[int] | np.ndarray | None = None,
        pause: int | None = None,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] = (),
        prompt: int | None = None,
    ) -> int:
        """Places a sequence behind all others in the order of admission, and returns its place.

        `tokens` int `[n]`, n >= 1, are known; positions below `end`, n <= end <= T, are run, and each token from n up to
        `end` is chosen once the one before it has halted (the one at T has no place and is not chosen). Positions start
        only below `pause` (None: all). `forced_depth` int, one for each of the first positions: 0 = learned. Sampling as
        the seed says, None: greedy. Where prompts are refined, the first `prompt` tokens are (None: all known ones), and
        there must be slots for all their steps. Errors: LatentCoTError when every place is taken.
        """
        place = self.free_place()
        if place is None:
            raise LatentCoTError(f"all {self.places} places of the engine are taken; wait until a sequence has ended")
        a, known, length = self.arrays, len(tokens), self.arrays["tokens"].shape[1]
        assert 1 <= known <= end <= length
        sampling = sampling or SamplingParams()
        self.widen_stops(len(stop_tokens))
        last = min(end + 1, length)  # tokens with a place, the chosen one that is never run among them
        a["tokens"][place, :known] = tokens
        a["tokens"][place, known:last] = -1
        a["depths"][place, :last] = 0
        if not self.cleared:
            a["slots"][place, :, :last] = -1
        a["forced_depth"][place, :last] = 0
        if forced_depth is not None:
            a["forced_depth"][place, : len(forced_depth)] = forced_depth
        if sampling.temperature > 0:
            a["uniform"][place, known:last] = uniforms(sampling.seed, known, last - known)
        temperature, top_k, top_p = sampling.for_graph(a["logits"].shape[2])
        a["sampling"][place] = (temperature, top_p)
        a["stop_tokens"][place] = -1
        a["stop_tokens"][place, : len(stop_tokens)] = stop_tokens
        a["order"][np.argmax(a["order"] < 0)] = place
        row = (Status.RUNNING, 0, length if pause is None else pause, end, 0, 0, top_k, known)
        self.sequences[place] = row
        self.written |= {"tokens", "depths", "forced_depth", "uniform"}
        self.refining.begin(self, place, known if prompt is None else prompt)
        return place

    def pause(self, place: int, position: int) -> None:
        """From the next call on, positions of this sequence start only below `position`."""
        self.sequences[place, Column.PAUSE] = position

    def remove(self, place: int) -> None:
        """Empties a place at once, whatever it holds: its rows are dropped, its slots go back on the stack."""
        self._drop(place, 0)
        self.refining.cut(place, 0)
        self.sequences[place, Column.STATUS] = Status.EMPTY
        order = self.arrays["order"]
        kept = order[order != place]
        order[: len(kept)] = kept
        order[len(kept) :] = -1

    def truncate(self, place: int, end: int) -> None:
        """Ends a running sequence before position `end`: later positions are dropped, earlier ones may still think."""
        dropped = self._drop(place, end)
        self.refining.cut(place, end)
        row = self.sequences[place]
        row[Column.LIVE_ROWS] -= dropped
        row[Column.STOPPED] = 1
        row[Column.END] = end
        row[Column.NEXT_POSITION] = min(row[Column.NEXT_POSITION], end)

    def _drop(self, place: int, start: int) -> int:
        """Drops the rows of a sequence from position `start` on and frees its slots there; how many rows it was."""
        started = self.sequences[place, Column.NEXT_POSITION]
        if self.sequences[place, Column.STATUS] == Status.RUNNING and start < started:
            self.bring("slots", "free_slots")
            held = self.arrays["slots"][place, :, start:started]
            taken = held[held >= 0]
            free = self.free_slots
            self.arrays["free_slots"][free : free + len(taken)] = taken
            self.counters[Counter.FREE_SLOTS] = free + len(taken)
            held[:] = -1
            self.written |= {"slots", "free_slots"}
        return self.drop_rows(place, start, started)

    def drop_rows(self, place: int, start: int, end: int) -> int:
        """Drops the rows of a sequence at positions [start, end), not their slots; how many rows it was."""
        rows = as_array(self.carried["rows"])
        live = rows[:, 0] >= 0
        kept = live & ((rows[:, 0] != place) | (rows[:, 1] < start) | (rows[:, 1] >= end))
        if (kept == live).all():
            return 0
        arrays = {name: as_array(value) for name, value in self.carried.items()}
        going_on = len(rows) - len(arrays.get("fresh", ()))
        keep = {"rows": kept, "fresh": kept[going_on:]}
        self.carried = {name: value[keep.get(name, kept[:going_on])] for name, value in arrays.items()}
        return int(live.sum() - kept.sum())

    def widen_stops(self, count: int) -> None:
        """Room for `count` stop ids per sequence."""
        stops = self.arrays["stop_tokens"]
        if count > stops.shape[1]:
            width = 1 << (count - 1).bit_length()  # so that it happens a few times only
            wider = np.full((self.places, width), -1, np.int32)
            wider[:, : stops.shape[1]] = stops
            self.arrays["stop_tokens"] = wider
            self.layout += 1


def _aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros at an address that is a multiple of ALIGNMENT; pages that nobody touches take no memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = zero_pages(size + ALIGNMENT)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size].view(dtype).reshape(shape)
