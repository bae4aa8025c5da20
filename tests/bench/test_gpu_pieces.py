"""onnxruntime-gpu in pieces that travel, and how it runs from where they lie."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.bench.commands import run


def elf(*binaries: dict[int, bytes]) -> bytes:
    """A file with sections .nv_fatbin, of these fat binaries, and names."""
    fat = b""
    for codes in binaries:
        entries = b""
        for architecture, code in codes.items():
            head = struct.pack("<HHIQ", 2, 0x101, 64, len(code)) + bytes(12) + struct.pack("<I", architecture)
            entries += head + bytes(64 - len(head)) + code
        fat += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries + bytes(8)
    names = b"\0.nv_fatbin\0.names\0"
    sections = [(0, 0, 0), (1, 64, len(fat)), (12, 64 + len(fat), len(names))]
    table = b"".join(
        struct.pack("<IIQQQQ", name, 1, 0, 0, begin, size).ljust(64, b"\0") for name, begin, size in sections
    )
    begin = b"\x7fELF\x02" + bytes(35) + struct.pack("<Q", 64 + len(fat) + len(names))
    return begin.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2) + fat + names + table


def test_a_wheel_travels_in_pieces(scripts: None, tmp_path: Path) -> None:
    from gpu import pieces

    from latentcot_export.errors import InputError

    random = np.random.default_rng(0)
    codes = {80: random.bytes(4000), 90: random.bytes(5000), 120: random.bytes(3000)}
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr(pieces.PROVIDER, elf(codes))
        made.writestr("onnxruntime/__init__.py", "hello")
        made.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", "left out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 2000)
        patch.setattr(pieces, "GROUP", 4000)
        folders = pieces.pack(wheel, tmp_path / "packed")
    assert len(folders) > 1
    files = [path for folder in folders for path in folder.iterdir()]
    assert max(path.stat().st_size for path in files) <= 2000
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in files:
        shutil.copyfile(path, kept / path.name)
    pieces.unpack(kept, tmp_path / "site")
    assert (tmp_path / "site/onnxruntime/__init__.py").read_text() == "hello"
    assert not list((tmp_path / "site").rglob("libonnxruntime.so*"))
    expected = elf({each: code if each == 90 else bytes(len(code)) for each, code in codes.items()})
    assert (tmp_path / "site" / pieces.PROVIDER).read_bytes() == expected
    (kept / "provider.0").unlink()
    with pytest.raises(InputError, match="keep every group"):
        pieces.unpack(kept, tmp_path / "again")
    with pytest.raises(InputError, match="none for sm_100"):
        pieces.pack(wheel, tmp_path / "other", 100)
    with pytest.raises(InputError, match=r"code for \[80\] and none for sm_90"):
        pieces.keep_architecture(bytearray(elf(codes, {80: bytes(8)})), 90)
    assert pieces.keep_architecture(bytearray(elf(codes, {121: bytes(8)})), 90)[121] == 1  # for newer ones alone
    with pytest.raises(InputError, match=r"has code for \[121\] and none for sm_90; give one of these"):
        pieces.keep_architecture(bytearray(elf({121: bytes(8)})), 90)


@pytest.mark.parametrize("words", ["pack README.md build/nowhere", "keep build/nowhere/1"])
def test_onnxruntime_refuses_in_one_sentence(words: str) -> None:
    done = run("benchmarks/gpu/onnxruntime_cuda.py", *words.split())
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_onnxruntime_is_the_carried_one(scripts: None, tmp_path: Path) -> None:
    from gpu import pieces

    with zipfile.ZipFile(tmp_path / "some.whl", "w") as made:
        made.writestr(pieces.PROVIDER, elf({90: bytes(100)}))
        made.writestr("onnxruntime/__init__.py", "raise SystemExit('the carried one')")
    (folder,) = pieces.pack(tmp_path / "some.whl", tmp_path / "packed")
    done = run("benchmarks/gpu/onnxruntime_cuda.py", "run", "nothing", str(folder), TMPDIR=str(tmp_path))
    assert done.returncode == 1 and "the carried one" in done.stderr, done.stderr
