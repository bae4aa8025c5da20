"""The library of tests/cuda/conftest.py: its entry points by name, and arrays that nobody may write beside."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

GUARD = 64  # bytes before and behind an array
POISON = 0xFB  # a byte of them: with it float32 is NaN or huge and an integer negative


class CudaFault(Exception):
    """A launch that a GPU would refuse or never finish, or memory beside an array that was written."""


class Kernels:
    """Entry points of the library; `seed` is the order in which threads run, 0 theirs."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.latentcot_cuda_fault.restype = ctypes.c_char_p

    def run(self, name: str, *arguments: object, seed: int = 0) -> None:
        """Calls `latentcot_cuda_{name}`; arrays are given by address, integers as 64 bits where ctypes does not say."""
        self._library.latentcot_cuda_order(ctypes.c_uint64(seed))
        given = [x.ctypes.data_as(ctypes.c_void_p) if isinstance(x, np.ndarray) else x for x in arguments]
        code = getattr(self._library, f"latentcot_cuda_{name}")(*given)
        if code:
            fault = self._library.latentcot_cuda_fault().decode()
            raise CudaFault(f"{name}: cudaError {code} {fault}")


def poisoned(shape: int | tuple[int, ...], kind: type | np.dtype) -> np.ndarray:
    """An output before it is written: bytes that are no result."""
    dtype = np.dtype(kind)
    return np.full(int(np.prod(shape)) * dtype.itemsize, POISON, np.uint8).view(dtype).reshape(shape)


@contextmanager
def guarded(arrays: Mapping[str, np.ndarray], offset: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Copies between poisoned bytes, `offset` bytes behind an address that 256 divides; written back at the end."""
    held, copies = {}, {}
    for name, value in arrays.items():
        memory = np.full(2 * GUARD + 512 + value.nbytes, POISON, np.uint8)
        begin = GUARD + (-memory.ctypes.data - GUARD) % 256 + (offset if value.itemsize <= offset else 0)
        held[name] = (memory, begin)
        copies[name] = memory[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
        copies[name][...] = value
    yield copies
    for name, (memory, begin) in held.items():
        end = begin + arrays[name].nbytes
        if (memory[:begin] != POISON).any() or (memory[end:] != POISON).any():
            raise CudaFault(f"{name}: memory beside it was written")
        arrays[name][...] = copies[name]
