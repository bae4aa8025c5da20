"""The baseline `torch`: the eager oracle in float32, with a memory that is kept from token to token.

Prompts are `model.run` itself. Decoding runs `LatentCoT.think` on the live rows of the batch, and nothing else:
under `lockstep` that is step-major per new token, under `continuous` a sequence that halts starts its next token in the
next pass, as the bundle does. Both equal the oracle (tests/bench/test_eager.py), so schedules can be compared within
one engine and engines within one schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..bundle import Bundle
from ..errors import InputError
from ..model import LatentCoT, Memory, run
from ..model.recur import Decision, decide, next_input
from ..model.router import wide
from ..runtime.state import slots_for
from ..spec import CacheSpec, ModelSpec, RecurrenceSpec
from ..validate.weights import bundle_tensors
from .engines import Work, least_passes
from .workload import Batch


class RememberingModel(LatentCoT):
    """LatentCoT that keeps the memory of its last pass, which `run` drops, and counts rows and passes."""

    memory: Memory
    passes = live_rows = computed_rows = 0

    def forget(self) -> None:
        """Sets the counts to 0."""
        self.passes = self.live_rows = self.computed_rows = 0

    def think_aloud(
        self, x: torch.Tensor, position: torch.Tensor, step: torch.Tensor, memory: Memory, *rest: Any
    ) -> tuple[torch.Tensor, Memory, list[torch.Tensor]]:
        """See LatentCoT."""
        z, self.memory, states = super().think_aloud(x, position, step, memory, *rest)
        self.passes += 1
        self.live_rows += int((step > 0).sum())
        self.computed_rows += step.numel()
        return z, self.memory, states


class PackedMemory:
    """Memory entries without holes: slot i of a sequence is the i-th row it ran, as in a bundle's cache.

    entries `[2 * layers, B, kv heads, N, head_dim]`, keys of all layers before values; position, step int64 `[B, N]`.
    One tensor for all layers, so that appending costs a handful of operations and not a handful per layer.
    """

    def __init__(self, memory: Memory) -> None:
        written = memory.step > 0
        self.used = written.sum(1).numpy()
        order = torch.argsort(~written, dim=1, stable=True)[:, : int(self.used.max())]
        spread = order[:, None, :, None]
        self.position = memory.position.gather(1, order)
        self.step = memory.step.gather(1, order)
        self.entries = torch.stack(
            [x.gather(2, spread.expand(-1, x.shape[1], -1, x.shape[3])) for x in (*memory.keys, *memory.values)]
        )

    @property
    def slots(self) -> int:
        """Slots N that are allocated per sequence."""
        return self.step.shape[1]

    def reserve(self, slots: int) -> None:
        """Room for `slots` per sequence; grows by at least a quarter, as the runtime's caches do."""
        if slots > self.slots:
            more = slots_for(slots + self.slots // 4) - self.slots
            self.position = torch.nn.functional.pad(self.position, (0, more))
            self.step = torch.nn.functional.pad(self.step, (0, more))
            self.entries = torch.nn.functional.pad(self.entries, (0, 0, 0, more))

    def of(self, rows: np.ndarray) -> Memory:
        """The memory of sequences `rows`, as `think` takes it; a view where that is all of them."""
        count = int(self.used[rows].max())
        entries, position, step = self.entries[:, :, :, :count], self.position[:, :count], self.step[:, :count]
        if len(rows) < len(self.used):
            index = torch.from_numpy(rows)
            entries, position, step = entries[:, index], position[index], step[index]
        layers = entries.unbind(0)
        weight = torch.zeros_like(position, dtype=entries.dtype)
        return Memory(list(layers[: len(layers) // 2]), list(layers[len(layers) // 2 :]), position, step, weight)

    def append(self, rows: np.ndarray, memory: Memory) -> None:
        """Puts the last entry of `memory` of every sequence in `rows` into its next slot."""
        self.reserve(int(self.used.max()) + 1)
        index, slot = torch.from_numpy(rows), torch.from_numpy(self.used[rows])
        new = torch.stack([x[:, :, -1] for x in (*memory.keys, *memory.values)], dim=1)  # [rows, 2 * layers, kv, hd]
        self.entries.permute(1, 3, 0, 2, 4)[index, slot] = new
        self.position[index, slot] = memory.position[:, -1]
        self.step[index, slot] = memory.step[:, -1]
        self.used[rows] += 1


class TorchEngine:
    """The eager oracle, batched and cached. Set `schedule` as for the bundle."""

    name, target, quantize = "torch", "eager", "none"

    def __init__(
        self,
        model: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, torch.Tensor],
        schedule: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if recurrence.decider is not None or recurrence.stop == "tail" or recurrence.readout == "final":
            raise InputError(
                "the baseline torch runs routers of the last hidden state whose halted tokens end; this checkpoint has "
                "another kind, leave --baseline out"
            )
        # copies, laid out as a checkpoint has them: a bundle's transposed, mapped matrices would be slower here
        copies = {name: x.to(dtype, memory_format=torch.contiguous_format, copy=True) for name, x in tensors.items()}
        self.schedule, self.recurrence = schedule, recurrence
        self.dtype = str(dtype).removeprefix("torch.")
        self.model: RememberingModel = RememberingModel.from_tensors(model, recurrence, copies, dtype)  # type: ignore
        self.bytes_per_slot = CacheSpec("float32").bytes_per_slot(model) * dtype.itemsize // 4

    @classmethod
    def of(cls, bundle: Bundle, schedule: str) -> TorchEngine:
        """With the bundle's own weights, in float32."""
        return cls(bundle.manifest.model, bundle.manifest.recurrence, bundle_tensors(bundle), schedule)

    @torch.inference_mode()
    def start(self, batch: Batch) -> None:
        """See Engine."""
        self.model.forget()
        length = batch.prompts.shape[1]
        self.tokens, self.forced = batch.tokens(), batch.forced_depth
        self.depths = np.zeros_like(self.tokens)
        thoughts = run(self.model, torch.from_numpy(batch.prompts), torch.from_numpy(batch.forced_depth[:, :length]))
        self.tokens[:, length] = self.model.head(thoughts.mix[:, -1]).argmax(-1).numpy()
        self.depths[:, :length] = thoughts.depths.numpy()
        self.memory: Memory | PackedMemory = self.model.memory
        self.next_position = length

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        """See Engine."""
        if isinstance(self.memory, Memory):
            self.memory = PackedMemory(self.memory)
        memory, model, size = self.memory, self.model, len(self.tokens)
        start, end = self.next_position, self.next_position + count
        position = np.full(size, start - 1)
        step = np.zeros(size, np.int64)  # 0 = between two tokens
        x = torch.zeros(size, model.spec.hidden_size, dtype=model.dtype)
        mix = wide(torch.zeros_like(x))
        reach = wide(x.new_zeros(size))
        while True:
            fresh = np.flatnonzero((step == 0) & (position + 1 < end))
            if len(fresh) and (self.schedule == "continuous" or not step.any()):
                index = torch.from_numpy(fresh)
                position[fresh] += 1
                step[fresh] = 1
                x[index] = model.embed(torch.from_numpy(self.tokens[fresh, position[fresh]]))
                mix[index], reach[index] = 0.0, 1.0
            rows = np.flatnonzero(step)
            if not len(rows):
                break
            index = torch.from_numpy(rows)
            steps = torch.from_numpy(step[rows, None])
            z, grown = model.think(x[index, None], torch.from_numpy(position[rows, None]), steps, memory.of(rows))
            memory.append(rows, grown)
            decision = self._decide(z, steps, reach[index, None], self.forced[rows, position[rows]])
            thinking = torch.from_numpy(self.depths[rows, position[rows]] == 0)
            mix[index] += (decision.weight[:, 0] * thinking)[:, None] * wide(z[:, 0])
            readout = mix[index, None] if self.recurrence.readout == "sum" else z
            x[index] = next_input(model, x[index, None], z, readout, decision.gate)[:, 0].to(x.dtype)
            if self.recurrence.stop == "reach":
                reach[index] = decision.next_reach[:, 0]
            goes_on = decision.goes_on[:, 0].numpy()
            ends = rows[thinking.numpy() & ~goes_on]
            self.depths[ends, position[ends]] = step[ends]
            if not self.recurrence.skip_halted:
                goes_on = step[rows] < self.recurrence.max_steps
            done = rows[~goes_on]
            if len(done):
                chosen = model.head(mix[torch.from_numpy(done)]).argmax(-1).numpy()
                self.tokens[done, position[done] + 1] = chosen
            step[rows[goes_on]] += 1
            step[done] = 0
        self.next_position = end

    def _decide(self, z: torch.Tensor, steps: torch.Tensor, reach: torch.Tensor, forced: np.ndarray) -> Decision:
        gate = self.model.gate(z, steps) if self.recurrence.gated else None
        return decide(self.recurrence, gate, reach, steps, torch.from_numpy(forced[:, None]))

    def work(self) -> Work:
        """See Engine. The cache of a prompt alone is step-major's own, whose shorter sequences are padded."""
        memory, model = self.memory, self.model
        slots = memory.step.numel()
        least = least_passes(self.recurrence)
        return Work(model.passes, model.live_rows, model.computed_rows, slots, self.depths, least)
