"""How fast the device copies, and what share of that RaggedAttention reaches while it decodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from common.results import Spread

from gpu.device_state import DeviceState
from gpu.kernel_checks import Ops
from gpu.sizes import latents, llama
from gpu.timing import Clock, captured
from latentcot_export.ops.packed_tables import Row

CALLS = 8  # in one measured graph, so that starting it is no part of the figure


def copy_bandwidth(clock: Clock, size: int, runs: int, warm: float) -> list[float]:
    """Bytes a second, read and written, of copies of `size` bytes between two pairs of buffers in turns.

    They begin after `warm` seconds of copies that do not count.
    """
    pairs = [[torch.empty(size, dtype=torch.uint8, device=clock.device).random_() for _ in range(2)] for _ in range(2)]
    turn = iter(range(1 << 30))

    def copy() -> None:
        pair = pairs[next(turn) % 2]
        pair[1].copy_(pair[0])

    return [2e3 * size / each for each in clock.milliseconds(copy, runs, warm=3, seconds=warm)]


@dataclasses.dataclass(frozen=True)
class AttentionTime:
    """What one call takes and reads; `read` counts keys and values that rows see, once each, and nothing else."""

    milliseconds: Spread
    read: int

    @property
    def rate(self) -> Spread:
        """Bytes a second."""
        times = self.milliseconds
        made = [1e3 * self.read / each for each in (times.median, times.high, times.low)]
        return Spread(made[0], made[1], made[2], times.runs)


def attention(
    clock: Clock,
    ops: Ops,
    head_dim: int,
    heads: int,
    batch: int,
    context: int,
    depth: int,
    runs: int,
    warm: float,
) -> AttentionTime:
    """`batch` rows at step `depth`, each over `context` positions of that depth: context x depth keys a row, bfloat16.

    Two layers in turns: each is many times the L2. Slots lie as decoding takes them, those of one position side by side.
    `warm`: seconds of calls that do not count.
    """
    model = dataclasses.replace(llama(heads * head_dim, 8, 2, heads, 16))
    dtype = torch.bfloat16
    state = DeviceState(
        model,
        latents(depth - 1),
        places=batch,
        length=context + 1,
        slots=batch * context * depth + depth,
        device=clock.device,
        dtype=dtype,
    )
    depths = np.full((batch, context + 1), depth, np.int32)
    state.fill(context + 1, depths, context + 1, 0)
    slots = state.host.arrays["slots"][:, depth - 1, context - 1]
    rows = np.empty((batch, len(Row)), np.int32)
    rows[:] = np.stack((np.arange(batch), *(np.full(batch, each) for each in (context - 1, depth)), slots), axis=1)
    angles = torch.rand(batch, head_dim // 2, device=clock.device)
    row = {
        "qkv": torch.randn(batch, 3 * heads * head_dim, device=clock.device).to(dtype),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "rows": torch.from_numpy(rows).to(clock.device),
    }
    out = torch.empty(batch, heads * head_dim, dtype=dtype, device=clock.device)

    def calls() -> None:
        for call in range(CALLS):
            ops.attention(row, state.tables, out, call % 2, model, state.recurrence, False)

    times = clock.milliseconds(captured(calls, clock.device), runs, warm=2, seconds=warm)
    read = batch * context * depth * 2 * heads * head_dim * dtype.itemsize
    return AttentionTime(Spread.of([each / CALLS for each in times]), read)
