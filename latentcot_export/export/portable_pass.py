"""One pass of the portable graph as a module: rows in, rows out. `trace.py` turns it into ONNX and puts it in a Loop.

Everything carried from pass to pass is an input and an output; `GIVEN` and `CARRIED` name them in the order of the graph.
Submodule names become the node names that a reader sees in Netron.
"""

from __future__ import annotations

import torch
from torch import nn

from ..model.rope import rope_angles, rope_frequencies
from ..ops import ragged_advance, ragged_attention, ragged_halt
from ..spec import ModelSpec, RecurrenceSpec
from .layers import Form, PassStack
from .portable_choice import Choice
from .portable_router import PassDecider, PassRouter, expected_embedding

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
        self.model = PassStack(tensors, spec, dtype, form)
        self.gates: PassRouter | PassDecider | None = None
        if recurrence.gated:
            self.gates = (PassRouter if recurrence.decider is None else PassDecider)(tensors, recurrence)
        head = tensors["model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"]
        self.choice = Choice(head.to(dtype).t().contiguous(), form)

    def carried(self) -> dict[str, tuple[torch.dtype, tuple[str | int, ...]]]:
        """The carried tensors in graph order: name -> (dtype, axes)."""
        fixed: dict[str | int, int] = {"hidden": self.spec.hidden_size, "vocab": self.spec.vocab_size}
        table = {
            name: (dtype or self.dtype, tuple(fixed.get(axis, axis) for axis in axes))
            for name, (dtype, axes) in CARRIED.items()
        }
        if self.recurrence.tailed:
            table["weights"] = (torch.float32, ("batch", "length", self.recurrence.max_steps))
        cache = (self.dtype, ("batch", self.spec.num_kv_heads, "slots", self.spec.head_dim))
        names = [f"{kind}_{i}" for i in range(self.spec.num_layers) for kind in ("keys", "values")]
        return table | dict.fromkeys(names, cache)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """GIVEN in order, then CARRIED and caches in order; returns go_on bool `[]` and the carried ones."""
        given = dict(zip(GIVEN, inputs, strict=False))
        s = dict(zip(self.carried(), inputs[len(GIVEN) :], strict=True))
        recurrence, out = self.recurrence, dict(s)
        fresh, token, position, step, out["next_position"] = ragged_advance.start_rows(
            s["tokens"],
            s["next_position"],
            given["end"],
            s["stopped"],
            s["row_position"],
            s["row_step"],
            given["lockstep"],
            recurrence.token_major,
        )
        live = step > 0
        embedded = self.model.embed_tokens(token) * recurrence.embedding_scale
        x = torch.where(fresh.unsqueeze(-1), embedded.to(self.dtype), s["row_latent"])
        reach = torch.where(fresh, 1.0, s["row_reach"])
        mix = torch.where(fresh.unsqueeze(-1), 0.0, s["row_mix"])
        # a row that has ended and only reads enters no slot
        entered = step.masked_fill(reach < 0, 0) if recurrence.readout == "final" else step
        slot, out["slot_position"], out["slot_step"], out["used_slots"] = ragged_attention.enter_rows(
            position, entered, s["used_slots"], s["slot_position"], s["slot_step"]
        )
        states = self._layers(x, position, step, slot, s, out)
        z = states[-1]

        wide = z.float()
        # what the head reads now, where the next step or the router asks for its logits
        now = mix + wide if recurrence.readout == "sum" else wide
        logits = self._logits(now) if recurrence.feedback or recurrence.decider else None
        gate, planned = self._gate(wide, states, logits, position, step, out)
        inside = self._inside(position, given["forced_depth"])
        forced = given["forced_depth"].gather(1, inside)
        fate = ragged_halt.ragged_halt(recurrence, gate, reach, wide, mix, step, forced, planned)
        latent = z
        if recurrence.feedback is not None:
            assert logits is not None
            latent = expected_embedding(recurrence.feedback, self.model.embed_tokens.weight, logits, x, gate)
        if recurrence.readout == "final":
            latent = torch.where(fate.goes_on.unsqueeze(-1), latent, x)

        leaves = live & ~fate.stays
        out["tokens"], out["stopped"], out["logits"] = self.choice(given, s, fate.mix, position, leaves)
        out["depths"] = ragged_advance.write_depths(s["depths"], position, step, fate.ends)
        out["live_rows"] = s["live_rows"] + live.to(torch.int64).sum()
        out["row_step"] = torch.where(fate.stays, step + 1, 0)
        out["row_position"] = torch.where(fate.stays, position, -1)
        out["row_latent"], out["row_reach"], out["row_mix"] = latent, fate.reach, fate.mix
        out["passes"] = s["passes"] + 1
        room = out["used_slots"].amax(dim=0) + step.shape[1] <= s["slot_step"].shape[1]
        again = ragged_advance.work_left(
            out["tokens"], out["next_position"], given["end"], out["stopped"], out["row_step"]
        )
        return again & room, *out.values()

    def _inside(self, position: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Positions that index table `[B, T]`, whatever idle rows hold."""
        return position.clamp(min=0).minimum(torch.full_like(position, table.shape[1] - 1))

    def _layers(
        self,
        x: torch.Tensor,
        position: torch.Tensor,
        step: torch.Tensor,
        slot: torch.Tensor,
        s: dict[str, torch.Tensor],
        out: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """States `[B, R, D]` before the first layer and after each, the last one after the final norm."""
        angles = rope_angles(position, self.rope_frequencies).unsqueeze(1)
        cos = (angles.cos() * self.rope_scale).to(self.dtype)
        sin = (angles.sin() * self.rope_scale).to(self.dtype)
        visible = ragged_attention.visible_slots(
            self.recurrence.visibility, position, step, out["slot_position"], out["slot_step"], s["depths"]
        )
        bias = ragged_attention.visibility_bias(visible, self.dtype, self._log_weight(s, out))
        later = (step > 1).unsqueeze(-1) if self.recurrence.adapter else None
        states = [x]
        for i, layer in enumerate(self.model.layers):
            x, out[f"keys_{i}"], out[f"values_{i}"] = layer(
                x, cos, sin, slot, bias, s[f"keys_{i}"], s[f"values_{i}"], later=later
            )
            states.append(x)
        return [*states[:-1], self.model.norm(x)]

    def _log_weight(self, s: dict[str, torch.Tensor], out: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """What the scores of slots have more, `[B, N]`: log of the weight of the step that wrote them, 0 for step 1."""
        if not self.recurrence.tailed:
            return None
        steps = self.recurrence.max_steps
        index = out["slot_position"].clamp(min=0) * steps + (out["slot_step"] - 1).clamp(min=0)
        weight = s["weights"].flatten(1).gather(1, index)
        return torch.where(out["slot_step"] > 1, weight, 1.0).clamp(min=1e-38).log()

    def _gate(
        self,
        z: torch.Tensor,
        states: list[torch.Tensor],
        logits: torch.Tensor | None,
        position: torch.Tensor,
        step: torch.Tensor,
        out: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gate and planned weight `[B, R]` of the next step, each None where the rule has no use for it."""
        if self.gates is None:
            return None, None
        if isinstance(self.gates, PassDecider):
            assert logits is not None
            return self.gates([state.float() for state in states], logits), None
        if not self.recurrence.tailed:
            return self.gates(z, step), None
        weights, steps = out["weights"], self.recurrence.max_steps
        batch, length = weights.shape[0], weights.shape[1]
        # column T swallows what rows of later steps would write
        place = torch.where(step == 1, position, length).unsqueeze(-1).expand(-1, -1, steps)
        spare = torch.cat((weights, weights.new_zeros(batch, 1, steps)), dim=1)
        out["weights"] = spare.scatter(1, place, self.gates.tail(z))[:, :length]
        inside = self._inside(position, weights[:, :, 0])
        following = step.minimum(torch.full_like(step, steps - 1))
        return None, out["weights"].flatten(1).gather(1, inside * steps + following)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 `[B, R, V]` of what the head reads `[B, R, D]`."""
        return (hidden.to(self.dtype) @ self.choice.head_t).float()
