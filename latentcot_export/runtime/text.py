"""Text to token ids and back: the bundle's tokenizer, text that grows by tokens, and texts that stop a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from ..bundle import Bundle
from ..errors import InputError

FILE = "tokenizer.json"
_BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not one yet
_CONTEXT = 8  # ids decoded before a new one: a decoder may strip or add a space at the beginning of what it is given
_MOST_BROKEN = 16  # an unfinished character has at most 3 bytes; a longer run of broken ones will never be finished


class Tokenizer:
    """The tokenizer of a bundle. `encode` adds the special tokens that its post-processor adds, such as BOS."""

    def __init__(self, data: bytes, where: str) -> None:
        """Read the bytes of a tokenizer.json. Errors: InputError that begins with `where` when they are none."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            reason = (str(error).splitlines() or [""])[0][:200]
            raise InputError(f"{where} cannot be read ({reason}); export the bundle again") from None
        # such settings are left over from training and would cut or pad a prompt without a word
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer | None:
        """The bundle's tokenizer, None when it has none. Errors: InputError."""
        if FILE not in bundle.manifest.files:
            return None
        return cls(bundle.read_bytes(FILE), f"file {FILE} of bundle {bundle.folder}")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Errors: InputError for a text that is no Unicode (a lone surrogate)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a broken character at place {error.start}; give text in valid UTF-8"
            ) from None
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; ids the tokenizer does not know give nothing."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class Detokenizer:
    """Text of one sequence, given out as soon as it cannot change any more.

    A character may be spread over several tokens, and a decoder may treat the beginning of a text in its own way:
    therefore the last few ids are decoded together each time, and a broken end is held back until it is whole or
    cannot become so.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._given = len(_whole(tokenizer.decode(self._ids)))  # characters of the window that are out already

    def push(self, token: int) -> str:
        """The text that became certain with this token, possibly none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = _whole(text)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if len(self._ids) > 2 * _CONTEXT and whole == text:
            self._shorten(text)
        return new

    def finish(self) -> str:
        """What was held back: bytes that never became a character."""
        rest = self._tokenizer.decode(self._ids)[self._given :]
        self._given += len(rest)
        return rest

    def _shorten(self, text: str) -> None:
        """Keep the last ids only, where that cuts no character."""
        kept = self._ids[-_CONTEXT:]
        tail = self._tokenizer.decode(kept)
        if text.endswith(tail) and _BROKEN not in tail:
            self._ids, self._given = kept, len(tail)


class StopTexts:
    """Finds texts that end a sequence, across pieces; holds back an end that may be the beginning of one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Text that is certain, and whether a stop text was found: everything from its first place on is dropped."""
        text = self._held + piece
        found = [place for each in self._texts if (place := text.find(each)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        begun = max((_begun(text, each) for each in self._texts), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop text."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """New text of one sequence: tokens go in, text that is certain and stands before any stop text comes out."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop_texts: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stop_texts = StopTexts(stop_texts)

    def push(self, token: int) -> tuple[str, bool]:
        """Text that became certain with this token, and whether it completed a stop text."""
        return self._stop_texts.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """What was held back for a character or a stop text that did not come."""
        text, found = self._stop_texts.push(self._detokenizer.finish())
        return text if found else text + self._stop_texts.finish()


def _whole(text: str) -> str:
    """The text without a broken end that further tokens may still make whole."""
    whole = text.rstrip(_BROKEN)
    return text if len(text) - len(whole) > _MOST_BROKEN else whole


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop, short of all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
