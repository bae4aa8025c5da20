"""Arguments of `generate`, `stream` and `submit`, checked and turned into requests before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..bundle import Manifest
from ..errors import InputError
from ..strict_json import shown
from .sampling import SamplingParams, is_whole
from .sequence import Request
from .text import Tokenizer

DEFAULT_NEW_TOKENS = 64
# Bounds on what one request can cost the host beside the model.
MAX_STOP_TEXTS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 1024

Prompt = str | Sequence[int]


class RequestReader:
    """Reads the arguments of one call for a bundle with `manifest`; text needs its `tokenizer`."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None) -> None:
        self.manifest, self.tokenizer = manifest, tokenizer

    def read(
        self,
        prompts: Any,
        max_new_tokens: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        seed: Any,
        stop: Any,
        stop_token_ids: Any,
        ignore_eos: bool,
    ) -> list[Request]:
        """One request per prompt, in that order. Errors: InputError, one sentence."""
        listed = _prompts(prompts)
        each = [
            _per_sequence(name, value, len(listed))
            for name, value in (
                ("max_new_tokens", max_new_tokens),
                ("temperature", temperature),
                ("top_k", top_k),
                ("top_p", top_p),
                ("seed", seed),
            )
        ]
        texts = self._stop_texts(stop)
        tokens = self._stop_tokens(stop_token_ids, ignore_eos)
        requests = []
        for i, (prompt, new, *sampling) in enumerate(zip(listed, *each, strict=True)):
            ids = self._ids(prompt, i)
            count = self._new_tokens(ids, new, i)
            requests.append(Request(ids, count, SamplingParams(*sampling), tokens, texts))
        return requests

    def _ids(self, prompt: Any, index: int) -> tuple[int, ...]:
        """Token ids of one prompt, checked."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(
                    f"prompt {index} is text and this bundle has no tokenizer.json; give token ids (--ids 1,5,9)"
                )
            if not prompt:
                raise InputError(f"prompt {index} is empty; give at least one character, or one token id")
            ids: list[Any] = self.tokenizer.encode(prompt)
        elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes):
            ids = list(prompt)
        else:
            raise InputError(f"prompt {index} is {shown(prompt)}; give a text or a list of token ids")
        if not ids:
            raise InputError(f"prompt {index} has no tokens; give at least one")
        return self._checked(ids, f"prompt {index}")

    def _checked(self, ids: Sequence[Any], where: str) -> tuple[int, ...]:
        vocab = self.manifest.model.vocab_size
        for token in ids:
            if not is_whole(token) or not 0 <= token < vocab:
                raise InputError(
                    f"{where} has the token id {shown(token)}, ids of this model are integers from 0 to {vocab - 1}; "
                    "give ids made by its own tokenizer"
                )
        # from a list, whose length is known: a tuple made of a generator is cut to size at its end, and CPython keeps up
        # to 2,000 such tuples of each size below 21, which is memory that grows with the requests
        return tuple([int(token) for token in ids])

    def _new_tokens(self, ids: Sequence[int], new: Any, index: int) -> int:
        """How many new tokens a prompt may have."""
        most = self.manifest.cache.max_seq_len
        if new is not None and (not is_whole(new) or new < 1):
            raise InputError(f"max_new_tokens is {shown(new)}, it must be an integer >= 1; give -n 1 or more")
        room = most - len(ids)
        if room < 1:
            raise InputError(
                f"prompt {index} has {len(ids)} tokens and this bundle holds sequences of at most {most}, new tokens "
                f"included; shorten it to {most - 1} or export with a larger --max-seq-len"
            )
        if new is None:
            return min(DEFAULT_NEW_TOKENS, room)
        if new > room:
            raise InputError(
                f"prompt {index} has {len(ids)} tokens and {shown(new)} new ones were asked for, but this bundle holds "
                f"sequences of at most {most}; ask for at most {room} or export with a larger --max-seq-len"
            )
        return int(new)

    def _stop_texts(self, stop: Any) -> tuple[str, ...]:
        texts = _listed("stop", stop)
        if texts and self.tokenizer is None:
            raise InputError("stop texts need a tokenizer and this bundle has no tokenizer.json; use stop_token_ids")
        if len(texts) > MAX_STOP_TEXTS:
            raise InputError(f"{len(texts)} stop texts were given, the limit is {MAX_STOP_TEXTS}; give fewer")
        for text in texts:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise InputError(
                    f"the stop text {shown(text)} is not usable; give a text of 1 to {MAX_STOP_LENGTH} characters"
                )
        return texts

    def _stop_tokens(self, given: Any, ignore_eos: bool) -> tuple[int, ...]:
        listed = _listed("stop_token_ids", given)
        if len(listed) > MAX_STOP_TOKENS:
            raise InputError(f"{len(listed)} stop token ids were given, the limit is {MAX_STOP_TOKENS}; give fewer")
        eos = () if ignore_eos else self.manifest.eos_token_ids
        return tuple(dict.fromkeys((*eos, *self._checked(listed, "stop_token_ids"))))


def _prompts(prompts: Any) -> list[Any]:
    """A list of prompts, also where one text or one flat list of ids was given."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        return [prompts]
    listed = list(prompts)
    if not listed:
        raise InputError("no prompt was given; give at least one text or list of token ids")
    return [listed] if all(map(is_whole, listed)) else listed


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    """None, one value or several as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str) or is_whole(value):
        return (value,)
    if not isinstance(value, Iterable):
        raise InputError(f"{name} is {shown(value)}; give one value or a list of them")
    return tuple(value)


def _per_sequence(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of `count` sequences, from one for all or a list."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value] * count
    listed = list(value)
    if len(listed) != count:
        raise InputError(f"{name} has {len(listed)} values for {count} prompts; give one value, or one for each prompt")
    return listed
