"""The stock model of `transformers`: an oracle that shares no code with ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from latentcot_export.checkpoint.families import find_family, stock_config
from latentcot_export.checkpoint.shapes import layer_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import ModelSpec, RecurrenceSpec

from .runs import Ids, threads_that_pay


def build_stock(model: ModelSpec, tensors: Mapping[str, torch.Tensor], attention: str = "sdpa") -> torch.nn.Module:
    """The class of `transformers` for this layer stack, in float32, with canonical tensors in its published layout.

    Tensors that are float32 already are shared. `attention` is the attn_implementation of `transformers`.
    Errors: InputError when it has none for this stack.
    """
    facts = stock_config(model)
    family = find_family(facts["model_type"], "config.json")
    layout = family.published(model, RecurrenceSpec(max_latents=0), facts)
    stack = {name: tensors[name].float() for name in layer_shapes(model)}
    import transformers  # seconds to import, for one gate

    # some configs want a hidden size that is a multiple of the heads, which an explicit head_dim makes needless
    config = transformers.AutoConfig.for_model(**{**facts, "hidden_size": model.num_heads})
    config.hidden_size = model.hidden_size
    with _silent_progress():
        built, found = getattr(transformers, facts["architectures"][0]).from_pretrained(
            None,
            config=config,
            state_dict=layout.published(stack),
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
        )
    faults = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]]
    assert not faults, faults  # they would be drawn at random
    return built.eval().requires_grad_(False)


def not_stock_at_depth_1(recurrence: RecurrenceSpec) -> str | None:
    """Why tokens that are all told to halt after step 1 do not compute the stock model; None where they do."""
    if recurrence.max_latents == 0:
        return None
    if recurrence.readout == "final":
        return f"a token told to halt after step 1 runs on and step {recurrence.max_steps} is read out"
    if recurrence.readout == "shares" and recurrence.gated:
        return "a token told to halt after step 1 reads out the share of step 1 alone, the rest is lost"
    if recurrence.visibility == "all" and recurrence.runs_on:
        return "a token told to halt after step 1 runs on, and tokens behind it attend to those steps"
    return None


class StockModel:
    """The stock model in float32 with a bundle's weights, built when it is first read."""

    def __init__(self, model: ModelSpec, recurrence: RecurrenceSpec, tensors: dict[str, torch.Tensor]) -> None:
        self.spec, self.scale, self._tensors = model, recurrence.embedding_scale, tensors
        self._model: torch.nn.Module | None = None
        self.absent: str | None = not_stock_at_depth_1(recurrence)
        """Why there is nothing to compare with, where `transformers` has no such model; else None."""
        try:
            stock_config(model)
        except InputError as error:
            self.absent = str(error)

    @torch.no_grad()
    def read(self, tokens: Ids) -> np.ndarray:
        """Logits float64 `[n, V]` of tokens int64 `[n]`. Step 1 scales the embedding, which a stock model does not.

        Errors: InputError where there is no such model.
        """
        if self._model is None:
            self._model = build_stock(self.spec, self._tensors, attention="eager")
        with threads_that_pay(self.spec):
            return self._read(self._model, tokens)

    def _read(self, model: torch.nn.Module, tokens: Ids) -> np.ndarray:
        embedded = model.get_input_embeddings()(torch.from_numpy(tokens)[None]) * self.scale  # type: ignore[operator]
        return model(inputs_embeds=embedded, use_cache=False).logits[0].double().numpy()


@contextlib.contextmanager
def _silent_progress() -> Iterator[None]:
    """No bar for loading tensors that are in memory already."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
