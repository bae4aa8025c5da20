"""llama.cpp through llama-cpp-python's low-level functions: one `llama_decode` a pass, the best logit by numpy.

The cache is float16, which is llama.cpp's default, and flash attention is as it decides itself. The batch has a stream of
its own for every sequence (`kv_unified` off), which is how it is meant to be batched.
"""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
from serve import serve


class LlamaCpp:
    """See serve.Engine."""

    def __init__(self, model: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError("the model cannot be loaded")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None
        self.note = llama_cpp.llama_print_system_info().decode().strip(" |")

    def open(self, batch: int, length: int) -> None:
        """See Engine."""
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * length, batch
        params.n_batch = max(params.n_batch, batch * length)
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = False
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("the context cannot be made")
        self.batch = llama_cpp.llama_batch_init(batch * length, 0, 1)

    def _run(self, lines: list[list[int]]) -> None:
        """Runs some tokens of every sequence, and chooses the next one of each."""
        batch, at, asked = self.batch, 0, []
        for sequence, line in enumerate(lines):
            for offset, token in enumerate(line):
                batch.token[at], batch.pos[at] = token, self.length + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = offset == len(line) - 1
                at += 1
            asked.append(at - 1)
        batch.n_tokens = at
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.length += len(lines[0])
        for sequence, index in enumerate(asked):
            logits = llama_cpp.llama_get_logits_ith(self.context, index)
            best = int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())
            self.new[sequence].append(best)

    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self.length, self.new = 0, [[] for _ in prompts]
        self._run(prompts)

    def decode(self, count: int) -> None:
        """See Engine."""
        for _ in range(count):
            self._run([line[-1:] for line in self.new])

    def tokens(self) -> list[list[int]]:
        """See Engine."""
        return self.new


if __name__ == "__main__":
    serve(LlamaCpp, ("llama-cpp-python", "numpy"))
