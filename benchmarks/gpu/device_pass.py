"""One pass of the fixed form on a device: matrix products by PyTorch, all else by the kernels; captured and replayed."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch

from gpu.device_state import DeviceState
from gpu.kernels import Kernels
from gpu.references import References
from gpu.sizes import Weights
from latentcot_export.model.rope import rope_angles, rope_frequencies
from latentcot_export.ops.packed_tables import DEAD, Row

Tensor = torch.Tensor
CARRIED = ("rows", "latent", "reach", "mix")


class DevicePass:
    """Passes of R = `rows` rows over one DeviceState. Two sets of carried tensors: a pass reads one and writes the other.

    `prompt`: what it runs are prompts, whose rows share keys. Buffers are made once, so that a captured pass finds them.
    """

    def __init__(
        self, state: DeviceState, weights: Weights, ops: Kernels | References, rows: int, prompt: bool = False
    ) -> None:
        self.state, self.weights, self.ops, self.count, self.prompt = state, weights, ops, rows, prompt
        model, device, dtype = state.model, state.device, weights.table.dtype
        self.at = 0
        self.replays: list[Callable[[], None]] = [lambda: self.take(0), lambda: self.take(1)]

        def buffer(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros((rows, *shape), dtype=of, device=device)

        width, real, whole = model.hidden_size, torch.float32, torch.int32
        self.sets = [
            {
                "rows": torch.full((rows, 4), DEAD, dtype=whole, device=device),
                "latent": buffer(width, of=real),
                "reach": buffer(of=real),
                "mix": buffer(width, of=real),
            }
            for _ in range(2)
        ]
        self.rows, self.fresh, self.position = buffer(4, of=whole), buffer(of=whole), buffer(of=whole)
        self.again = torch.zeros((), dtype=torch.bool, device=device)
        self.nothing, self.x, self.normed = (buffer(width) for _ in range(3))
        self.wide, self.z = (buffer(width, of=real) for _ in range(2))
        self.totals = [buffer(width, of=real) for _ in range(2)]
        self.qkv = buffer((model.num_heads + 2 * model.num_kv_heads) * model.head_dim)
        self.attended = buffer(model.num_heads * model.head_dim)
        self.gate_up, self.gated = buffer(2 * model.intermediate_size), buffer(model.intermediate_size)
        self.gates = buffer(len(weights.bias), of=real)
        self.head_rows, self.head_mix = buffer(4, of=whole), buffer(width, of=real)
        self.head_index, self.chosen = buffer(of=torch.int64), buffer(of=whole)
        self.scores, self.logits = buffer(model.vocab_size), buffer(model.vocab_size, of=real)
        length = state.tables["tokens"].shape[1]
        frequencies, scale = rope_frequencies(model.rope, model.turned, model.max_position_embeddings)
        angles = rope_angles(torch.arange(length), frequencies)
        self.angles = [(turned * scale).to(device) for turned in (torch.cos(angles), torch.sin(angles))]
        self.turns = [buffer(frequencies.numel(), of=real) for _ in range(2)]

    def take(self, read: int) -> None:
        """One pass that reads set `read` and writes the other; whatever it launches, it waits for nothing."""
        given, left, tables, recurrence = self.sets[read], self.sets[1 - read], self.state.tables, self.state.recurrence
        self.ops.advance(given["rows"], tables, (self.rows, self.fresh, self.again), recurrence)
        self._read(given["latent"])
        z = self._layers()
        torch.addmm(self.weights.bias, z, self.weights.router.t(), out=self.gates)
        row = {"z": z, "gate_logits": self.gates, "rows": self.rows, "reach": given["reach"], "mix": given["mix"]}
        heads = (self.head_rows, self.head_mix, self.head_index)
        self.ops.halt(row, tables, (*(left[name] for name in CARRIED), *heads), recurrence)
        torch.mm(self.head_mix.to(self.scores.dtype), self.weights.head.t(), out=self.scores)
        self.logits.copy_(self.scores)
        self.ops.choose(self.logits, self.head_rows, tables, self.chosen)

    def burst(self, passes: int) -> None:
        """So many passes, one behind another; the host launches them and does not wait."""
        for _ in range(passes):
            self.replays[self.at]()
            self.at ^= 1

    def clear(self) -> None:
        """Makes all rows dead."""
        for each in self.sets:
            each["rows"].fill_(DEAD)
            for name in CARRIED[1:]:
                each[name].zero_()
        self.at = 0

    def capture(self) -> None:
        """From here on a pass is a replayed CUDA graph, where there are any. Tables stay as they are, rows are dead."""
        kept = {name: self.state.tables[name].clone() for name in ("sequences", "counters")}
        self.state.tables["sequences"].zero_()  # a pass finds nothing to do
        self.clear()
        # without the caching allocator, as under compute-sanitizer, nothing can be captured
        if self.state.device.type == "cuda" and not os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
            self._capture()
        else:
            self.burst(2)
        self.clear()
        for name, value in kept.items():
            self.state.tables[name].copy_(value)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make what they need on their first call, which may not be captured
            self.burst(4)
        torch.cuda.current_stream().wait_stream(side)
        made, pool = [], None
        gc.collect()  # what is collected within a capture would end it
        for read in (0, 1):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.take(read)
            pool = graph.pool()
            made.append(graph.replay)
        self.replays = made

    def _read(self, latent: Tensor) -> None:
        """What rows read: their token's embedding at step 1, else their thought; and the turns of their positions."""
        starts = (self.rows[:, Row.STEP] == 1).unsqueeze(1)
        embedded = self.weights.table.index_select(0, self.fresh).float() * self.state.recurrence.embedding_scale
        torch.where(starts, embedded, latent, out=self.totals[1])
        torch.clamp(self.rows[:, Row.POSITION], min=0, out=self.position)
        for table, turn in zip(self.angles, self.turns, strict=True):
            torch.index_select(table, 0, self.position, out=turn)

    def _layers(self) -> Tensor:
        """z float32 `[R, D]` of what rows read: all layers and the final norm."""
        ops, model, epsilon = self.ops, self.state.model, self.state.model.rms_norm_eps
        x, residual = self.nothing, self.totals[1]
        turn = {"cos": self.turns[0], "sin": self.turns[1], "rows": self.rows}
        for index, layer in enumerate(self.weights.layers):
            ops.add_norm(x, residual, layer.before, (self.normed, self.totals[0]), epsilon)
            torch.mm(self.normed, layer.qkv.t(), out=self.qkv)
            norms = {} if layer.norms is None else dict(zip(("q_norm", "k_norm"), layer.norms, strict=True))
            ops.attention(
                {"qkv": self.qkv, **turn, **norms},
                self.state.tables,
                self.attended,
                index,
                model,
                self.state.recurrence,
                self.prompt,
            )
            torch.mm(self.attended, layer.o.t(), out=self.x)
            ops.add_norm(self.x, self.totals[0], layer.after, (self.normed, self.totals[1]), epsilon)
            torch.mm(self.normed, layer.gate_up.t(), out=self.gate_up)
            ops.gated_unit(self.gate_up, self.gated)
            torch.mm(self.gated, layer.down.t(), out=self.x)
            x, residual = self.x, self.totals[1]
        self.wide.copy_(x)  # what the router reads is not rounded
        ops.add_norm(self.wide, residual, self.weights.norm, (self.z, self.totals[0]), epsilon)
        return self.z
