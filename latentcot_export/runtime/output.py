"""The result of a generation, and its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from .sequence import Sequence

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What B prompts gave, each field a list in the order of the prompts.

    `sequences` are the ids of prompt and new tokens, `prompt_ids` and `ids` its two parts; `ids` include the token that
    stopped a sequence. `depths` holds the number of passes of every token that was run, prompt first:
    len(prompt_ids) + len(ids) - 1 of them, since the last token is never run; none where a sequence was cancelled
    before its first token, and 0 where a prompt token still thought when it
    was cancelled. `text` is the new text, cut before a stop text and without special and stop tokens; None
    without a tokenizer. `stop` is `length`, `eos` (a stop token), `text` (a stop text) or `cancelled`.
    """

    sequences: list[list[int]]
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    depths: list[list[int]]
    text: list[str | None]
    stop: list[str]

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> GenerateOutput:
        """The result of sequences as they are now."""
        listed = list(sequences)
        prompts = [list(each.request.prompt) for each in listed]
        ids = [each.ids for each in listed]
        return cls(
            sequences=[[*prompt, *new] for prompt, new in zip(prompts, ids, strict=True)],
            prompt_ids=prompts,
            ids=ids,
            depths=[each.depths for each in listed],
            text=[each.text for each in listed],
            stop=[each.stop or "cancelled" for each in listed],
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON of `latentcot generate -o json`: per sequence its ids, depths, text and why it stopped."""
        keys = ("prompt_ids", "ids", "depths", "text", "stop")
        rows = zip(*(getattr(self, key) for key in keys), strict=True)
        return {"schema_version": SCHEMA_VERSION, "sequences": [dict(zip(keys, row, strict=True)) for row in rows]}
