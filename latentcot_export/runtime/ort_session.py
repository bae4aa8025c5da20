"""An ONNX Runtime session of a verified bundle, whatever its graph: loading, Ctrl-C, pages given back."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..bundle import Bundle
from ..errors import InputError, LatentCoTError
from .device import REMEDIES, open_session
from .memory import release_mapped

GRAPH = "model.onnx"
# ONNX Runtime's key: where the weights of a graph lie that is no file
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
LARGE_WEIGHTS = 64 << 20  # bytes; below, looking for pages to give back costs more than they are worth
# Tokens and seconds between two looks for pages of the embedding table, each of which may keep a few hundred KiB of it
# resident.
RELEASE_TOKENS = 64
RELEASE_SECONDS = 0.5


class OrtSession:
    """Loads the graph of a bundle. `threads` 0 means ONNX Runtime's own choice, or OMP_NUM_THREADS where it is set.

    `session` is ONNX Runtime's. Errors: InputError when it refuses the model.
    """

    _large = False
    device = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        library: Path | None = None,
        graph: str = GRAPH,
        device: str = "cpu",
        content: bytes | None = None,
    ) -> None:
        """`library`: a shared library of custom ops that the graph needs. `device`: one that `check_device` has passed.

        `content` is run in place of what the bundle's file `graph` holds, with the same weights.
        """
        self.manifest, self.device = bundle.manifest, device
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
        if options.intra_op_num_threads:
            # ONNX Runtime does not tell an op how many threads there are; ours would take every processor
            options.add_session_config_entry("latentcot.threads", str(options.intra_op_num_threads))
        options.inter_op_num_threads = 1
        # freed caches go back to the system: an arena would keep the largest call's memory for ever
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        graph = str(bundle.path(graph))
        if content is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(bundle.folder))
        try:
            if library is not None:
                options.register_custom_ops_library(str(library))
            self.session = open_session(graph if content is None else content, options, device)
        except InputError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise InputError(
                f"{graph}: ONNX Runtime {ort.__version__} cannot load this graph on device {device} ({reason}); "
                f"{REMEDIES[device]}"
            ) from None
        self._weights = bundle.path("model.onnx.data")
        self._large = self._weights.stat().st_size >= LARGE_WEIGHTS
        self.release()
        self._read, self._released = 0, time.perf_counter()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "latentcot-call")

    def release(self) -> None:
        """Gives back pages of mapped weights that reading tokens has touched, see memory.py; they come back unasked."""
        if self._large:
            release_mapped(self._weights)

    def has_read(self, tokens: int) -> None:
        """Counts `tokens` more rows of the embedding table that the graph read; now and then their pages are given back."""
        self._read += tokens
        now = time.perf_counter()
        if self._read >= RELEASE_TOKENS and now - self._released >= RELEASE_SECONDS:
            self._read, self._released = 0, now
            self.release()

    def check_names(self, where: str, inputs: set[str], outputs: set[str]) -> None:
        """A graph of somebody else may be a valid ONNX file with a valid hash, and its manifest too. Errors: InputError."""
        found = {each.name for each in self.session.get_inputs()}
        if found != inputs or {each.name for each in self.session.get_outputs()} != outputs:
            raise InputError(
                f"{where}: its inputs and outputs are not those of a bundle of this version; "
                "export it again with this version of latentcot-export"
            )
        model, cache = self.manifest.model, self.manifest.cache
        kind = {"float32": "float"}.get(cache.dtype, cache.dtype)
        sizes = [model.num_layers, 2, None, model.num_kv_heads, cache.lanes(model)]  # None: as many as the host makes
        for each in self.session.get_inputs():
            if each.name != "cache" and not each.name.startswith(("keys_", "values_")):
                continue
            here = [size if wanted is not None else None for size, wanted in zip(each.shape, sizes, strict=False)]
            if each.type != f"tensor({kind})" or (each.name == "cache" and here != sizes):
                raise InputError(
                    f"{where}: its {each.name} is {each.type} {each.shape}, which is not that of the bundle's manifest; "
                    "export it again"
                )

    def interruptible(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """`call(*arguments, run_options)`; Ctrl-C ends it within one operator.

        Errors: LatentCoTError when ONNX Runtime fails.
        """
        options = ort.RunOptions()
        options.log_severity_level = 4  # what goes wrong is told by the exception, once
        try:
            # ONNX Runtime keeps what it captured of a GPU's work for the thread that captured it
            if threading.current_thread() is not threading.main_thread() and self.device == "cpu":
                return call(*arguments, options)
            # Python sees Ctrl-C between two of its own instructions only: the main thread must not be inside the call
            future: concurrent.futures.Future[Any] | None = None
            try:
                future = self._worker.submit(call, *arguments, options)
                return future.result()
            finally:
                options.terminate = True
                if future is not None:
                    concurrent.futures.wait([future])
        except LatentCoTError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise LatentCoTError(f"ONNX Runtime {ort.__version__} failed to run the model {_why(error)}") from error


def _why(error: Exception) -> str:
    """In brackets what an op said, or ONNX Runtime, and behind it what to do."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rpartition("Status Message: ")[2][:500]
    short = any(word in reason.lower() for word in ("alloc", "memory"))
    remedy = "try fewer or shorter prompts" if short else "check the bundle with `latentcot validate`"
    return f"({reason}); {remedy}"
