"""One sequence of a batch: what was asked for, and what has come out of it so far."""

from __future__ import annotations

import dataclasses

from .sampling import SamplingParams
from .text import TextStream, Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how to go on from it; `model.py` makes these out of arguments it has checked."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    stop_tokens: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StreamEvent:
    """One new token: of which sequence (index into the prompts), its id, its depth and the text that became certain.

    `depth` is the number of passes the model took before it chose this token, that is the depth of the position before
    it: the last token of a sequence is chosen but never run. `text` may be empty, where a character or what may be a
    stop text is not complete, and is None without a tokenizer. `stop` is set on the last event of a sequence.
    """

    sequence: int
    token: int
    depth: int
    text: str | None
    stop: str | None = None


class Sequence:
    """Collects the new tokens of one request. `stop` is None while it runs, then length, eos, text or cancelled."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer | None) -> None:
        self.index, self.request = index, request
        self.stop: str | None = None
        self._ids: list[int] = []
        self._depths: list[int] = []
        self._pieces: list[str] = []
        self._stream = None if tokenizer is None else TextStream(tokenizer, request.prompt, request.stop_texts)

    @property
    def length(self) -> int:
        """Tokens known so far, the prompt included."""
        return len(self.request.prompt) + len(self._ids)

    @property
    def told(self) -> int:
        """Number of positions, from the first, whose depth is known here."""
        return len(self._depths)

    @property
    def ids(self) -> list[int]:
        """The new tokens, the one that stopped it included."""
        return list(self._ids)

    @property
    def depths(self) -> list[int]:
        """Depth of every token that was run, prompt first: len(prompt) + len(ids) - 1, or none without a new token.

        0 where a prompt token still thought when the sequence was cancelled.
        """
        # an interrupt inside `accept` can leave a depth whose token is not there yet
        return self._depths[: self.length - 1] if self._ids else []

    @property
    def text(self) -> str | None:
        """The new text without special tokens, stop token and stop text; None without a tokenizer."""
        return None if self._stream is None else "".join(self._pieces)

    def accept(self, token: int, depths: list[int]) -> StreamEvent:
        """Takes the next token; `depths` are those of the positions `told` up to the one before it."""
        self._depths += depths
        self._ids.append(token)
        text = ""
        if token in self.request.stop_tokens:
            self.stop = "eos"
        elif self._stream is not None:
            text, found = self._stream.push(token)
            self.stop = "text" if found else None
        if self.stop is None and len(self._ids) == self.request.max_new_tokens:
            self.stop = "length"
        if self._stream is None:
            return StreamEvent(self.index, token, depths[-1], None, self.stop)
        if self.stop in ("eos", "length"):
            text += self._stream.finish()
        self._pieces.append(text)
        return StreamEvent(self.index, token, depths[-1], text, self.stop)

    def settle(self, depths: list[int]) -> None:
        """Takes the depths of the first positions anew, now that more of them are complete; 0 leaves one as it was.

        The native engine chooses a token while earlier positions may still think, so `accept` may have seen zeros.
        """
        at = min(len(depths), len(self._depths))
        self._depths[:at] = [new or old for new, old in zip(depths, self._depths, strict=False)]

    def cancel(self) -> None:
        """Ends a sequence that still runs; text that was held back is certain now."""
        if self.stop is None:
            self.stop = "cancelled"
            if self._stream is not None:
                self._pieces.append(self._stream.finish())
