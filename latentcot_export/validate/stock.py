"""The stock Llama of `transformers`: an oracle that shares no code with ours."""

from __future__ import annotations

import numpy as np
import torch

from latentcot_export.checkpoint.families.llama import llama_config
from latentcot_export.spec import ModelSpec, RecurrenceSpec

from .runs import Ids, threads_that_pay


class StockModel:
    """LlamaForCausalLM in float32 with a bundle's weights, built when it is first read."""

    def __init__(self, model: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor]) -> None:
        self.spec, self.scale = model, recurrence.embedding_scale
        self._tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("router.")}
        self._model: torch.nn.Module | None = None

    @torch.no_grad()
    def read(self, tokens: Ids) -> np.ndarray:
        """Logits float64 `[n, V]` of tokens int64 `[n]`. Step 1 scales the embedding, which a stock Llama does not."""
        if self._model is None:
            self._model = self._build()
        with threads_that_pay(self.spec):
            return self._read(self._model, tokens)

    def _read(self, model: torch.nn.Module, tokens: Ids) -> np.ndarray:
        embedded = model.get_input_embeddings()(torch.from_numpy(tokens)[None]) * self.scale  # type: ignore[operator]
        return model(inputs_embeds=embedded, use_cache=False).logits[0].double().numpy()

    def _build(self) -> torch.nn.Module:
        # seconds to import, for one gate
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

        facts = llama_config(self.spec)
        # LlamaConfig wants a hidden size that is a multiple of the heads, which an explicit head_dim makes needless
        config = LlamaConfig(**{**facts, "hidden_size": self.spec.num_heads}, attn_implementation="eager")
        config.hidden_size = self.spec.hidden_size
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        tensors = {name: tensor.float().contiguous() for name, tensor in self._tensors.items()}
        if self.spec.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        model.load_state_dict(tensors, strict=True, assign=True)
        model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are no weights: on meta they are empty
        return model.eval()
