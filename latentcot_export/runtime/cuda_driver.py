"""Buffers and a stream of a GPU by the driver's own library, which lies wherever a GPU works: no package is needed for it.

Written from the CUDA driver API's reference and run over a stand-in alone (tests/rtx), never on a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from ..errors import InputError, LatentCoTError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: TensorRT would synchronise the default stream more often
_POINTER, _SIZE, _OUT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuDeviceGet": (_OUT, ctypes.c_int),
    "cuDeviceGetAttribute": (_OUT, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuStreamCreate": (_OUT, ctypes.c_uint),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuMemAllocAsync": (_OUT, _SIZE, ctypes.c_void_p),
    "cuMemFreeAsync": (_POINTER, ctypes.c_void_p),
    "cuMemcpyHtoDAsync_v2": (_POINTER, ctypes.c_void_p, _SIZE, ctypes.c_void_p),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _POINTER, _SIZE, ctypes.c_void_p),
}


def require_gpu(library: str | None = None) -> None:
    """Errors: InputError where the driver, or LIBRARY, is not there or finds no GPU."""
    library = LIBRARY if library is None else library
    try:
        driver = ctypes.CDLL(library)
        driver.cuDeviceGetCount.argtypes = (_OUT,)
        start = driver.cuInit
    except OSError:
        raise _none(f"the driver's library {library} is not there") from None
    except AttributeError:
        raise _none(f"library {library} is no driver") from None
    count = ctypes.c_int()
    if start(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise _none("the driver finds none")


class Gpu:
    """The first GPU, its primary context and one stream. Errors: InputError without one.

    `stream` is the handle as an integer; `capability` e.g. "8.9". Call `enter` in every thread before anything else.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        require_gpu(library)
        self._cuda = ctypes.CDLL(library)
        for name, kinds in _SIGNATURES.items():
            try:
                getattr(self._cuda, name).argtypes = kinds
            except AttributeError:
                raise _none(f"the driver has no {name} and is too old") from None
        count, device = ctypes.c_int(), ctypes.c_int()
        self._context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        self._do("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self.stream = int(stream.value or 0)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            self._do("cuDeviceGetAttribute", ctypes.byref(count), attribute, device)
            numbers.append(str(count.value))
        self.capability = ".".join(numbers)

    def enter(self) -> None:
        """Makes this GPU the calling thread's."""
        self._do("cuCtxSetCurrent", self._context)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """Memory for an array; what is in it is anything. Errors: LatentCoTError when there is none left."""
        address = ctypes.c_uint64()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._do("cuMemAllocAsync", ctypes.byref(address), max(1, size), self.stream)
        array = DeviceArray(self, address.value, shape, dtype)
        weakref.finalize(array, self._free, address.value)
        return array

    def _free(self, address: int) -> None:
        """In whatever thread the last reference went; when the process ends, the driver may be gone before."""
        if not self._cuda.cuCtxSetCurrent(self._context):
            self._cuda.cuMemFreeAsync(address, self.stream)

    def put(self, array: np.ndarray) -> DeviceArray:
        """A copy of a C-contiguous array, which must not change before `wait`."""
        made = self.empty(array.shape, array.dtype)
        if array.nbytes:
            self._do("cuMemcpyHtoDAsync_v2", made.address, array.ctypes.data, array.nbytes, self.stream)
        return made

    def get(self, array: DeviceArray) -> np.ndarray:
        """The content on the host, once all work before has been done."""
        made = np.empty(array.shape, array.dtype)
        if made.nbytes:
            self._do("cuMemcpyDtoHAsync_v2", made.ctypes.data, array.address, made.nbytes, self.stream)
        self.wait()
        return made

    def wait(self) -> None:
        """Returns when everything given to the stream is done. Errors: LatentCoTError when it failed."""
        self._do("cuStreamSynchronize", self.stream)

    def _do(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise LatentCoTError(
                f"the GPU's driver answers {name} with error {status}; try fewer or shorter prompts, or use device cpu"
            )


class DeviceArray:
    """An array in the memory of a GPU, freed with this object; `numpy()` copies it to the host."""

    def __init__(self, gpu: Gpu, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._gpu, self.address, self.shape, self.dtype = gpu, address, shape, dtype

    def numpy(self) -> np.ndarray:
        """Its content now."""
        self._gpu.enter()
        return self._gpu.get(self)


def _none(why: str) -> InputError:
    return InputError(
        f"device cuda needs an NVIDIA GPU and {why}; check that `nvidia-smi` shows one, or use device cpu"
    )
