"""onnxruntime-genai: a folder of its model builder, `generate_next_token` in a loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from serve import serve


class GenAI:
    """See serve.Engine. The id that ends a sequence becomes that which begins one: no text goes on with it."""

    def __init__(self, model: str, threads: int) -> None:
        config = og.Config(model)
        told = json.loads((Path(model) / "genai_config.json").read_text("utf-8"))
        settings = {"session_options": {"intra_op_num_threads": threads, "inter_op_num_threads": 1}}
        config.overlay(json.dumps({"model": {"decoder": settings, "eos_token_id": told["model"]["bos_token_id"]}}))
        self.model = og.Model(config)
        self.note = "greedy search"

    def open(self, batch: int, length: int) -> None:
        """See Engine."""
        self.batch, self.length = batch, length

    def start(self, prompts: list[list[int]]) -> None:
        """See Engine."""
        self.generator = None  # the cache of the batch before goes first
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=self.length, batch_size=self.batch, do_sample=False)
        self.prompt = len(prompts[0])
        self.generator = og.Generator(self.model, params)
        self.generator.append_tokens(np.asarray(prompts, np.int32))
        self.generator.generate_next_token()

    def decode(self, count: int) -> None:
        """See Engine. `generate_next_token` runs the token before and chooses the next."""
        for _ in range(count):
            self.generator.generate_next_token()

    def tokens(self) -> list[list[int]]:
        """See Engine."""
        return [self.generator.get_sequence(each)[self.prompt :].tolist() for each in range(self.batch)]


if __name__ == "__main__":
    serve(GenAI, ("onnxruntime-genai", "onnxruntime", "numpy"))
