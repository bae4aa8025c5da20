"""`transformers` eager in float32: the loop of `generate` without its bookkeeping, with its usual cache and attention."""

from __future__ import annotations

import torch
import transformers
from serve import serve


class Transformers:
    """See serve.Engine."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model = loaded.eval().requires_grad_(False)
        self.note = f"attention: {self.model.config._attn_implementation}"

    def open(self, batch: int, length: int) -> None:
        """See Engine: the cache grows by itself."""

    @torch.inference_mode()
    def _run(self, tokens: torch.Tensor) -> None:
        out = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.new.append(out.logits[:, -1].argmax(-1))

    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        self.cache, self.new = transformers.DynamicCache(), []
        self._run(torch.tensor(prompts))

    def decode(self, count: int) -> None:
        """See Engine."""
        for _ in range(count):
            self._run(self.new[-1][:, None])

    def tokens(self) -> list[list[int]]:
        """See Engine."""
        return torch.stack(self.new, 1).tolist()


if __name__ == "__main__":
    serve(Transformers, ("transformers", "torch", "numpy"))
