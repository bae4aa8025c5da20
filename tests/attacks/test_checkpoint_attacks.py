"""Checkpoints that are broken or hostile: one sentence each, nothing executed, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import (
    init_checkpoint,
    random_tensors,
    read_checkpoint,
    special_tokens,
    tokenizer_files,
    write_checkpoint,
)
from latentcot_export.errors import InputError
from latentcot_export.strict_json import MAX_JSON_BYTES
from tests.checkpoint.sample import MODEL, RECURRENCE, adaptive, edit_config, shard, stock

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adaptive(tmp_path / "c").folder


@pytest.fixture(scope="module")
def spoilable() -> Iterator[Path]:
    """A folder for the tests that write its weights anew before every reading."""
    with tempfile.TemporaryDirectory() as place:
        yield adaptive(Path(place) / "c").folder


@pytest.fixture(scope="module")
def good_weights(spoilable: Path) -> bytes:
    return (spoilable / WEIGHTS).read_bytes()


def refusal(folder: Path | str, read: Callable[[Any], object] = read_checkpoint) -> str:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(folder)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 1000, text
    assert "; " in text, f"no advice: {text}"
    assert time.monotonic() - start < 5.0
    return text


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


# --- config.json -----------------------------------------------------------------------------------------------------

BROKEN_JSON = {
    "empty": b"",
    "cut": b'{"model_type": "adap',
    "trailing": b"{} {}",
    "comment": b'{"a": 1 /* one */}',
    "single quotes": b"{'a': 1}",
    "list": b"[]",
    "string": b'"llama"',
    "null": b"null",
    "NaN": b'{"halt_threshold": NaN}',
    "Infinity": b'{"a": [Infinity]}',
    "-Infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "huge integer": b'{"a": ' + b"9" * 100_000 + b"}",
    "duplicate key": b'{"vocab_size": 40, "vocab_size": 41}',
    "duplicate key inside": b'{"rope_parameters": {"factor": 1, "factor": 2}}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "latin-1": b'{"a": "\xe9"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate key": b'{"\\udfff": 1}',
    "control character": b'{"a": "\x00"}',
    "deep list": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 200 + b"1" + b"}" * 200,
    "unclosed deep": b"[" * 1_000_000,
    "too large": b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}',
}


@pytest.mark.parametrize("name", ["config.json", INDEX, "generation_config.json"])
@pytest.mark.parametrize("kind", list(BROKEN_JSON))
def test_broken_json_is_refused_wherever_it_is_read(folder: Path, name: str, kind: str) -> None:
    if name == INDEX:
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(BROKEN_JSON[kind])
    text = refusal(folder, lambda place: special_tokens(read_checkpoint(place)))
    assert name in text


@given(st.binary(max_size=40))
def test_any_bytes_as_config_give_a_sentence(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_bytes(data)
        refusal(place)


@pytest.mark.parametrize("value", ["gpt2", "", None, 5, ["llama"], "llama\n", "x" * 10_000, "\x1b[2J"])
def test_an_unknown_family_lists_the_known_ones(folder: Path, value: Any) -> None:
    edit_config(folder, model_type=value)
    text = refusal(folder)
    assert "known families are " in text and "adaptive_latent_cot, gpt_neox, llama, " in text
    assert text.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**15},
        {"hidden_size": 1 << 24, "intermediate_size": 1 << 24, "head_dim": 4, "num_hidden_layers": 1024},
        {"max_latents": 64, "router_shared": False, "router_type": "mlp", "router_hidden_size": 1 << 24},
        {"max_latents": 10**9},
        {"max_latents": -1},
        {"max_latents": 2.5},
        {"halt_threshold": None},
        {"halt_threshold": -1e-9},
        {"router_type": "../linear"},
        {"router_type": "mlp"},
        {"router_shared": "yes"},
        {"embedding_scale": [1.0]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_claims_of_the_config_cost_nothing_and_are_refused(folder: Path, change: dict[str, Any]) -> None:
    edit_config(folder, **change)
    refusal(folder)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_truncated_weights_are_refused_at_every_length(folder: Path, good_weights: bytes) -> None:
    header = 8 + struct.unpack("<Q", good_weights[:8])[0]
    lengths = {*range(0, 12), header - 1, header, header + 1, len(good_weights) - 1, *range(20, header, 97)}
    for length in sorted(lengths):
        (folder / WEIGHTS).write_bytes(good_weights[:length])
        assert "safetensors" in refusal(folder), length


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MISSHAPEN: dict[str, bytes] = {
    "trailing bytes": safetensors({"a": ENTRY}, b"12345"),
    "no data": safetensors({"a": ENTRY}),
    "header length 2**64-1": safetensors({"a": ENTRY}, b"1234", length=2**64 - 1),
    "header length 2**40": safetensors({"a": ENTRY}, b"1234", length=2**40),
    "header past the end": safetensors({"a": ENTRY}, b"1234", length=1000),
    "header of zeros": bytes(64),
    "header not JSON": safetensors(b"not json"),
    "header a list": safetensors(b"[]"),
    "name twice": safetensors(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2), b"1234"),
    "deep header": safetensors(b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "overlap": safetensors({"a": ENTRY, "b": ENTRY}, b"1234"),
    "partial overlap": safetensors({"a": ENTRY, "b": {**ENTRY, "data_offsets": [2, 6]}}, b"123456"),
    "hole": safetensors({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 12]}}, bytes(12)),
    "hole at the start": safetensors({"a": {**ENTRY, "data_offsets": [4, 8]}}, bytes(8)),
    "backwards": safetensors({"a": {**ENTRY, "data_offsets": [4, 0]}}, b"1234"),
    "negative offset": safetensors({"a": {**ENTRY, "data_offsets": [-4, 0]}}, b"1234"),
    "three offsets": safetensors({"a": {**ENTRY, "data_offsets": [0, 4, 4]}}, b"1234"),
    "float offsets": safetensors({"a": {**ENTRY, "data_offsets": [0.0, 4.0]}}, b"1234"),
    "negative shape": safetensors({"a": {**ENTRY, "shape": [-1, -1]}}, b"1234"),
    "boolean shape": safetensors({"a": {**ENTRY, "shape": [True]}}, b"1234"),
    "shape too large": safetensors({"a": {**ENTRY, "shape": [2]}}, b"1234"),
    "shape overflows 64 bits": safetensors({"a": {**ENTRY, "shape": [2**33, 2**33]}}, b"1234"),
    "shape wraps to 1": safetensors({"a": {**ENTRY, "shape": [2**32, 2**32, 2**32]}}, b"1234"),
    "shape of many": safetensors({"a": {**ENTRY, "shape": [1] * 100}}, b"1234"),
    "shape a number": safetensors({"a": {**ENTRY, "shape": 1}}, b"1234"),
    "dtype missing": safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "dtype a number": safetensors({"a": {**ENTRY, "dtype": 32}}, b"1234"),
    "one field more": safetensors({"a": {**ENTRY, "strides": [1]}}, b"1234"),
    "entry a list": safetensors({"a": [1]}, b"1234"),
    "metadata not text": safetensors({"__metadata__": {"x": 1}, "a": ENTRY}, b"1234"),
    "metadata a list": safetensors({"__metadata__": [], "a": ENTRY}, b"1234"),
    "no tensors": safetensors({}),
    "zip (a torch pickle)": b"PK\x03\x04" + bytes(200),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}


@pytest.mark.parametrize("kind", list(MISSHAPEN))
def test_misshapen_weight_files_are_refused(folder: Path, kind: str) -> None:
    (folder / WEIGHTS).write_bytes(MISSHAPEN[kind])
    text = refusal(folder)
    assert str(folder) in text and (kind != "Git LFS pointer" or "git lfs pull" in text)


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_byte_of_a_weight_file_is_harmless(
    data: st.DataObject, spoilable: Path, good_weights: bytes
) -> None:
    header = 8 + struct.unpack("<Q", good_weights[:8])[0]
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(good_weights) - 1)))
    changed = bytearray(good_weights)
    changed[place] ^= data.draw(st.integers(1, 255))
    (spoilable / WEIGHTS).write_bytes(changed)
    try:
        read = read_checkpoint(spoilable)
    except InputError as error:
        assert "\n" not in str(error)
    else:  # other weights, or another word in the header's free text
        assert all(bool(torch.isfinite(value).all()) for value in read.tensors.values())


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Bomb(tmp_path / "mark")}, folder / name)
    text = refusal(folder)
    assert name in text and "convert it to safetensors" in text
    (folder / name).rename(folder / WEIGHTS)
    refusal(folder)
    assert not (tmp_path / "mark").exists()


def test_other_folders_without_weights_get_their_own_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.gguf")
    assert "GGUF" in refusal(folder)
    (folder / "model.gguf").unlink()
    assert "has no model.safetensors" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")
    refusal(tmp_path / ("x" * 5000))
    refusal(f"{tmp_path}/nul\0byte")


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "..",
        ".",
        "",
        ".hidden.safetensors",
        "C:model.safetensors",
        "model.bin",
        "config.json",
        "model\0.safetensors",
        "model\n.safetensors",
        "\x1b[2Jm.safetensors",
        "x" * 300 + ".safetensors",
        None,
        5,
        ["model.safetensors"],
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_an_index_cannot_name_anything_but_a_shard_of_the_folder(folder: Path, name: Any) -> None:
    (folder.parent / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    weight_map = shard(folder)
    first = sorted(weight_map)[0]
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, first: name}}))
    text = refusal(folder)
    assert first in text and text.isprintable()


def test_an_index_that_disagrees_with_its_shards_is_refused(folder: Path) -> None:
    weight_map = shard(folder)

    def attempt(**index: Any) -> str:
        (folder / INDEX).write_text(json.dumps(index))
        return refusal(folder)

    one, two = sorted(set(weight_map.values()))
    names = sorted(weight_map)
    assert "weight_map" in attempt()
    assert "weight_map" in attempt(weight_map=[])
    assert "weight_map" in attempt(weight_map={})
    assert "does not place there" in attempt(weight_map={k: v for k, v in weight_map.items() if k != names[0]})
    assert "does not place there" in attempt(weight_map={**weight_map, names[0]: two})
    assert "which does not hold it" in attempt(weight_map={**weight_map, "extra": one})
    assert "is not there" in attempt(weight_map={**weight_map, "extra": "model-9.safetensors"})
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / one).write_bytes((folder / one).read_bytes()[:-1])
    assert "truncated" in refusal(folder)
    (folder / one).unlink()
    assert "complete the download" in refusal(folder)


# --- links and special files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "generation_config.json"])
def test_links_and_special_files_are_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    def use(place: Path) -> None:
        special_tokens(read_checkpoint(place))
        tokenizer_files(place)

    outside = tmp_path / "blob"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    path = folder / name

    def replace(make: Callable[[], object]) -> str:
        path.unlink(missing_ok=True)
        make()
        text = refusal(folder, use)
        assert name in text
        return text

    assert "`cp -rL`" in replace(lambda: path.symlink_to(outside))
    assert "`cp -rL`" in replace(lambda: path.symlink_to("../blob"))
    assert "link to nothing" in replace(lambda: path.symlink_to("gone"))
    replace(lambda: path.symlink_to(name))
    assert "not a regular file" in replace(lambda: os.mkfifo(path))
    assert "not a regular file" in replace(lambda: path.symlink_to("."))
    assert "not a regular file" in replace(path.mkdir)


def test_a_link_between_shards_and_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    one = sorted(set(shard(folder).values()))[0]
    (folder / one).rename(tmp_path / "blob")
    (folder / one).symlink_to(tmp_path / "blob")
    assert "`cp -rL`" in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_named(folder: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        (folder / name).chmod(0)
        assert name in refusal(folder)


# --- writing ---------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("room", [100, 1000, 6000])
@pytest.mark.parametrize("force", [False, True])
def test_no_room_leaves_nothing_new(tmp_path: Path, room: int, force: bool) -> None:
    """A real limit on file sizes stands in for a full disk: the system call fails in the same place."""
    config = adaptive(tmp_path / "c").config
    before = tree(tmp_path)
    tensors = random_tensors(MODEL, RECURRENCE, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_checkpoint(tmp_path / ("c" if force else "d"), config, tensors, force=force)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["c"]


def test_init_of_a_broken_base_writes_nothing(tmp_path: Path) -> None:
    base = stock(tmp_path / "base").folder
    weights = (base / WEIGHTS).read_bytes()
    (base / WEIGHTS).write_bytes(weights[:-4])
    refusal(base, lambda place: init_checkpoint(place, tmp_path / "new" / "out", 2))
    (base / WEIGHTS).write_bytes(weights)
    (base / "tokenizer.json").symlink_to("/etc/hostname")
    refusal(base, lambda place: init_checkpoint(place, tmp_path / "new" / "out", 2))
    assert os.listdir(tmp_path) == ["base"]
    refusal(base, lambda place: init_checkpoint(place, f"{tmp_path}/nul\0byte", 2))
