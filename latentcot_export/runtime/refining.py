"""Prompts that are refined in parallel: PonderLM-2's prompt processing (arXiv 2509.23184), between two passes.

K = max_latents initial passes, R rounds and a last one, each over every step that the prompt's tokens have so far. A pass
runs step 1 of all of them again beside the rows (t, k + 1) that the pass before sent on with its z(t, k), so that an
initial pass adds one step. All write at the slots of their (t, k) before any reads. From the last pass on the cache holds
what later tokens read, and these run as they always do. model/jacobi.py is the definition.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from .native_tables import Column, Counter, Status

if TYPE_CHECKING:
    from .native_state import NativeState


@dataclasses.dataclass
class _Prompt:
    """One of them: its first `count` tokens, the passes left, the END of its sequence, and whether its step 1 waits."""

    count: int
    passes: int
    end: int
    fed: bool = False


class Refining:
    """The prompts of one state that are refined now. `rounds` None: none ever is."""

    def __init__(self, max_steps: int, rounds: int | None) -> None:
        self.max_steps, self.rounds = max_steps, rounds
        self._prompts: dict[int, _Prompt] = {}  # by place

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._prompts)

    @property
    def rows(self) -> int:
        """Rows that they fill in a pass, at most."""
        return sum(prompt.count for prompt in self._prompts.values()) * self.max_steps

    def slots(self, count: int) -> int:
        """Slots that a prompt of `count` tokens must find free when it begins, 0 where none is refined."""
        return 0 if self.rounds is None else count * self.max_steps

    def begin(self, state: NativeState, place: int, count: int) -> None:
        """Starts the first `count` tokens of a sequence that has just been placed."""
        if self.rounds is None:
            return
        forced = state.arrays["forced_depth"][place, :count]
        limits = np.where(forced > 0, np.minimum(forced, self.max_steps), self.max_steps)
        # tokens of one step have nothing to refine; of others a row goes on after every pass
        passes = self.max_steps + self.rounds if limits.max() > 1 else 1
        row = state.sequences[place]
        self._prompts[place] = _Prompt(count, passes, int(row[Column.END]))
        # nothing of it starts by itself, and nothing is chosen behind it while END does not reach there
        row[Column.NEXT_POSITION], row[Column.END] = count, count - 1
        state.counters[Counter.RESERVED] += limits.sum()

    def cut(self, place: int, end: int) -> None:
        """Forgets the tokens of a sequence from position `end` on."""
        prompt = self._prompts.get(place)
        if prompt is not None:
            prompt.count = min(prompt.count, end)
            if not prompt.count:
                del self._prompts[place]

    def feed(self, state: NativeState) -> None:
        """Before a pass: step 1 of every token, and in the last pass END, so that the next token is chosen."""
        rows, fresh = [as_array(state.carried["rows"])], [as_array(state.carried["fresh"])]
        for place, prompt in self._prompts.items():
            row = state.sequences[place]
            if prompt.passes == 1 and not row[Column.STOPPED]:
                row[Column.END] = prompt.end
            if prompt.fed:
                continue
            first = np.full((prompt.count, 4), (place, 0, 1, -1), np.int32)  # the slot of its cell, or a new one
            first[:, 1] = range(prompt.count)
            rows.append(first)
            fresh.append(state.arrays["tokens"][place, : prompt.count])
            row[Column.LIVE_ROWS] += prompt.count
            prompt.fed = True
        state.carried |= {"rows": np.concatenate(rows), "fresh": np.concatenate(fresh)}

    def settle(self, state: NativeState) -> None:
        """After a pass: rows behind the last one are dropped; their slots stay."""
        for place, prompt in [*self._prompts.items()]:
            prompt.passes, prompt.fed = prompt.passes - 1, False
            row = state.sequences[place]
            if prompt.passes == 0 and row[Column.STATUS] == Status.RUNNING:
                row[Column.LIVE_ROWS] -= state.drop_rows(place, 0, prompt.count)
            if prompt.passes == 0 or row[Column.STATUS] != Status.RUNNING:
                del self._prompts[place]


def as_array(value: Any) -> np.ndarray:
    """A carried tensor as numpy."""
    return value if isinstance(value, np.ndarray) else value.numpy()
