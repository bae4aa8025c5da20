"""The cache as a frozen fact."""

from __future__ import annotations

import dataclasses

from .fields import MAX_DIMENSION, MAX_SLOTS, check_choice, check_integer
from .model import ModelSpec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LANES = 16  # float32 of the widest vector: heads in the cache of `ort` are filled up to whole ones


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """The cache. `onnx`: per layer K and V `[batch, kv heads, slots, head_dim]`, append-only, `slots` None.

    There a slot is the number of rows its sequence has run so far; `slot_position` and `slot_step` `[batch, slots]` say
    which (token position, step) wrote it. `ort`: one pool `[layers, 2, slots, kv heads, lanes]` for all sequences, of which
    a (position, step) pair takes a slot and gives it back; `slots` is how many a host makes unless told otherwise.
    Errors: SpecError.
    """

    dtype: str = "float32"
    max_seq_len: int = 2048
    max_batch: int = 64
    slots: int | None = None

    def __post_init__(self) -> None:
        check_choice("cache", "dtype", self.dtype, tuple(DTYPE_BYTES))
        if self.slots is not None:
            check_integer("cache", "slots", self.slots, 1, MAX_SLOTS)
        check_integer("cache", "max_seq_len", self.max_seq_len, 1, MAX_DIMENSION)
        check_integer("cache", "max_batch", self.max_batch, 1, 1 << 16)

    def bytes_per_slot(self, model: ModelSpec) -> int:
        """Bytes of keys and values that one executed (token, step) pair keeps over all layers, padding included."""
        return 2 * model.num_layers * model.num_kv_heads * self.lanes(model) * DTYPE_BYTES[self.dtype]

    def lanes(self, model: ModelSpec) -> int:
        """Numbers of a head in one slot: head_dim, in a pool rounded up to a multiple of LANES."""
        return model.head_dim if self.slots is None else -(-model.head_dim // LANES) * LANES
