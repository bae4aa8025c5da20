"""Which tokens are read: heldout.txt, a file, or random ids, cut into sequences that a batch can hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from latentcot_export.bundle import Bundle, BundleWriter
from latentcot_export.checkpoint import Checkpoint, read_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.validate.text import choose_sequences
from tests.bundle.sample import manifest

WORDS = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(61))]
TEXT = " ".join(WORDS[3 + i * i % 61] for i in range(1000))


def tokenizer_json(bos: bool = False, words: list[str] = WORDS) -> bytes:
    """A tokenizer of one id a word."""
    tokenizer = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str().encode()


def bundle_with(out: Path, **files: bytes) -> Bundle:
    model = dataclasses.replace(manifest().model, vocab_size=64)
    with BundleWriter(out) as writer:
        for name, data in {"config_json": b"{}", "model_onnx": b"g", "model_onnx_data": b"w", **files}.items():
            (writer.folder / name.replace("_", ".")).write_bytes(data)
        return writer.commit(manifest(model=model, eos_token_ids=(1,), bos_token_id=0))


def ids_of(sequences: list[np.ndarray]) -> list[int]:
    return [int(token) for each in sequences for token in each]


def test_heldout_text_of_the_bundle(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json(), heldout_txt=TEXT.encode())
    found = choose_sequences(bundle, None, None, 500, 256)
    assert found.real_text and found.source == "heldout.txt" and found.tokens == 500
    assert ids_of(found.ids) == [3 + i * i % 61 for i in range(500)]
    lengths = [len(each) for each in found.ids]
    assert max(lengths) <= 256 and len(set(lengths)) > 1, "batches should be ragged"
    assert all(len(each) <= 20 for each in choose_sequences(bundle, None, None, 500, 20).ids)


def test_a_text_that_is_shorter_than_wanted_is_read_whole(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json(), heldout_txt=TEXT.encode())
    assert choose_sequences(bundle, None, None, 5000, 256).tokens == 1000


def test_a_file_goes_before_heldout_text(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("w5 w6 w7 w7", encoding="utf-8")
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json(), heldout_txt=TEXT.encode())
    found = choose_sequences(bundle, None, tmp_path / "own.txt", 500, 256)
    assert found.source == "own.txt" and ids_of(found.ids) == [8, 9, 10, 10]


def test_every_sequence_begins_as_a_prompt_does(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json(bos=True), heldout_txt=TEXT.encode())
    found = choose_sequences(bundle, None, None, 300, 100)
    assert len(found.ids) > 2 and all(each[0] == 0 and 0 not in each[1:] for each in found.ids)
    assert [token for token in ids_of(found.ids) if token] == [3 + i * i % 61 for i in range(300)]
    assert max(len(each) for each in found.ids) <= 100


def test_without_text_or_tokenizer_ids_are_random_and_always_the_same(tmp_path: Path) -> None:
    bare = bundle_with(tmp_path / "bare")
    found = choose_sequences(bare, None, None, 300, 128)
    assert not found.real_text and found.source == "random ids" and found.tokens == 300
    ids = ids_of(found.ids)
    assert min(ids) >= 0 and max(ids) < 64 and len(set(ids)) > 50
    assert ids == ids_of(choose_sequences(bare, None, None, 300, 128).ids)
    untold = bundle_with(tmp_path / "untold", tokenizer_json=tokenizer_json())
    assert not choose_sequences(untold, None, None, 300, 128).real_text
    unread = bundle_with(tmp_path / "unread", heldout_txt=TEXT.encode())
    assert not choose_sequences(unread, None, None, 300, 128).real_text


def test_text_and_tokenizer_of_the_checkpoint(tmp_path: Path, random_checkpoint: Path) -> None:
    checkpoint: Checkpoint = dataclasses.replace(read_checkpoint(random_checkpoint), folder=tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "heldout.txt").write_text(TEXT, encoding="utf-8")
    bare = bundle_with(tmp_path / "bare")
    found = choose_sequences(bare, checkpoint, None, 50, 128)
    assert found.real_text and ids_of(found.ids) == [3 + i * i % 61 for i in range(50)]


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(InputError, match=r"has no tokenizer\.json.*leave out --text"):
        choose_sequences(bundle_with(tmp_path / "x"), None, tmp_path / "own.txt", 50, 128)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        (b"", "fewer than 2 tokens"),
        (b"w3", "fewer than 2 tokens"),
        (b"w3 \xff\xfe w4", "not UTF-8 text"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json())
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        choose_sequences(bundle, None, tmp_path / "own.txt", 50, 128)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    words = [*WORDS, *(f"x{i}" for i in range(10))]
    bundle = bundle_with(tmp_path / "x", tokenizer_json=tokenizer_json(words=words), heldout_txt=b"w1 w2 x9 x8")
    with pytest.raises(InputError, match=r"token id 73.*vocabulary ends at 63"):
        choose_sequences(bundle, None, None, 50, 128)
