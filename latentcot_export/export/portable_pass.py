"""One pass of the portable graph as a module: rows in, rows out. `trace.py` turns it into ONNX and puts it in a Loop.

Everything carried from pass to pass is an input and an output; `GIVEN` and `CARRIED` name them in the order of the graph.
Submodule names become the node names that a reader sees in Netron.
"""

from __future__ import annotations

import torch
from torch import nn

from ..model.rope import rope_angles, rope_frequencies
from ..ops import choose_token, ragged_advance, ragged_attention, ragged_halt
from ..spec import ModelSpec, RecurrenceSpec
from .layers import Form, PassRouter, PassStack

# inputs that stay the same during a call: name -> (dtype, axes)
GIVEN: dict[str, tuple[torch.dtype, tuple[str, ...]]] = {
    "forced_depth": (torch.int64, ("batch", "length")),
    "uniform": (torch.float32, ("batch", "length")),
    "end": (torch.int64, ("batch",)),
    "temperature": (torch.float32, ("batch",)),
    "top_k": (torch.int64, ("batch",)),
    "top_p": (torch.float32, ("batch",)),
    "stop_tokens": (torch.int64, ("batch", "stops")),
    "lockstep": (torch.bool, ()),
}
# what a pass reads and writes, before the caches; None stands for the model's dtype
CARRIED: dict[str, tuple[torch.dtype | None, tuple[str | int, ...]]] = {
    "tokens": (torch.int64, ("batch", "length")),
    "depths": (torch.int64, ("batch", "length")),
    "stopped": (torch.bool, ("batch",)),
    "next_position": (torch.int64, ("batch",)),
    "used_slots": (torch.int64, ("batch",)),
    "slot_position": (torch.int64, ("batch", "slots")),
    "slot_step": (torch.int64, ("batch", "slots")),
    "row_position": (torch.int64, ("batch", "rows")),
    "row_step": (torch.int64, ("batch", "rows")),
    "row_latent": (None, ("batch", "rows", "hidden")),
    "row_reach": (torch.float32, ("batch", "rows")),
    "row_mix": (torch.float32, ("batch", "rows", "hidden")),
    "logits": (torch.float32, ("batch", "logit_positions", "vocab")),
    "passes": (torch.int64, ()),
    "live_rows": (torch.int64, ()),
}


class Rows(nn.Module):
    """Start: idle rows take fresh tokens, every live row gets a cache slot."""

    def forward(self, given: dict[str, torch.Tensor], s: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """fresh, token, position, step, next_position, then slot, slot_position, slot_step, used_slots."""
        started = ragged_advance.start_rows(
            s["tokens"],
            s["next_position"],
            given["end"],
            s["stopped"],
            s["row_position"],
            s["row_step"],
            given["lockstep"],
        )
        _, _, position, step, _ = started
        entered = ragged_attention.enter_rows(position, step, s["used_slots"], s["slot_position"], s["slot_step"])
        return *started, *entered


class Choice(nn.Module):
    """Head on the halted rows that need logits, the token choice, and both written where they belong."""

    def __init__(self, head: torch.Tensor, form: Form) -> None:
        super().__init__()
        self.head_t = nn.Parameter(head, requires_grad=False)  # [D, V]
        self.form = form

    def _choose(
        self, logits: torch.Tensor, given: dict[str, torch.Tensor], row: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Ids `[S]` for logits `[S, V]` of sequences row `[S]`, choosing the token at place `[S]`."""
        greedy = logits.argmax(dim=1)
        sampled = given["temperature"][row] > 0
        if self.form.fused:
            some = sampled.nonzero()[:, 0]
            row, place, logits = row[some], place[some], logits[some]
        draw = choose_token.sample_tokens(
            logits,
            torch.where(given["temperature"][row] > 0, given["temperature"][row], 1.0),
            torch.where(given["temperature"][row] > 0, given["top_k"][row], 0),
            torch.where(given["temperature"][row] > 0, given["top_p"][row], 1.0),
            given["uniform"][row, place],
        )
        return greedy.scatter(0, some, draw) if self.form.fused else torch.where(sampled, draw, greedy)

    def forward(
        self,
        given: dict[str, torch.Tensor],
        s: dict[str, torch.Tensor],
        mix: torch.Tensor,
        position: torch.Tensor,
        halted: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens `[B, T]`, stopped `[B]` and logits `[B, P, V]` after this pass."""
        tokens, record = s["tokens"], s["logits"]
        batch, length = tokens.shape
        rows, places, vocab = position.shape[1], record.shape[1], record.shape[2]
        following = position + 1
        inside = following.clamp(min=0).minimum(torch.full_like(following, length - 1))
        chooses = halted & (following < length) & (tokens.gather(1, inside) < 0)
        recorded = halted & (position < places)
        sequence = torch.arange(batch).unsqueeze(1).expand(-1, rows).reshape(-1)
        flat_chooses, flat_recorded = chooses.reshape(-1), recorded.reshape(-1)
        flat_inside, flat_position, flat_mix = inside.reshape(-1), position.reshape(-1), mix.reshape(-1, mix.shape[-1])
        if self.form.fused:
            need = (flat_chooses | flat_recorded).nonzero()[:, 0]
            sequence, flat_chooses, flat_recorded = sequence[need], flat_chooses[need], flat_recorded[need]
            flat_inside, flat_position, flat_mix = flat_inside[need], flat_position[need], flat_mix[need]
        scores = (flat_mix.to(self.head_t.dtype) @ self.head_t).float()
        chosen = self._choose(scores, given, sequence, flat_inside)
        # the last element swallows the writes of rows that choose nothing
        flat = torch.cat((tokens.reshape(-1), tokens.new_zeros(1)))
        target = torch.where(flat_chooses, sequence * length + flat_inside, batch * length)
        tokens = flat.scatter(0, target, chosen)[:-1].reshape(batch, length)
        matches = (chosen.unsqueeze(1) == given["stop_tokens"][sequence]).to(torch.int64).sum(dim=1)
        stop = flat_chooses & (matches > 0)
        stops = torch.cat((s["stopped"], s["stopped"].new_zeros(1))).to(torch.int64)
        stops = stops.scatter(0, torch.where(stop, sequence, batch), stop.to(torch.int64))[:-1]
        kept = torch.cat((record.reshape(-1, vocab), record.new_zeros(1, vocab)))
        place = torch.where(flat_recorded, sequence * places + flat_position, batch * places)
        kept = kept.index_put((place,), scores)[:-1].reshape(batch, places, vocab)
        return tokens, stops > 0, kept


class PortablePass(nn.Module):
    """state' = pass(state): see `GIVEN` and `CARRIED` for names, dtypes and axes; caches follow as keys and values."""

    rope_frequencies: torch.Tensor

    def __init__(
        self,
        spec: ModelSpec,
        recurrence: RecurrenceSpec,
        tensors: dict[str, torch.Tensor],
        dtype: torch.dtype,
        form: Form,
    ) -> None:
        super().__init__()
        self.spec, self.recurrence, self.dtype = spec, recurrence, dtype
        frequencies, self.rope_scale = rope_frequencies(spec.rope, spec.turned, spec.max_position_embeddings)
        self.register_buffer("rope_frequencies", frequencies)
        self.start = Rows()
        self.model = PassStack(tensors, spec, dtype, form)
        self.gates = PassRouter(tensors, recurrence) if recurrence.max_latents else None
        head = tensors["model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"]
        self.choice = Choice(head.to(dtype).t().contiguous(), form)

    def carried_names(self) -> list[str]:
        """Names of the carried tensors in graph order."""
        layers = range(self.spec.num_layers)
        return [*CARRIED, *(f"{kind}_{i}" for i in layers for kind in ("keys", "values"))]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """GIVEN in order, then CARRIED and caches in order; returns go_on bool `[]` and the carried ones."""
        given = dict(zip(GIVEN, inputs, strict=False))
        s = dict(zip(self.carried_names(), inputs[len(GIVEN) :], strict=True))
        fresh, token, position, step, next_position, slot, slot_position, slot_step, used = self.start(given, s)
        live = step > 0
        embedded = self.model.embed_tokens(token) * self.recurrence.embedding_scale
        x = torch.where(fresh.unsqueeze(-1), embedded.to(self.dtype), s["row_latent"])
        reach = torch.where(fresh, 1.0, s["row_reach"])
        mix = torch.where(fresh.unsqueeze(-1), 0.0, s["row_mix"])

        angles = rope_angles(position, self.rope_frequencies).unsqueeze(1)
        cos = (angles.cos() * self.rope_scale).to(self.dtype)
        sin = (angles.sin() * self.rope_scale).to(self.dtype)
        visible = ragged_attention.visible_slots(position, step, slot_position, slot_step)
        bias = ragged_attention.visibility_bias(visible, self.dtype)
        caches = []
        for i, layer in enumerate(self.model.layers):
            x, keys, values = layer(x, cos, sin, slot, bias, s[f"keys_{i}"], s[f"values_{i}"])
            caches += [keys, values]
        z = self.model.norm(x)

        gate = torch.zeros_like(reach) if self.gates is None else self.gates(z.float(), step)
        forced = given["forced_depth"]
        inside = position.clamp(min=0).minimum(torch.full_like(position, forced.shape[1] - 1))
        go_on, reach, mix = ragged_halt.ragged_halt(
            gate,
            reach,
            z.float(),
            mix,
            step,
            forced.gather(1, inside),
            self.recurrence.halt_threshold,
            self.recurrence.max_steps,
        )
        halted = live & ~go_on
        tokens, stopped, logits = self.choice(given, s, mix, position, halted)
        depths = ragged_advance.write_depths(s["depths"], position, step, halted)
        live_rows = s["live_rows"] + live.to(torch.int64).sum()
        step = torch.where(go_on, step + 1, 0)
        position = torch.where(go_on, position, -1)
        room = used.amax(dim=0) + step.shape[1] <= slot_step.shape[1]
        again = ragged_advance.work_left(tokens, next_position, given["end"], stopped, step) & room
        out = (tokens, depths, stopped, next_position, used, slot_position, slot_step, position, step, z, reach, mix)
        return again, *out, logits, s["passes"] + 1, live_rows, *caches
