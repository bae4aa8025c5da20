"""The tables of a NativeState as tensors of a device, with a host that admits and collects without making it wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from latentcot_export.ops.packed_tables import Column, Counter, Status
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.spec import LANES, ModelSpec, RecurrenceSpec

# What the host writes of a sequence when it enters a place.
ENTERED = ("sequences", "tokens", "depths", "forced_depth", "uniform", "sampling", "stop_tokens")
STOP_TOKENS = 2


class DeviceState:
    """`host`: a NativeState but for its cache; `tables`: the same on `device`, with a cache of `dtype`."""

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        *,
        places: int,
        length: int,
        slots: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        logit_positions: int = 0,
    ) -> None:
        """See NativeState."""
        self.model, self.recurrence, self.device = model, recurrence, device
        thin = dataclasses.replace(model, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=LANES, rotary_dim=None)
        self.host = NativeState(
            thin, recurrence, places=places, length=length, slots=slots, logit_positions=logit_positions
        )
        self.host.widen_stops(STOP_TOKENS)
        self.host.arrays["slots"][:] = -1
        self.host.cleared = True  # RaggedAdvance empties the cells of what is done
        lanes = -(-model.head_dim // LANES) * LANES
        self.tables = {
            name: torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)
            for name, array in self.host.arrays.items()
            if name not in ("max_passes", "cache")
        }
        self.tables["cache"] = torch.zeros(
            (model.num_layers, 2, slots, model.num_kv_heads, lanes), dtype=dtype, device=device
        )
        self.push()

    def push(self, names: Iterable[str] | None = None) -> None:
        """Copies tables of the host to the device, by default all but the cache."""
        for name in names or [name for name in self.tables if name != "cache"]:
            if self.tables[name].numel():
                self.tables[name].copy_(self._staged(self.host.arrays[name]), non_blocking=True)

    def pull(self, names: Iterable[str] | None = None) -> None:
        """Copies tables of the device to the host, by default all but the cache; waits for them."""
        for name in names or [name for name in self.tables if name != "cache"]:
            self.host.arrays[name][...] = self.tables[name].cpu().numpy()

    def enter(self, places: list[int]) -> None:
        """Shows the device the sequences that `host.add` has put into these places, and their order; waits for nothing.

        What the device knows of other places is left alone: it is ahead of the host.
        """
        index = self._staged(np.array(places, np.int64)).to(self.device, non_blocking=True)
        for name in ENTERED:
            rows = self._staged(self.host.arrays[name][places]).to(self.device, non_blocking=True)
            self.tables[name].index_copy_(0, index, rows)
        self.push(["order"])

    def told(self) -> Told:
        """Sequences and counters as they will be when all that was launched so far has run; does not wait for that."""
        return Told(self.tables["sequences"], self.tables["counters"])

    def leave(self, place: int) -> None:
        """Empties a place whose sequence is done; a running one only where the device is empty, too."""
        self.host.sequences[place, Column.STATUS] = Status.DONE
        self.host.remove(place)

    def fill(self, context: int, depths: np.ndarray, ends: int, seed: int) -> None:
        """Every place holds a sequence of `context` tokens, all but the last of which have run: it decodes from here on.

        depths int `[B, T]` are those of all tokens, of those to come too; positions below `ends` are run. Slots lie as
        decoding would have taken them: by position, then by place, then by step. Keys and values are random.
        """
        host, random = self.host, np.random.default_rng(seed)
        a, (places, length) = host.arrays, host.arrays["tokens"].shape
        assert 1 <= context <= ends <= length
        a["tokens"][:] = -1
        a["tokens"][:, :context] = random.integers(0, self.model.vocab_size, (places, context))
        a["forced_depth"][:] = depths[:, :length]
        a["depths"][:] = 0
        a["depths"][:, : context - 1] = depths[:, : context - 1]
        a["order"][:] = np.arange(places)
        host.sequences[:] = (Status.RUNNING, context - 1, length, ends, 0, 0, 0, context)
        steps = np.arange(1, host.max_steps + 1)
        run = depths[:, : context - 1].T[..., np.newaxis] >= steps  # [t, B, K]
        taken = np.where(run, run.cumsum().reshape(run.shape) - 1, -1)
        a["slots"][:] = -1
        a["slots"][:, :, : context - 1] = taken.transpose(1, 2, 0)
        used = int(run.sum())
        assert used <= host.slots
        a["free_slots"][: host.slots - used] = np.arange(host.slots - 1, used - 1, -1)
        a["counters"][:] = 0
        a["counters"][[Counter.FREE_SLOTS, Counter.MOST_SLOTS]] = (host.slots - used, used)
        host.control(places)
        generator = torch.Generator(self.device).manual_seed(seed)
        for layer in self.tables["cache"]:
            layer[:, :used, :, : self.model.head_dim].normal_(generator=generator)
        self.push()

    def _staged(self, array: np.ndarray) -> torch.Tensor:
        """Where a copy to the device can begin without waiting; it is kept until that has ended, by PyTorch."""
        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


class Told:
    """Copies on their way to the host; `wait` gives them as arrays: sequences and counters."""

    def __init__(self, *tables: torch.Tensor) -> None:
        self._event = None
        if tables[0].device.type == "cuda":
            self._copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tables]
            for copy, table in zip(self._copies, tables, strict=True):
                copy.copy_(table, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._copies = [table.clone() for table in tables]

    def wait(self) -> list[np.ndarray]:
        """Waits for these copies, and for nothing that was launched behind them."""
        if self._event is not None:
            self._event.synchronize()
        return [copy.numpy() for copy in self._copies]
