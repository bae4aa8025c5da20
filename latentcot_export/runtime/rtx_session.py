"""Runs the engine of a `--target tensorrt-rtx` bundle on a GPU: whole bursts of passes in one call, caches never leave it.

Never run on a GPU: there was none that TensorRT for RTX supports. tests/rtx runs every line of it over stand-ins for the
driver and the library, whose engine is the bundle's graph in ONNX Runtime.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import InputError, LatentCoTError
from .cuda_driver import DeviceArray, Gpu
from .rtx_engine import check_capability, check_version, engine_facts, tensorrt_rtx
from .session import PROMPT_ROWS, CallInputs, GraphSession, PortableSession
from .state import SLOT_BLOCK, BatchState, slots_for
from .tensorrt_listener import listener

_BURST = 64  # passes of one call at most, so that Ctrl-C waits for no longer


class RtxSession(PortableSession):
    """Loads the engine of a verified bundle; one call at a time, from any thread.

    Errors: InputError without the library or a GPU, for another version than the engine's, for another GPU.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.facts = engine_facts(bundle)
        library = tensorrt_rtx()
        check_version(bundle, self.facts, library.__version__)
        self._gpu = Gpu()
        check_capability(self.facts, self._gpu.capability)
        self._complaints: list[str] = []
        self._logger = listener(library, self._complaints)
        self._runtime = library.Runtime(self._logger)
        # read_bytes has hashed the very bytes that are deserialised
        self._engine = self._runtime.deserialize_cuda_engine(bundle.read_bytes(self.facts.file))
        if self._engine is None:
            raise InputError(f"engine {self.facts.file} cannot be loaded ({self._why()}); check the driver's version")
        strategy = library.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise InputError(f"engine {self.facts.file} does not fit on this GPU ({self._why()}); use a smaller one")
        self._host = library.TensorLocation.HOST
        self._profile, self._proven = -1, False
        self._lock = threading.Lock()

    def release(self) -> None:
        """Nothing: a prompt's memory is freed as soon as it is not needed."""

    def feed(self, state: BatchState, inputs: CallInputs, end: np.ndarray, rows: int = PROMPT_ROWS) -> int:
        """As PortableSession; one row a sequence where the engine takes no prompts of so many sequences."""
        most = int(end.max()) * self.manifest.recurrence.max_steps
        slots = slots_for(most + PROMPT_ROWS + max(SLOT_BLOCK, most // 4))
        sizes = {**_sizes(state, inputs), "rows": PROMPT_ROWS, "slots": max(slots, state.slots)}
        return super().feed(state, inputs, end, rows if self._taking(sizes) is not None else 1)

    def call(self, state: BatchState, inputs: CallInputs, end: np.ndarray, max_passes: int) -> None:
        """See PortableSession; at most 64 passes, however many were asked for, and the very first time one."""
        with self._lock:
            self._gpu.enter()
            most, before = min(max_passes, _BURST if self._proven else 1), int(state.arrays["passes"])
            self._take_profile(_sizes(state, inputs))
            arrays = {**state.arrays, **vars(inputs), "end": np.asarray(end, np.int64), "max_passes": np.int64(most)}
            given = {name: np.asarray(value, order="C") for name, value in arrays.items()}
            held: list[Any] = [given]  # until the GPU has read it
            made: dict[str, DeviceArray] = {}
            for name, array in {**given, **state.caches}.items():
                buffer = array if isinstance(array, DeviceArray) else self._upload(name, array)
                held.append(buffer)
                self._set(name, buffer)
                if name in state.arrays or name in state.caches:
                    made[name] = self._gpu.empty(tuple(buffer.shape), buffer.dtype)
                    self._check(self._context.set_tensor_address(f"{name}_out", made[name].address), f"{name}_out")
            self._check(self._context.execute_async_v3(self._gpu.stream), "a burst")
            for name, result in made.items():
                if name in state.caches:
                    state.caches[name] = result
                else:
                    state.arrays[name] = self._gpu.get(result)
            self._gpu.wait()
            held.clear()
        taken = int(state.arrays["passes"]) - before
        if taken > most:  # a fault that parsers are said to have had: the first call finds it, before it does harm
            raise LatentCoTError(
                f"engine {self.facts.file} ran {taken} passes where {most} were allowed, so its Loop is not ONNX's; "
                "use device cpu and file an issue with `latentcot env`"
            )
        self._proven = True

    def _upload(self, name: str, array: Any) -> Any:
        """A small array, or a cache that a host has made or grown. Tensors that are read on the host stay there."""
        found = np.asarray(array if isinstance(array, np.ndarray) else array.numpy(), order="C")
        return found if self._engine.get_tensor_location(name) == self._host else self._gpu.put(found)

    def _set(self, name: str, buffer: Any) -> None:
        address = buffer.address if isinstance(buffer, DeviceArray) else buffer.ctypes.data
        self._check(self._context.set_input_shape(name, tuple(buffer.shape)), name)
        self._check(self._context.set_tensor_address(name, address), name)

    def _taking(self, sizes: dict[str, int]) -> int | None:
        """Index of the profile that takes these sizes."""
        return next((index for index, each in enumerate(self.facts.profiles) if each.takes(sizes)), None)

    def _take_profile(self, sizes: dict[str, int]) -> None:
        index = self._taking(sizes)
        if index is None:
            said = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            raise InputError(
                f"engine {self.facts.file} has no profile for {said}; give a smaller max_batch or shorter prompts"
            )
        if index != self._profile:
            self._check(self._context.set_optimization_profile_async(index, self._gpu.stream), f"profile {index}")
            self._gpu.wait()
            self._profile = index

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise LatentCoTError(
                f"TensorRT for RTX {self.facts.version} fails at {what} ({self._why()}); try fewer or shorter prompts, or "
                "use device cpu"
            )

    def _why(self) -> str:
        return " ".join((self._complaints or ["it does not say why"])[-1].split())[:300]


def _sizes(state: BatchState, inputs: CallInputs) -> dict[str, int]:
    """Axis of the graph -> its size in this call."""
    return {
        "batch": state.batch,
        "length": int(state.arrays["tokens"].shape[1]),
        "stops": int(inputs.stop_tokens.shape[1]),
        "slots": state.slots,
        "rows": state.rows,
        "logit_positions": int(state.arrays["logits"].shape[1]),
    }


def portable_session(bundle: Bundle, threads: int = 0, device: str = "cpu") -> PortableSession:
    """The session of a bundle of a portable graph on a device that `check_device` has passed. Errors: InputError."""
    return GraphSession(bundle, threads) if device == "cpu" else RtxSession(bundle)
