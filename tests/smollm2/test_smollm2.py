"""A real model through the whole road: 5 prompts, 64 greedy tokens each, equal to transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.smollm2

PROMPTS = (
    "The three laws of thermodynamics say that",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "To bake a loaf of bread you need",
    "Q: What is the capital of France?\nA:",
)


def test_tokens_equal_transformers(smollm2_base: Path, smollm2_bundle: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from latentcot_export import LatentCoTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2_base)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    stock = AutoModelForCausalLM.from_pretrained(smollm2_base, dtype="float32")
    wanted = []
    for ids in prompts:
        tokens = torch.tensor([ids])
        stock.generation_config.eos_token_id = None  # run on, as ignore_eos does below
        made = stock.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=64, do_sample=False)
        wanted.append(made[0].tolist())
    made = LatentCoTForCausalLM.from_pretrained(smollm2_bundle).generate(prompts, max_new_tokens=64, ignore_eos=True)
    assert [list(each) for each in made.sequences] == wanted
    assert all(depth == 1 for depths in made.depths for depth in depths)


def test_weights_are_stored_once(smollm2_bundle: Path) -> None:
    from latentcot_export.bundle import open_bundle
    from latentcot_export.validate.weights import bundle_tensors

    bundle = open_bundle(smollm2_bundle)
    tensors = bundle_tensors(bundle)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    assert bundle.path("model.onnx.data").stat().st_size <= 1.03 * needed
