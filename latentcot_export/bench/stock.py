"""The baseline `transformers`: the bundle's weights in its own class, which is this model at depth 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from ..bundle import Bundle
from ..spec import CacheSpec, ModelSpec, RecurrenceSpec
from ..validate.stock import build_stock
from ..validate.weights import bundle_tensors
from .engines import Work
from .workload import Batch


class TransformersEngine:
    """Greedy decoding with a DynamicCache, the loop of `generate` without its per-token bookkeeping, in float32.

    The batch advances token by token together, hence `lockstep`; at depth 1 the two schedules do the same.
    """

    name, schedule, target, dtype, quantize = "transformers", "lockstep", "eager", "float32", "none"

    def __init__(self, model: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor]) -> None:
        self.model: Any = build_stock(model, tensors)
        self.scale = recurrence.embedding_scale
        self.bytes_per_slot = CacheSpec("float32").bytes_per_slot(model)

    @classmethod
    def of(cls, bundle: Bundle) -> TransformersEngine:
        """With the bundle's own weights, in float32. Errors: InputError when there is no such stock model."""
        return cls(bundle.manifest.model, bundle.manifest.recurrence, bundle_tensors(bundle))

    def _forward(self, tokens: np.ndarray) -> None:
        """Runs tokens int64 `[B, R]` and chooses the next one of every sequence."""
        embedded = self.model.get_input_embeddings()(torch.from_numpy(tokens)) * self.scale
        out = self.model(inputs_embeds=embedded, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.passes += 1
        self.length += tokens.shape[1]
        self.tokens[:, self.length] = out.logits[:, -1].argmax(-1).numpy()

    @torch.inference_mode()
    def start(self, batch: Batch) -> None:
        """See Engine; forced depths are ignored."""
        self.tokens = batch.tokens()
        self.cache, self.passes, self.length = transformers.DynamicCache(), 0, 0
        self._forward(batch.prompts)

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        """See Engine."""
        for _ in range(count):
            self._forward(np.ascontiguousarray(self.tokens[:, self.length : self.length + 1]))

    def work(self) -> Work:
        """See Engine."""
        depths = np.zeros_like(self.tokens)
        depths[:, : self.length] = 1
        rows = len(depths) * self.length
        return Work(self.passes, rows, rows, rows, depths)
