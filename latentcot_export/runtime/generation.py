"""A running generation: an iterator over its tokens that can be abandoned or asked for its result at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq
from typing import Any

from .batch import Batch
from .sequence import Request, Sequence, StreamEvent
from .session import GraphSession
from .text import Tokenizer

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What B prompts gave, each field a list in the order of the prompts.

    `sequences` are the ids of prompt and new tokens, `prompt_ids` and `ids` its two parts; `ids` include the token that
    stopped a sequence. `depths` holds the number of passes of every token that was run, prompt first:
    len(prompt_ids) + len(ids) - 1 of them, since the last token is never run; none where a sequence was cancelled
    before its first token. `text` is the new text, cut before a stop text and without special and stop tokens; None
    without a tokenizer. `stop` is `length`, `eos` (a stop token), `text` (a stop text) or `cancelled`.
    """

    sequences: list[list[int]]
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    depths: list[list[int]]
    text: list[str | None]
    stop: list[str]

    def to_json(self) -> dict[str, Any]:
        """The JSON of `latentcot generate -o json`: per sequence its ids, depths, text and why it stopped."""
        keys = ("prompt_ids", "ids", "depths", "text", "stop")
        rows = zip(*(getattr(self, key) for key in keys), strict=True)
        return {"schema_version": SCHEMA_VERSION, "sequences": [dict(zip(keys, row, strict=True)) for row in rows]}


class Generation:
    """Iterates over `StreamEvent`s: the first token of every sequence as soon as all prompts have run, then in bursts.

    `output()` gives what there is so far. `close()`, or leaving a `with` block, ends it and frees its memory; so does
    running to the end. Prompts beyond `max_batch` wait for the group before them. Errors: LatentCoTError from `next`.
    """

    def __init__(
        self,
        session: GraphSession,
        tokenizer: Tokenizer | None,
        requests: Seq[Request],
        max_batch: int,
        bursts: tuple[int, int],
    ) -> None:
        """`bursts`: passes of the first burst and of the longest, each burst being twice the one before."""
        self.passes = 0
        self._session = session
        self._sequences = [Sequence(index, request, tokenizer) for index, request in enumerate(requests)]
        self._events = self._run(max_batch, bursts)

    def __iter__(self) -> Iterator[StreamEvent]:
        """Itself."""
        return self

    def __next__(self) -> StreamEvent:
        """The next token of any sequence."""
        return next(self._events)

    def __enter__(self) -> Generation:
        """Itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Ends what still runs as `cancelled`."""
        self._events.close()
        for each in self._sequences:
            each.cancel()

    def output(self) -> GenerateOutput:
        """The result. Ends what still runs, as `close` does."""
        self.close()
        prompts = [list(each.request.prompt) for each in self._sequences]
        ids = [each.ids for each in self._sequences]
        return GenerateOutput(
            sequences=[[*prompt, *new] for prompt, new in zip(prompts, ids, strict=True)],
            prompt_ids=prompts,
            ids=ids,
            depths=[each.depths for each in self._sequences],
            text=[each.text for each in self._sequences],
            stop=[each.stop or "cancelled" for each in self._sequences],
        )

    def _run(self, max_batch: int, bursts: tuple[int, int]) -> Generator[StreamEvent, None, None]:
        for first in range(0, len(self._sequences), max_batch):
            before = self.passes
            batch = Batch(self._session, self._sequences[first : first + max_batch])
            burst, longest = bursts
            events = batch.prefill()
            while True:
                self.passes = before + batch.passes
                yield from events
                if batch.done:
                    break
                events = batch.advance(burst)
                burst = min(2 * burst, longest)
