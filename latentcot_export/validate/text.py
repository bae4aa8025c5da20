"""Which tokens a validation reads: held-out text where there is some, else random ids."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from latentcot_export.bundle import Bundle
from latentcot_export.checkpoint import Checkpoint
from latentcot_export.errors import InputError
from latentcot_export.runtime.text import FILE as TOKENIZER
from latentcot_export.runtime.text import Tokenizer

from .runs import Ids

HELDOUT = "heldout.txt"
# Unequal, so that batches are ragged; long enough for a token to look back, short enough to have several of them.
_LENGTHS = (192, 128, 256, 160)
_MOST_BYTES = 64 << 20
_CHARACTERS_PER_TOKEN = 8  # a first guess, doubled until the text gives tokens enough


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Token ids int64 `[n]` per sequence, where they come from in a few words, and whether they are real text."""

    ids: list[Ids]
    source: str
    real_text: bool

    @property
    def tokens(self) -> int:
        """How many there are in all sequences."""
        return sum(len(each) for each in self.ids)


def choose_sequences(
    bundle: Bundle, against: Checkpoint | None, text: str | os.PathLike[str] | None, tokens: int, longest: int
) -> Sequences:
    """`tokens` tokens, or as many as the text has, in sequences of at most `longest`.

    From the file `text`, else from heldout.txt of the bundle or of the checkpoint, else (and without a tokenizer)
    random ids of a fixed seed. Errors: InputError for text that cannot be read or tokenized.
    """
    tokenizer = Tokenizer.of(bundle)
    if tokenizer is None and against is not None and (against.folder / TOKENIZER).is_file():
        where = against.folder / TOKENIZER
        tokenizer = Tokenizer(_read(where, "choose another checkpoint"), f"file {where}")
    if text is not None and tokenizer is None:
        raise InputError(
            f"bundle {bundle.folder} has no tokenizer.json, so the text {text} cannot be turned into tokens; leave out "
            "--text to validate with random ids, or export from a checkpoint that has a tokenizer"
        )
    found = _text(bundle, against, text)
    vocabulary = bundle.manifest.model.vocab_size
    if tokenizer is None or found is None:
        ids = np.random.default_rng(0).integers(0, vocabulary, tokens)
        return Sequences(_split(ids, longest, None), "random ids", False)
    source, content = found
    bos = _leading(tokenizer, bundle.manifest.bos_token_id)
    ids = _encode(tokenizer, content, tokens, bos)
    if len(ids) < 2:
        raise InputError(f"{source} has fewer than 2 tokens; give a longer text")
    if ids.max() >= vocabulary:
        raise InputError(
            f"{TOKENIZER} gives token id {ids.max()} for {source}, and the model's vocabulary ends at "
            f"{vocabulary - 1}; export again from a checkpoint whose tokenizer belongs to it"
        )
    return Sequences(_split(ids, longest, bos), source, True)


def _text(bundle: Bundle, against: Checkpoint | None, text: str | os.PathLike[str] | None) -> tuple[str, str] | None:
    """(name, content) of the text to read, None when there is none. Errors: InputError."""
    if text is not None:
        name, raw = Path(text).name, _read(Path(text), "give a readable file to --text")
    elif HELDOUT in bundle.manifest.files:
        name, raw = HELDOUT, bundle.read_bytes(HELDOUT)
    elif against is not None and (against.folder / HELDOUT).is_file():
        name, raw = HELDOUT, _read(against.folder / HELDOUT, "remove it or give --text")
    else:
        return None
    try:
        return name, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{text or name} is not UTF-8 text (byte {error.start}); give another with --text") from None


def _read(path: Path, remedy: str) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path} is larger than {_MOST_BYTES >> 20} MiB; {remedy} of at most that size")
    return raw


def _leading(tokenizer: Tokenizer, bos: int | None) -> int | None:
    """The id that this tokenizer puts before every text, if it is the model's BOS."""
    return bos if bos is not None and tokenizer.encode("")[:1] == [bos] else None


def _encode(tokenizer: Tokenizer, text: str, tokens: int, bos: int | None) -> Ids:
    """The first `tokens` ids of the text, BOS left out; only as much of it is tokenized as that takes."""
    length = tokens * _CHARACTERS_PER_TOKEN
    while True:
        ids = tokenizer.encode(text[:length])
        if bos is not None and ids[:1] == [bos]:
            ids = ids[1:]
        # the last few ids may be those of a word that was cut
        if len(ids) >= tokens + 8 or length >= len(text):
            return np.array(ids[:tokens], np.int64)
        length *= 2


def _split(ids: Ids, longest: int, bos: int | None) -> list[Ids]:
    """Consecutive sequences of unequal length up to `longest`, each beginning with BOS where the tokenizer adds one."""
    head = np.array([] if bos is None else [bos], np.int64)
    room = max(1, longest - len(head))
    parts: list[Ids] = []
    start = 0
    while start < len(ids):
        take = min(room, _LENGTHS[len(parts) % len(_LENGTHS)])
        parts.append(np.concatenate((head, ids[start : start + take])))
        start += take
    return parts
