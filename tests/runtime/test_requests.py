"""Reading requests leaves no memory behind."""

from __future__ import annotations

import gc
import sys

from latentcot_export.runtime.requests import RequestReader
from tests.runtime.fake_session import FakeManifest

REQUESTS = 400  # of one length; CPython keeps up to 2,000 tuples of it


def test_memory_does_not_grow_with_the_requests() -> None:
    reader = RequestReader(FakeManifest(), None)

    def read() -> int:
        for _ in range(REQUESTS):
            reader.read([[1, 2, 3, 4, 5]], 4, 0.0, 0, 1.0, 0, None, [1, 2, 3], False)
        return sys.getallocatedblocks()  # those that CPython keeps for later among them

    gc.collect()
    gc.disable()  # a full collection empties what CPython keeps
    try:
        before = read()
        assert read() - before < REQUESTS // 10
    finally:
        gc.enable()
