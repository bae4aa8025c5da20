from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.checkpoint import SpecialTokens, read_checkpoint, special_tokens, tokenizer_files
from latentcot_export.errors import InputError
from tests.checkpoint.sample import edit_config, stock


def tokens_of(folder: Path, generation: Any = None, **config: Any) -> SpecialTokens:
    if not folder.exists():
        stock(folder)
    edit_config(folder, **config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return special_tokens(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("generation", "config", "want"),
    [
        (None, {}, ((), None)),
        (None, {"eos_token_id": 2, "bos_token_id": 1}, ((2,), 1)),
        (None, {"eos_token_id": [7, 2, 7], "bos_token_id": None}, ((7, 2), None)),
        ({}, {"eos_token_id": 2, "bos_token_id": 1}, ((2,), 1)),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 2, "bos_token_id": 1}, ((5, 6), 1)),
        ({"eos_token_id": None, "bos_token_id": 0}, {"eos_token_id": 2, "bos_token_id": 1}, ((2,), 0)),
        ({"eos_token_id": []}, {"eos_token_id": 2}, ((), None)),
        (None, {"eos_token_id": 39, "bos_token_id": [4]}, ((39,), 4)),
    ],
)
def test_generation_config_comes_first(tmp_path: Path, generation: Any, config: dict[str, Any], want: Any) -> None:
    assert tokens_of(tmp_path / "c", generation, **config) == want


@pytest.mark.parametrize("value", [40, -1, 1.0, True, "2", {}, [[1]], [1, 40]])
@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id"])
def test_other_values_name_the_file_and_the_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"config.json: {key} is .*token ids from 0 to 39; fix that file"):
        tokens_of(tmp_path / "c", **{key: value})
    with pytest.raises(InputError, match=rf"generation_config.json: {key} is"):
        tokens_of(tmp_path / "c", {key: value}, **{key: 1})


def test_there_may_not_be_too_many(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bos_token_id lists 2 ids, at most 1"):
        tokens_of(tmp_path / "c", bos_token_id=[1, 2])
    edit_config(tmp_path / "c", vocab_size=40, bos_token_id=None)
    assert len(tokens_of(tmp_path / "c", eos_token_id=list(range(40))).eos_token_ids) == 40


def test_the_files_that_travel_are_listed_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["heldout.txt", "tokenizer.json", "vocab.json", "generation_config.json", "other.txt"]
    stock(tmp_path / "c", extra_files=dict.fromkeys(names, b"{}"))
    found = tokenizer_files(tmp_path / "c")
    assert list(found.items()) == [
        (name, tmp_path / "c" / name) for name in ("tokenizer.json", "generation_config.json", "heldout.txt")
    ]
