"""How fast this machine reads memory that no cache holds."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

import numpy as np

BUFFER_BYTES = 512 << 20  # many times the last-level cache of a server


class Reader:
    """Reads one buffer with `threads` threads, each its part, without writing anything."""

    def __init__(self, threads: int) -> None:
        self.parts = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)

    def bytes_per_second(self) -> float:
        """The faster of two reductions: a dot product with itself, and a maximum. Run with one BLAS thread."""
        return max(self._read(np.max), self._read(lambda part: np.dot(part, part)))

    def _read(self, reduce: Any) -> float:
        began = time.perf_counter()
        list(self.pool.map(reduce, self.parts))
        return BUFFER_BYTES / (time.perf_counter() - began)
