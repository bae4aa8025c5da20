"""What a batch of sequences carries from call to call: numpy for the bookkeeping, ORT values for the caches.

Names, dtypes and axes are those of the graph (docs/bundle-format.md). B sequences, T tokens, R rows each, N slots.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort

from ..spec import ModelSpec, RecurrenceSpec

SLOT_BLOCK = 64  # the dense cache is scanned and copied whole, so it grows in small steps


def slots_for(count: int) -> int:
    """The number of slots to allocate when `count` are needed."""
    return max(SLOT_BLOCK, -(-count // SLOT_BLOCK) * SLOT_BLOCK)


@dataclasses.dataclass
class BatchState:
    """Carried tensors of one batch. `arrays` holds the small ones by graph name, `caches` keys and values per layer."""

    spec: ModelSpec
    dtype: str
    arrays: dict[str, np.ndarray]
    caches: dict[str, ort.OrtValue]

    @classmethod
    def new(
        cls,
        spec: ModelSpec,
        recurrence: RecurrenceSpec,
        dtype: str,
        tokens: np.ndarray,
        slots: int,
        logit_positions: int = 0,
    ) -> BatchState:
        """A batch that has run nothing yet. tokens int64 `[B, T]`, -1 where a token is still to be chosen."""
        batch, length = tokens.shape
        slots = slots_for(slots)
        arrays = {
            "tokens": np.ascontiguousarray(tokens, dtype=np.int64),
            "depths": np.zeros((batch, length), np.int64),
            "stopped": np.zeros(batch, bool),
            "next_position": np.zeros(batch, np.int64),
            "used_slots": np.zeros(batch, np.int64),
            "slot_position": np.zeros((batch, slots), np.int64),
            "slot_step": np.zeros((batch, slots), np.int64),
            "logits": np.zeros((batch, logit_positions, spec.vocab_size), np.float32),
            "passes": np.zeros((), np.int64),
            "live_rows": np.zeros((), np.int64),
        }
        if recurrence.tailed:
            arrays["weights"] = np.zeros((batch, length, recurrence.max_steps), np.float32)
        empty = np.zeros((batch, spec.num_kv_heads, slots, spec.head_dim), dtype)
        names = [f"{kind}_{layer}" for layer in range(spec.num_layers) for kind in ("keys", "values")]
        state = cls(spec, dtype, arrays, {name: ort.OrtValue.ortvalue_from_numpy(empty) for name in names})
        state.set_rows(1)
        return state

    @property
    def batch(self) -> int:
        """Number of sequences B."""
        return int(self.arrays["tokens"].shape[0])

    @property
    def rows(self) -> int:
        """Rows per sequence R of the next call."""
        return int(self.arrays["row_step"].shape[1])

    @property
    def slots(self) -> int:
        """Slots per sequence N that the caches have."""
        return int(self.arrays["slot_step"].shape[1])

    def set_rows(self, rows: int) -> None:
        """Gives every sequence `rows` idle rows; none may be live."""
        if "row_step" in self.arrays and self.arrays["row_step"].any():
            raise RuntimeError("rows can only be changed while none is live")
        batch, hidden = self.batch, self.spec.hidden_size
        self.arrays["row_position"] = np.full((batch, rows), -1, np.int64)
        self.arrays["row_step"] = np.zeros((batch, rows), np.int64)
        self.arrays["row_latent"] = np.zeros((batch, rows, hidden), self.dtype)
        self.arrays["row_reach"] = np.zeros((batch, rows), np.float32)
        self.arrays["row_mix"] = np.zeros((batch, rows, hidden), np.float32)

    def stop(self, sequence: int) -> None:
        """Ends a sequence where it is: it takes no further passes, not even for a token it is thinking about."""
        self.arrays["stopped"][sequence] = True
        self.arrays["row_position"][sequence] = -1
        self.arrays["row_step"][sequence] = 0

    def keep(self, sequences: list[int]) -> None:
        """Leaves only these sequences, in this order, and frees the others' memory."""
        for name, value in self.arrays.items():
            if value.ndim:
                self.arrays[name] = value[sequences]
        for name, cache in self.caches.items():
            self.caches[name] = ort.OrtValue.ortvalue_from_numpy(cache.numpy()[sequences])

    def has_work(self, end: np.ndarray) -> bool:
        """True when a row is live or a known token below end int64 `[B]` waits to be started."""
        a = self.arrays
        place = np.minimum(a["next_position"], a["tokens"].shape[1] - 1)
        known = np.take_along_axis(a["tokens"], place[:, None], 1)[:, 0] >= 0
        waiting = known & (a["next_position"] < end) & ~a["stopped"]
        return bool(a["row_step"].any() or waiting.any())

    def reserve(self, slots: int) -> None:
        """Grows the caches to at least `slots` per sequence; what they hold stays where it is."""
        slots = slots_for(slots)
        if slots <= self.slots:
            return
        more = slots - self.slots
        for name in ("slot_position", "slot_step"):
            self.arrays[name] = np.pad(self.arrays[name], ((0, 0), (0, more)))
        for name, value in self.caches.items():
            self.caches[name] = ort.OrtValue.ortvalue_from_numpy(
                np.pad(value.numpy(), ((0, 0), (0, 0), (0, more), (0, 0)))
            )
