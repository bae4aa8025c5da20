"""`LatentCoTForCausalLM`: a bundle as a model that generates, in the habits of `transformers` and without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..bundle import Bundle, Manifest, open_bundle
from ..errors import InputError
from ..strict_json import shown
from .generation import GenerateOutput, Generation
from .sampling import SamplingParams, is_whole
from .sequence import Request
from .session import GraphSession
from .text import Tokenizer

DEFAULT_NEW_TOKENS = 64
MAX_THREADS = 1024
# Bounds on what one request can cost the host beside the model.
MAX_STOP_TEXTS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 1024
# Passes of the first burst and of the longest. A stream begins with one pass, so that nobody waits for a burst to fill.
_STREAM_BURSTS = (1, 16)
_BATCH_BURSTS = (32, 32)

Prompt = str | Sequence[int]


class LatentCoTForCausalLM:
    """A model of a bundle, ready to generate. Make one with `from_pretrained`.

    `manifest` says what the bundle holds; `tokenizer` is None where it has none, and prompts must then be token ids.
    `session` runs the graph. Several threads may generate with one model at a time.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        """Load a bundle that `open_bundle` has verified. Errors: as `from_pretrained`."""
        if not is_whole(threads) or not 0 <= threads <= MAX_THREADS:
            raise InputError(
                f"threads is {shown(threads)}, it must be an integer from 0 to {MAX_THREADS}; give 0 for all cores"
            )
        self.manifest: Manifest = bundle.manifest
        self.tokenizer: Tokenizer | None = Tokenizer.of(bundle)
        self.session = GraphSession(bundle, int(threads))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], threads: int = 0) -> LatentCoTForCausalLM:
        """Open a bundle folder, verify every byte of it, and load it.

        `threads` for ONNX Runtime, 0 for its own choice (or OMP_NUM_THREADS). Errors: InputError, one sentence.
        """
        return cls(open_bundle(folder), threads)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | Sequence[int] | None = None,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
    ) -> GenerateOutput:
        """Continues texts or lists of token ids (one, or a list of them, mixed as you like); results in that order.

        A value holds for every sequence; a list gives one to each. In particular one `seed` is the seed of every
        sequence, so that a prompt gives the same tokens alone and in any batch: to draw several samples of one prompt,
        give a list of seeds. Temperature 0 is greedy, top_k 0 and top_p 1 are off (docs/sampling.md).
        A sequence ends after `max_new_tokens` (None: 64, or as many as there is room for), with one of the model's EOS
        tokens (unless `ignore_eos`) or of `stop_token_ids`, or where one of the texts `stop` appears in its new text.
        Lists beyond the bundle's `max_batch` are run in groups. Errors: InputError, one sentence, before anything runs.
        """
        arguments = (prompts, max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids, ignore_eos)
        generation = self._start(_BATCH_BURSTS, *arguments)
        for _event in generation:
            pass
        return generation.output()

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | Sequence[int] | None = None,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
    ) -> Generation:
        """As `generate`, token by token: an iterator over `StreamEvent` (sequence, token, depth, text, stop).

        The tokens of one sequence come in order; those of several are interleaved. Its `output()` is what `generate`
        returns, at any time. Closing it, or dropping it, ends it and frees its memory. Errors: as `generate`.
        """
        arguments = (prompts, max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids, ignore_eos)
        return self._start(_STREAM_BURSTS, *arguments)

    def _start(
        self,
        bursts: tuple[int, int],
        prompts: Any,
        max_new_tokens: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        seed: Any,
        stop: Any,
        stop_token_ids: Any,
        ignore_eos: bool,
    ) -> Generation:
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
        return Generation(self.session, self.tokenizer, requests, self.manifest.cache.max_batch, bursts)

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
        return tuple(int(token) for token in ids)

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
