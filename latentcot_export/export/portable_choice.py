"""The end of a pass of the portable graph: logits, the token choice, and both written where they belong."""

from __future__ import annotations

import torch
from torch import nn

from ..ops import choose_token
from .layers import Form


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
