"""Pages: a cache takes them one by one, and mapped weights give back those that nobody needs.

ONNX Runtime maps the weights file, copies every matrix into the layout of its kernels, and keeps the mapping for what is
read in place: the embedding table. Each row that a prompt reads maps a few hundred KiB around it (the kernel's
fault-around), so that a long prompt would keep the whole table resident beside the copy that the tied head needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np

MADV_DONTNEED = 4  # madvise(2), Linux
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")
# An entry of /proc/PID/pagemap, 64 bits for each page (the kernel's Documentation/admin-guide/mm/pagemap.rst)
_ENTRY = 8
_RESIDENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def zero_pages(size: int) -> np.ndarray:
    """uint8 `[size]`, zero, aligned to a page; a page takes memory once it is written to. Errors: MemoryError.

    They are never huge ones, which numpy asks for above 4 MiB. A row writes its keys and values in as many places as
    there are layers: SmolLM2-135M took 132 to 192 MiB in them for 35 MiB of slots, and the first pass 0.1 to 0.5 s
    longer, in which the kernel found and cleared them. Decoding and prompts were as fast without.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(size, np.uint8)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes") from error
    with contextlib.suppress(OSError):  # of a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)  # which keeps the mapping


def release_mapped(file: Path) -> int:
    """Unmaps this process's resident pages of `file`; they come back from the page cache when read. Bytes advised.

    A mapping with changed pages is left alone, since they would be lost. Does nothing where there is no /proc.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="surrogateescape").splitlines()
        inode = os.stat(file).st_ino
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        advised = 0
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for line in lines:
                header = _MAPPING.match(line)
                if header is None or int(header[3]) != inode:
                    continue
                start, end = int(header[1], 16), int(header[2], 16)
                if _unchanged(pagemap.fileno(), start, end) and madvise(start, end - start, MADV_DONTNEED) == 0:
                    advised += end - start
        return advised
    except (OSError, AttributeError):
        return 0


def _unchanged(pagemap: int, start: int, end: int) -> bool:
    """True when every page of these addresses is the file's own; a changed one is the process's, resident or swapped.

    `smaps` says it too, but walks all that the process has mapped: 12 ms beside a gigabyte, this takes one.
    """
    count = (end - start) // mmap.PAGESIZE * _ENTRY
    entries = np.frombuffer(os.pread(pagemap, count, start // mmap.PAGESIZE * _ENTRY), np.uint64)
    changed = (entries & (_RESIDENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)
    return entries.nbytes == count and not changed.any()
