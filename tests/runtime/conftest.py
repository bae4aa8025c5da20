"""Models of the runtime's tests: one without a tokenizer, one with. Loaded once, never changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcot_export import LatentCoTForCausalLM
from tests.runtime.sample import Oracle, byte_tokenizer, rebundle


@pytest.fixture(scope="session")
def model(random_bundle: Path) -> LatentCoTForCausalLM:
    """Random weights, 1 to 5 steps a token, 96 tokens, at most 512 in a sequence; neither tokenizer nor EOS."""
    return LatentCoTForCausalLM.from_pretrained(random_bundle)


@pytest.fixture(scope="session")
def text_bundle(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a tokenizer whose end token is EOS, at most 3 sequences in a batch."""
    data = byte_tokenizer().to_str().encode()
    cache = LatentCoTForCausalLM.from_pretrained(random_bundle).manifest.cache
    small = type(cache)(cache.dtype, cache.max_seq_len, max_batch=3)
    out = tmp_path_factory.mktemp("text") / "bundle"
    return rebundle(random_bundle, out, {"tokenizer.json": data}, eos_token_ids=(0,), cache=small)


@pytest.fixture(scope="session")
def text_model(text_bundle: Path) -> LatentCoTForCausalLM:
    """A model of `text_bundle`."""
    return LatentCoTForCausalLM.from_pretrained(text_bundle)


@pytest.fixture(scope="session")
def oracle(random_checkpoint: Path) -> Oracle:
    """The truth about the weights of all these bundles."""
    return Oracle(random_checkpoint)
