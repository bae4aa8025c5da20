"""The model card of a bundle: what it is, how to run it, what was left out."""

from __future__ import annotations

from ..bundle import Manifest
from ..checkpoint import Checkpoint
from ..spec import RecurrenceSpec
from ..spec.words import backbone_words, prefill_words, recurrence_words

_CARD = """\
# {name}, exported

A language model as one {target} graph: {steps}.
Made by latentcot-export {version} from the `{family}` checkpoint `{name}`.

{recurrence}

{backbone}

| | |
|---|---|
| layers, hidden, heads / kv heads | {layers}, {hidden}, {heads} / {kv_heads} |
| most latent thoughts per token | {max_latents} |
| dtype, opset | {dtype}, {opset} |
| quantised weights | {quantize} |
| longest sequence, largest batch | {max_seq_len}, {max_batch} |
| cache bytes per executed (token, step) | {slot_bytes}, {cache_dtype} |

    latentcot generate {name} -p "..." -n 64 --show-depth
    latentcot validate {name} --level full

{notes}{gates}`latentcot.json` lists every file with its
sha256; `validation.json` and `bench.json`, where present, are reports about these files and are never read to run them.
The licence of the weights is that of the checkpoint they came from.
"""

_GATES = "The gate and the mixing of hidden states are float32 whatever the dtype. "


def bundle_card(source: Checkpoint, manifest: Manifest) -> str:
    """Markdown text of the bundle's README.md."""
    model, recurrence = manifest.model, manifest.recurrence
    return _CARD.format(
        name=manifest.source["name"],
        target=manifest.target,
        steps=_steps(recurrence),
        recurrence=" ".join(filter(None, (recurrence_words(recurrence), prefill_words(manifest.prefill, recurrence)))),
        backbone=backbone_words(model),
        version=manifest.built_with.get("latentcot-export", "(source tree)"),
        family=source.family,
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        max_latents=recurrence.max_latents,
        dtype=manifest.dtype,
        opset=manifest.opset,
        max_seq_len=manifest.cache.max_seq_len,
        max_batch=manifest.cache.max_batch,
        slot_bytes=manifest.cache.bytes_per_slot(model),
        cache_dtype=manifest.cache.dtype,
        quantize=manifest.quantize,
        notes=_notes(manifest),
        gates=_GATES if recurrence.gated else "",
    )


def _steps(recurrence: RecurrenceSpec) -> str:
    """How many steps a token takes, and who says so."""
    most = recurrence.max_steps
    if most == 1:
        return "every token takes one step"
    if not recurrence.gated:
        return f"every token thinks for {most} steps"
    if not recurrence.skip_halted:
        return f"every token thinks for {most} steps, and the graph itself decides which of them are read out"
    return f"every token thinks for 1 to {most} steps, and the graph itself decides how many"


def _notes(manifest: Manifest) -> str:
    """What a reader must know of target `ort` and of quantised weights; empty for others."""
    notes = ""
    if manifest.target == "ort":
        notes += (
            "It runs on ONNX Runtime 1.24 or later on a CPU, with the op library of this package. Its cache is a pool of\n"
            f"{manifest.cache.slots} slots unless the host makes another one.\n\n"
        )
    if manifest.target == "ort" and manifest.dtype != "float32":
        of = "matrices" if manifest.quantize == "none" else "matrices' scales"
        notes += (
            f"Its {of} are {manifest.dtype}. A CPU widens them when it loads the graph and multiplies in float32.\n"
            f"On a GPU products, queries, keys and values are {manifest.dtype}, residuals and norms float32.\n\n"
        )
    if manifest.target == "tensorrt-rtx":
        notes += (
            "`engine.json` names the engine that TensorRT for RTX made of the graph without a GPU, the version that reads\n"
            "it and the GPUs it is for. On a CPU ONNX Runtime runs the graph; that is what `validation.json` is about.\n\n"
        )
    if manifest.target == "tensorrt":
        notes += (
            "It runs on NVIDIA GPUs by TensorRT, with the plugins of this package, once `python -m\n"
            "latentcot_export.runtime.tensorrt_build` has built its engine there. Its cache is a pool of\n"
            f"{manifest.cache.slots} slots unless the host makes another one.\n\n"
        )
    if manifest.quantize != "none":
        notes += (
            f"The matrices of the layers, the head and the embedding table are {manifest.quantize}, with a scale and a\n"
            f"zero point for each block, scales {manifest.dtype}. **Activations are int8 inside these products**\n"
            "on a CPU (MatMulNBits, accuracy level 4), which moves a product by about 0.5 % root mean square. Norms and\n"
            "router are float32.\n\n"
        )
    return notes
