"""optimum-onnx: its export in ONNX Runtime through `ORTModelForCausalLM`, called as `generate` calls it."""

from __future__ import annotations

import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from serve import serve


class Optimum:
    """See serve.Engine."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.model = ORTModelForCausalLM.from_pretrained(model, session_options=options, use_cache=True)
        self.note = f"IO binding: {self.model.use_io_binding}"

    def open(self, batch: int, length: int) -> None:
        """See Engine: the cache grows by itself."""

    def _run(self, tokens: torch.Tensor) -> None:
        length = self.length + tokens.shape[1]
        out = self.model(
            input_ids=tokens,
            attention_mask=torch.ones(len(tokens), length, dtype=torch.int64),
            position_ids=torch.arange(self.length, length).repeat(len(tokens), 1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache, self.length = out.past_key_values, length
        self.new.append(out.logits[:, -1].argmax(-1))

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        self.cache, self.new, self.length = None, [], 0
        self._run(torch.tensor(prompts))

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        """See Engine."""
        for _ in range(count):
            self._run(self.new[-1][:, None])

    def tokens(self) -> list[list[int]]:
        """See Engine."""
        return torch.stack(self.new, 1).tolist()


if __name__ == "__main__":
    serve(Optimum, ("optimum-onnx", "optimum", "transformers", "onnxruntime", "torch"))
