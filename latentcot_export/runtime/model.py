"""`LatentCoTForCausalLM`: a bundle as a model that generates, in the habits of `transformers` and without torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from ..bundle import Bundle, Manifest, open_bundle
from ..bundle.manifest import POOLED
from ..errors import InputError
from ..strict_json import shown
from .device import check_device
from .engine import MAX_BATCH, Engine
from .generation import EngineGeneration, Generation, GroupGeneration
from .native_session import Session
from .output import GenerateOutput
from .pass_session import packed_session
from .requests import Prompt, RequestReader
from .rtx_session import portable_session
from .sampling import is_whole
from .session import PortableSession
from .text import Tokenizer

MAX_THREADS = 1024
# Passes of the first burst and of the longest. A stream begins with one pass, so that nobody waits for a burst to fill.
_STREAM_BURSTS = (1, 16)
_BATCH_BURSTS = (32, 32)


class LatentCoTForCausalLM:
    """A model of a bundle, ready to generate. Make one with `from_pretrained`.

    `manifest` says what the bundle holds; `tokenizer` is None where it has none, and prompts must then be token ids.
    `session` runs the graph. Several threads may generate with one model at a time: on a bundle of the target `ort` they
    share its `engine`, which batches their requests and has one cache.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        max_batch: int | None = None,
        cache_slots: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Load a bundle that `open_bundle` has verified. Errors: as `from_pretrained`."""
        if not is_whole(threads) or not 0 <= threads <= MAX_THREADS:
            raise InputError(
                f"threads is {shown(threads)}, it must be an integer from 0 to {MAX_THREADS}; give 0 for all cores"
            )
        if max_batch is not None and (not is_whole(max_batch) or not 1 <= max_batch <= MAX_BATCH):
            raise InputError(
                f"max_batch is {shown(max_batch)}, it must be an integer from 1 to {MAX_BATCH}; give none for the bundle's"
            )
        check_device(bundle, device)
        self.manifest: Manifest = bundle.manifest
        self.tokenizer: Tokenizer | None = Tokenizer.of(bundle)
        self.session: PortableSession | Session
        self._reader = RequestReader(self.manifest, self.tokenizer)
        self._max_batch = int(max_batch or self.manifest.cache.max_batch)
        self._cache_slots = cache_slots
        self._engine: Engine | None = None
        self._making = threading.Lock()
        if self.manifest.target in POOLED:
            self.session = packed_session(bundle, int(threads), device)
            self._engine = self._new_engine(self.session)
        elif cache_slots is not None:
            raise InputError(
                f"cache_slots is for bundles of the target ort and this one is {self.manifest.target}, whose cache grows "
                "as needed; leave it out"
            )
        else:
            self.session = portable_session(bundle, int(threads), device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        threads: int = 0,
        *,
        max_batch: int | None = None,
        cache_slots: int | None = None,
        device: str = "cpu",
    ) -> LatentCoTForCausalLM:
        """Open a bundle folder, verify every byte of it, and load it.

        `device` is "cpu", or "cuda": for the target `ort` with onnxruntime-gpu, for tensorrt-rtx with its library.
        `threads` for ONNX Runtime, 0 for its own choice (or OMP_NUM_THREADS). At most `max_batch` sequences run at a
        time; `cache_slots`, for the target `ort`, are the (token, step) pairs that all of them may hold together. None:
        what the bundle says. Errors: InputError, one sentence.
        """
        return cls(open_bundle(folder), threads, max_batch, cache_slots, device)

    @property
    def engine(self) -> Engine:
        """The engine that `generate` and `stream` share on a bundle of the target `ort`, to submit requests to.

        After Ctrl-C inside a burst, or after it was closed, there is a new one. Errors: InputError for another target.
        """
        if isinstance(self.session, PortableSession):
            raise InputError(
                f"this bundle has the target {self.manifest.target}, which has no engine; export it with --target ort"
            )
        with self._making:
            if self._engine is None or not self._engine.usable:
                self._engine = self._new_engine(self.session)
            return self._engine

    def _new_engine(self, session: Session) -> Engine:
        return Engine(session, self.tokenizer, max_batch=self._max_batch, cache_slots=self._cache_slots)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | Sequence[int] | None = None,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
    ) -> GenerateOutput:
        """Continues texts or lists of token ids (one, or a list of them, mixed as you like); results in that order.

        A value holds for every sequence; a list gives one to each. In particular one `seed` is the seed of every
        sequence, so that a prompt gives the same tokens alone and in any batch: to draw several samples of one prompt,
        give a list of seeds. Temperature 0 is greedy, top_k 0 and top_p 1 are off (docs/sampling.md).
        A sequence ends after `max_new_tokens` (None: 64, or as many as there is room for), with one of the model's EOS
        tokens (unless `ignore_eos`) or of `stop_token_ids`, or where one of the texts `stop` appears in its new text.
        Prompts beyond `max_batch` wait until others have ended. Errors: InputError, one sentence, before anything runs.
        """
        arguments = (prompts, max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids, ignore_eos)
        generation = self._start(False, *arguments)
        for _event in generation:
            pass
        return generation.output()

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | Sequence[int] | None = None,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: int | Sequence[int] | None = None,
        ignore_eos: bool = False,
    ) -> Generation:
        """As `generate`, token by token: an iterator over `StreamEvent` (sequence, token, depth, text, stop).

        The tokens of one sequence come in order; those of several are interleaved. Its `output()` is what `generate`
        returns, at any time. Closing it, or dropping it, ends it and frees its memory. Errors: as `generate`.
        """
        arguments = (prompts, max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids, ignore_eos)
        return self._start(True, *arguments)

    def _start(self, eager: bool, *arguments: Any) -> Generation:
        """A generation that nothing was run of yet; `eager` where somebody waits for each token."""
        requests = self._reader.read(*arguments)
        if not isinstance(self.session, PortableSession):
            return EngineGeneration(self.engine, self.tokenizer, requests, eager)
        bursts = _STREAM_BURSTS if eager else _BATCH_BURSTS
        return GroupGeneration(self.session, self.tokenizer, requests, self._max_batch, bursts)
