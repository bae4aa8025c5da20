"""Pages of a mapped file are given back, and never where something was changed; those of a cache come one by one."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from latentcot_export.runtime.memory import release_mapped, zero_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise and /proc are Linux's")
SIZE = 8 << 20


def resident(name: str) -> int:
    """KiB of the file that this process has resident."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE


def test_clean_pages_go_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "weights-clean"
    file.write_bytes(bytes(range(256)) * (SIZE // 256))
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert sum(mapped[::4096]) == 0 and resident(file.name) >= SIZE // 1024
        assert release_mapped(file) >= SIZE
        assert resident(file.name) == 0
        assert mapped[:256] == bytes(range(256))


def test_changed_pages_stay(tmp_path: Path) -> None:
    file = tmp_path / "weights-changed"
    file.write_bytes(bytes(SIZE))
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[12345] = 7
        assert release_mapped(file) == 0
        assert mapped[12345] == 7


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x")
    assert release_mapped(tmp_path / "other") == 0
    assert release_mapped(tmp_path / "missing") == 0


def test_a_page_takes_memory_when_it_is_written_and_no_page_beside_it() -> None:
    pages = zero_pages(64 << 20)
    assert pages.ctypes.data % mmap.PAGESIZE == 0 and pages.shape == (64 << 20,) and pages.flags.writeable
    before = resident_bytes()
    pages[:: 2 << 20] = 1  # one in each huge page
    assert resident_bytes() - before < 4 << 20
    assert pages.sum() == 32


def test_pages_last_as_long_as_a_view_of_them() -> None:
    view = zero_pages(SIZE)[64:].view("float32")
    view[:] = 2.0
    assert view.sum() == 2.0 * (SIZE - 64) / 4


def test_more_than_there_is() -> None:
    for size in (1 << 62, 1 << 70):
        with pytest.raises(MemoryError):
            zero_pages(size)
