"""What a session that replays passes needs of the GPU's driver beyond buffers: memory set in place, and captured graphs.

Written from the CUDA driver API's reference and run over a stand-in alone (tests/tensorrt), never on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np

from .cuda_driver import LIBRARY, DeviceArray, Gpu

_CAPTURING = threading.Lock()  # garbage collection is the process's, so one capture at a time turns it off
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is theirs
_POINTER, _SIZE, _OUT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
_SIGNATURES = {
    "cuMemsetD8Async": (_POINTER, ctypes.c_ubyte, _SIZE, ctypes.c_void_p),
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, ctypes.c_void_p, ctypes.c_ulonglong),
    "cuGraphDestroy": (ctypes.c_void_p,),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
}


class CapturingGpu(Gpu):
    """A Gpu whose stream can be captured. Errors: as Gpu."""

    def __init__(self, library: str = LIBRARY) -> None:
        super().__init__(library)
        for name, kinds in _SIGNATURES.items():
            getattr(self._cuda, name).argtypes = kinds

    def write(self, array: DeviceArray, content: np.ndarray) -> None:
        """New content of the same size, there when this returns: nothing of it is read later."""
        kept = np.asarray(content, order="C")
        assert kept.nbytes == int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
        if kept.nbytes:
            self._do("cuMemcpyHtoDAsync_v2", array.address, kept.ctypes.data, kept.nbytes, self.stream)
            self.wait()

    def fill(self, array: DeviceArray, first: int, end: int, byte: int) -> None:
        """Rows [first, end) of an array become this byte everywhere."""
        row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
        if end > first:
            self._do("cuMemsetD8Async", array.address + first * row, byte, (end - first) * row, self.stream)

    def capture(self, work: Callable[[], None]) -> Replay:
        """What `work` gives the stream, once and for all; nothing of it is done yet."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        with _CAPTURING:
            collecting = gc.isenabled()
            gc.disable()  # what a collection finds may free memory on this stream, which would become part of the work
            try:
                self._do("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
                try:
                    work()
                finally:  # a stream that is left capturing is of no use to anybody
                    self._do("cuStreamEndCapture", self.stream, ctypes.byref(graph))
            finally:
                if collecting:
                    gc.enable()
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, 0)
        self._do("cuGraphDestroy", graph)
        return Replay(self, int(made.value or 0))

    def replay(self, handle: int) -> None:
        """Gives the stream what was captured."""
        self._do("cuGraphLaunch", handle, self.stream)

    def forget(self, handle: int) -> None:
        """Frees a captured graph; when the process ends, the driver may be gone before."""
        if not self._cuda.cuCtxSetCurrent(self._context):
            self._cuda.cuGraphExecDestroy(handle)


class Replay:
    """Work that was captured; called, it is given to the stream again. Freed with this object."""

    def __init__(self, gpu: CapturingGpu, handle: int) -> None:
        self._gpu, self._handle = gpu, handle
        weakref.finalize(self, gpu.forget, handle)

    def __call__(self) -> None:
        """Once more."""
        self._gpu.replay(self._handle)
