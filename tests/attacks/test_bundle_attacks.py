"""Hostile bundles: each must be refused with one sentence, before anything of it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from latentcot_export.bundle import open_bundle
from latentcot_export.bundle.manifest import Manifest
from latentcot_export.errors import InputError
from tests.bundle.sample import FILES, forge, full_manifest, tree, write_bundle


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("pristine") / "b").folder


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "b")


def refuse(folder: Path, *parts: str) -> None:
    before = tree(folder.parent)
    with pytest.raises(InputError) as refusal:
        open_bundle(folder)
    sentence = str(refusal.value)
    assert sentence.isprintable()
    assert "; " in sentence, "what to do next"
    for part in parts:
        assert part in sentence
    assert tree(folder.parent) == before, "reading changes nothing"


def test_every_flipped_bit_of_the_manifest_is_seen() -> None:
    raw = full_manifest().to_bytes()
    assert Manifest.from_bytes(raw) == full_manifest()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            Manifest.from_bytes(bytes(damaged))


@pytest.mark.parametrize("name", [*FILES, "latentcot.json"])
def test_a_flipped_bit_of_any_file_is_seen(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for place in {0, len(good) // 3, len(good) - 1}:
        for bit in range(8):
            data = bytearray(good)
            data[place] ^= 1 << bit
            (folder / name).write_bytes(data)
            refuse(folder, f"file {name} of bundle {folder}")
    (folder / name).write_bytes(good)
    open_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_size_is_seen_before_any_is_hashed(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for other in FILES:
        (folder / other).write_bytes(bytes(len(FILES[other])))  # every sha256 is wrong, and that is not what is said
    for data in (good[:-1], good + b"\0", b""):
        (folder / name).write_bytes(data)
        refuse(folder, f"file {name} ", f"has {len(data)} bytes where its manifest states {len(good)}")


@pytest.mark.parametrize("name", [*FILES, "latentcot.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuse(folder, name)


@pytest.mark.parametrize("name", [*FILES, "latentcot.json", "validation.json", "bench.json"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_out_of_the_bundle(folder: Path, name: str, link: Callable[[Path, Path], None]) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    link(outside, folder / name)
    refuse(folder, f"file {name} of bundle", "symbolic link" if link is os.symlink else "has 2 hard links")


@pytest.mark.parametrize("target", ["nowhere", "model.onnx", "config.json"])
def test_a_link_that_dangles_loops_or_stays_inside(folder: Path, target: str) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(target)
    refuse(folder, "file config.json ", "is a symbolic link")


@pytest.mark.parametrize("name", ["model.onnx", "latentcot.json", "validation.json"])
def test_what_is_no_regular_file_is_not_opened(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)  # opening it would wait for a writer for ever
    refuse(folder, f"file {name} ", "is not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refuse(folder, f"file {name} ", "is not a regular file")
    (folder / name).rmdir()
    with socket.socket(socket.AF_UNIX) as server:
        short = os.path.relpath(folder / name)
        server.bind(short if len(short) < len(str(folder / name)) else str(folder / name))
        refuse(folder, f"file {name} ", "is not a regular file")


@pytest.mark.parametrize("name", ["extra.py", ".hidden", "model.onnx.data2", "sub", "\x1b[2J", "a\nb"])
def test_what_the_manifest_does_not_list(folder: Path, name: str) -> None:
    if name == "sub":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(b"")
    refuse(folder, "which its manifest does not list; move it out")


def test_a_name_that_is_not_unicode(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/\xff\xfe", "wb"):
        pass
    refuse(folder, "which its manifest does not list")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "..",
        ".",
        "",
        "sub/model.onnx",
        "sub\\model.onnx",
        "C:model.onnx",
        ".hidden",
        "a..b",
        "model.onnx\n",
        "model\0.onnx",
        "mödel.onnx",
        "model onnx",
        "MODEL.onnx",
        "Latentcot.JSON",
        "validation.json",
        "n" * 129,
        os.path.join(os.sep, "outside"),
    ],
)
def test_a_manifest_path_out_of_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_bytes(b"secret")
    entries = full_manifest().files
    forge(folder, {"files": {**entries, name: {"size": 6, "sha256": "0" * 64}}})
    refuse(folder, "file latentcot.json of bundle", "files names ")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"size": 1},
        {"size": 1, "sha256": "0" * 64, "url": "x"},
        {"size": -1, "sha256": "0" * 64},
        {"size": 1.0, "sha256": "0" * 64},
        {"size": True, "sha256": "0" * 64},
        {"size": 1 << 51, "sha256": "0" * 64},
        {"size": 1, "sha256": "0" * 63},
        {"size": 1, "sha256": "A" * 64},
        {"size": 1, "sha256": "0" * 64 + "\n"},
        {"size": 1, "sha256": None},
        [],
        None,
    ],
)
def test_a_broken_entry(folder: Path, entry: object) -> None:
    forge(folder, {"files": {**full_manifest().files, "model.onnx": entry}})
    refuse(folder, "file latentcot.json of bundle", "model.onnx")


def test_a_manifest_that_lists_too_little_or_too_much(folder: Path) -> None:
    entries = dict(full_manifest().files)
    forge(folder, {"files": {}})
    refuse(folder, "files is empty")
    forge(folder, {"files": {name: entry for name, entry in entries.items() if name != "model.onnx"}})
    refuse(folder, "files lacks model.onnx")
    forge(folder, {"files": {**entries, **{f"f{i}": entries["model.onnx"] for i in range(300)}}})
    refuse(folder, "at most 256 keys")


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        ("\ufeff{}".encode(), "not valid JSON"),
        (b"{}", "lacks the key"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"NaN", "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "too large"),
        (b'{"a": 1, "a": 1}', "states the key 'a' twice"),
        (b'{"a": "\\ud800"}', "not Unicode"),
        (b"[" * 200_000, "nests more than"),
        (b"[" * 20 + b"]" * 20, "nests more than"),
        (b'{"a":' * 100_000, "nests more than"),
        (b" " * ((1 << 20) + 1), "more than 1048576 bytes"),
        (b'{"schema_version": 7}', "upgrade"),
    ],
)
def test_broken_json(folder: Path, raw: bytes, part: str) -> None:
    (folder / "latentcot.json").write_bytes(raw)
    refuse(folder, f"file latentcot.json of bundle {folder}", part)


@pytest.mark.parametrize("part", ["model", "recurrence", "cache", "family", "dtype", "source", "eos_token_ids"])
def test_a_sentence_stays_short_whatever_the_file_holds(folder: Path, part: str) -> None:
    long = "x" * 500_000
    inner = {"model": "rope", "recurrence": "router_type", "cache": "dtype", "source": "name"}.get(part)
    value = json.loads((folder / "latentcot.json").read_bytes())[part]
    for change in (long, {long: long}, {**value, inner: long} if inner else [long]):
        forge(folder, {part: change})
        with pytest.raises(InputError) as refusal:
            open_bundle(folder)
        assert len(str(refusal.value)) < 600 + len(str(folder))


def test_a_huge_manifest_is_not_read_whole(folder: Path) -> None:
    with open(folder / "latentcot.json", "r+b") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no disk
    refuse_only = pytest.raises(InputError, match="more than 1048576 bytes")
    with refuse_only:
        open_bundle(folder)


def test_a_huge_listed_size_allocates_nothing(folder: Path) -> None:
    forge(folder, {"files": {**full_manifest().files, "model.onnx": {"size": 1 << 50, "sha256": "0" * 64}}})
    refuse(folder, "has 256 bytes where its manifest states 1125899906842624")


def test_a_digest_that_does_not_hold(folder: Path) -> None:
    data = json.loads((folder / "latentcot.json").read_bytes())
    (folder / "latentcot.json").write_text(json.dumps({**data, "digest": "0" * 64}))
    refuse(folder, "does not have the sha256 it states as its digest")
    (folder / "latentcot.json").write_text(json.dumps(data))
    refuse(folder, "not spelled as it was written")


def test_files_of_another_bundle(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "other")
    data = bytes(reversed(FILES["model.onnx.data"]))
    assert data != FILES["model.onnx.data"]
    (folder / "model.onnx.data").write_bytes(data)
    refuse(folder, "file model.onnx.data of bundle", "does not have the sha256 its manifest states; export it again")


def test_a_file_that_is_swapped_for_a_link_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hashed is what was opened, and it is not opened through a link."""
    outside = folder.parent / "outside"
    outside.write_bytes(FILES["model.onnx"])
    bundle = open_bundle(folder)
    before = os.lstat(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: before if str(path).endswith("model.onnx") else real(path))
    for read in (lambda: open_bundle(folder), lambda: bundle.read_bytes("model.onnx")):
        with pytest.raises(InputError, match=r"file model\.onnx of bundle .* is a symbolic link"):
            read()
