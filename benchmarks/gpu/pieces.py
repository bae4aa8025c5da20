"""A wheel of onnxruntime-gpu in pieces that a narrow way takes: the CUDA provider for one architecture, the rest as it is.

The provider's device code lies in fat binaries of its section .nv_fatbin, one entry for each architecture. The driver takes
the entry that fits and looks at no other, so the others' code becomes zeros, which compress to nothing; every offset in the
file stays. 284 MB with code for six architectures become 52 MB (onnxruntime-gpu 1.31.1, sm_90).
"""

from __future__ import annotations

import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from latentcot_export.errors import InputError

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# The C library, for programs in C: Python's module holds all of it once more. TensorRT's provider is another product's.
LEFT_OUT = ("onnxruntime/capi/libonnxruntime.so", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so")
PIECE = 15 << 20  # of 16 MiB that a file may have
GROUP = 40 << 20  # of 64 MiB that go at a time, the repository among them
INDEX = "pieces.json"
# A fat binary: magic, version, bytes of the header, bytes behind it. An entry: kind, attributes, bytes of its header, bytes
# of its code; 28 bytes from its begin, the architecture.
_FATBIN, _MAGIC, _ENTRY, _ARCHITECTURE = struct.Struct("<IHHQ"), 0xBA55ED50, struct.Struct("<HHIQ"), 28


def section(elf: bytes | bytearray, wanted: str) -> tuple[int, int]:
    """Begin and end of a section of a 64-bit ELF file. Errors: InputError without one."""
    if elf[:5] != b"\x7fELF\x02":
        raise InputError("the CUDA provider of this wheel is no 64-bit ELF file; give a wheel for Linux")
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_at = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = sections[names_at][4]
    for name, _, _, _, begin, length in sections:
        at = names + name
        if elf[at : elf.index(0, at)] == wanted.encode():
            return begin, begin + length
    raise InputError(f"the CUDA provider of this wheel has no section {wanted}; its format is new to this script")


def keep_architecture(elf: bytearray, architecture: int) -> dict[int, int]:
    """Zeros the code of all others, in place; how many entries there were by architecture.

    Errors: InputError, also where a fat binary has none for this one but an older one's, which its driver may translate:
    its kernels would be missing. Those for newer ones alone (9 for sm_120 in onnxruntime-gpu 1.31.1) nobody misses.
    """
    at, end = section(elf, ".nv_fatbin")
    found: dict[int, int] = {}
    while at + _FATBIN.size <= end:
        magic, _, header, length = _FATBIN.unpack_from(elf, at)
        if magic != _MAGIC:
            at += 8  # what aligns the next one
            continue
        entry, stop, here = at + header, at + header + length, set()
        while entry < stop:
            _, _, head, code = _ENTRY.unpack_from(elf, entry)
            (each,) = struct.unpack_from("<I", elf, entry + _ARCHITECTURE)
            found[each] = found.get(each, 0) + 1
            here.add(each)
            if head == 0 or entry + head + code > stop:
                raise InputError("a fat binary of the CUDA provider ends early; its format is new to this script")
            if each != architecture:
                elf[entry + head : entry + head + code] = bytes(code)
            entry += head + code
        if here and architecture not in here and min(here) < architecture:
            raise InputError(
                f"a fat binary of the CUDA provider has code for {sorted(here)} and none for sm_{architecture}; "
                "give one of these or another wheel"
            )
        at = stop
    if not found:
        raise InputError("the CUDA provider of this wheel has no fat binary; its format is new to this script")
    if architecture not in found:
        raise InputError(
            f"the CUDA provider has code for {sorted(found)} and none for sm_{architecture}; give one of these"
        )
    return found


def pack(wheel: Path, out: Path, architecture: int = 90) -> list[Path]:
    """Writes groups `1`, `2`, ... of pieces to `out`, and an index to the last; the folders. Errors: InputError."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            provider = bytearray(opened.read(PROVIDER))
            keep_architecture(provider, architecture)
            rest = io.BytesIO()
            with tarfile.open(fileobj=rest, mode="w") as archive:
                for name in opened.namelist():
                    if name != PROVIDER and not name.startswith(LEFT_OUT):
                        info = tarfile.TarInfo(name)
                        data = opened.read(name)
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel.name} is no wheel of onnxruntime-gpu ({error}); download one with pip") from None
    sources = {"provider": bytes(provider), "package": rest.getvalue()}
    folders, left, index = [out / "1"], GROUP, {}
    for name, data in sources.items():
        packed = lzma.compress(data, preset=6)
        pieces = [packed[at : at + PIECE] for at in range(0, len(packed), PIECE)]
        index[name] = len(pieces)
        for number, piece in enumerate(pieces):
            if len(piece) > left:
                folders.append(out / str(len(folders) + 1))
                left = GROUP
            left -= len(piece)
            folders[-1].mkdir(parents=True, exist_ok=True)
            (folders[-1] / f"{name}.{number}").write_bytes(piece)
    (folders[-1] / INDEX).write_text(json.dumps(index))
    return folders


def unpack(kept: Path, out: Path) -> None:
    """Puts pieces of one folder together: `out` is then what the wheel would install, whole. Errors: InputError."""
    try:
        index = json.loads((kept / INDEX).read_text("utf-8"))
        joined = {
            name: lzma.decompress(b"".join((kept / f"{name}.{i}").read_bytes() for i in range(count)))
            for name, count in index.items()
        }
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise InputError(f"the pieces in {kept.name} are not complete ({error}); keep every group, then run") from None
    fresh = out.with_name(f"{out.name}.{os.getpid()}")
    with tarfile.open(fileobj=io.BytesIO(joined["package"])) as archive:
        archive.extractall(fresh, filter="data")
    (fresh / PROVIDER).parent.mkdir(parents=True, exist_ok=True)
    (fresh / PROVIDER).write_bytes(joined["provider"])
    fresh.rename(out)


def groups(folder: Path) -> Iterator[Path]:
    """The groups of a packed wheel that are there."""
    yield from sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
