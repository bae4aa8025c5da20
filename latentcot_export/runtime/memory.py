"""Gives back pages of mapped weights that loading or a prompt touched and decoding does not need.

ONNX Runtime maps the weights file, copies every matrix into the layout of its kernels, and keeps the mapping for what is
read in place: the embedding table. Each row that a prompt reads maps a few hundred KiB around it (the kernel's
fault-around), so that a long prompt would keep the whole table resident beside the copy that the tied head needs.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

MADV_DONTNEED = 4  # madvise(2), Linux
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


def release_mapped(file: Path) -> int:
    """Unmaps this process's resident pages of `file`; they come back from the page cache when read. Bytes advised.

    A mapping with changed pages is left alone, since they would be lost. Does nothing where there is no /proc.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        lines = Path("/proc/self/smaps").read_text("utf-8", errors="surrogateescape").splitlines()
        inode = os.stat(file).st_ino
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advised = start = length = 0
    for line in lines:
        header = _HEADER.match(line)
        if header is not None:
            first, end = int(header[1], 16), int(header[2], 16)
            start, length = (first, end - first) if int(header[3]) == inode else (0, 0)
        # anonymous pages of a file's private mapping are the changed ones
        elif length and line.startswith("Anonymous:") and line.split()[1] == "0":
            advised += length if madvise(start, length, MADV_DONTNEED) == 0 else 0
    return advised
