"""Bundles and truths for the runtime's tests: a tokenizer that splits characters, the oracle's word on a sequence."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from latentcot_export.bundle import Bundle, BundleWriter, open_bundle
from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.model import LatentCoT, step_major

END = "<|end|>"
VOCAB = 96  # that of tests.bundles.RANDOM_MODEL
# Bytes of é, € and 😀 as byte-level tokenizers write them: no token of their own, so each takes 2, 3 and 4 tokens.
_BYTES = "Ã©" + "âĤ¬" + "ðŁĺĢ"
_MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("a", "n"), ("an", "d"), ("Ġ", "and")]


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE of 96 tokens: letters, some words, and characters that only several tokens make."""
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;!?0123456789", "Ġ", "Ċ", *_BYTES]
    tokens = [END, *letters, *("".join(pair) for pair in _MERGES)]
    assert len(tokens) == len(set(tokens)) <= VOCAB
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def rebundle(
    source: Path, out: Path, files: dict[str, bytes] | None = None, without: Sequence[str] = (), **changes: Any
) -> Path:
    """A copy of a bundle with files added, replaced or left out and manifest fields changed: valid by its hashes."""
    manifest = open_bundle(source).manifest
    with BundleWriter(out) as writer:
        for name in manifest.files.keys() - set(without):
            shutil.copyfile(source / name, writer.folder / name)
        for name, data in (files or {}).items():
            (writer.folder / name).write_bytes(data)
        bundle: Bundle = writer.commit(dataclasses.replace(manifest, files={}, **changes))
    return bundle.folder


class Oracle:
    """The PyTorch truth about whole sequences, in float64."""

    def __init__(self, checkpoint: Path) -> None:
        read = read_checkpoint(checkpoint)
        self.model = LatentCoT.from_tensors(read.model, read.recurrence, read.tensors, torch.float64)

    @torch.no_grad()
    def read(self, tokens: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Logits float64 `[T, V]` after each token, and the depth of each."""
        thoughts = step_major(self.model, torch.tensor([tokens]))
        return self.model.head(thoughts.mix)[0], thoughts.depths[0].tolist()

    def check_greedy(self, sequence: list[int], prompt: int, depths: list[int]) -> None:
        """Every new token is the most probable after what stands before it, and every depth is the learned one."""
        logits, wanted = self.read(sequence[:-1])
        assert depths == wanted
        assert logits[prompt - 1 :].argmax(-1).tolist() == sequence[prompt:]
