"""The report of a bundle, out of its manifest and, where onnx is installed, its graph."""

from __future__ import annotations

from typing import Any

from latentcot_export.bundle import Bundle, read_report
from latentcot_export.bundle.files import REPORTS
from latentcot_export.errors import InputError
from latentcot_export.inspection.graph import graph_report
from latentcot_export.runtime.tensorrt_engine import TARGET as TENSORRT
from latentcot_export.runtime.tensorrt_engine import engine_folder, rebuild_command
from latentcot_export.spec import DTYPE_BYTES, EXACT, to_json
from latentcot_export.spec.words import backbone_words, cache_facts, parameters, prefill_words, recurrence_words

SCHEMA_VERSION = 1
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"


def bundle_report(bundle: Bundle) -> dict[str, Any]:
    """Facts of an opened (hence verified) bundle. Without onnx, `graph` is None and `graph_note` says what to install.

    Errors: InputError when `model.onnx` is no ONNX model.
    """
    manifest = bundle.manifest
    graph, note = None, None
    try:
        graph = graph_report(bundle.read_bytes(GRAPH), f"file {GRAPH} of bundle {bundle.folder}")
    except ModuleNotFoundError:
        note = "inputs, outputs and operators need onnx: `pip install '.[export]'` in a checkout of latentcot-export"
    counts = parameters(manifest.model, manifest.recurrence)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "bundle",
        "name": str(bundle.folder),
        "family": manifest.family,
        "target": manifest.target,
        "dtype": manifest.dtype,
        "quantize": manifest.quantize,
        "opset": manifest.opset,
        "prefill": manifest.prefill,
        "digest": manifest.digest(),
        "recurrence_words": recurrence_words(manifest.recurrence),
        "prefill_words": prefill_words(manifest.prefill, manifest.recurrence),
        "backbone_words": backbone_words(manifest.model),
        "recurrence": to_json(manifest.recurrence) | {"max_steps": manifest.recurrence.max_steps},
        "model": to_json(manifest.model),
        "parameters": counts,
        "weights": {
            "quantize": manifest.quantize,
            # block-wise codes have no width of their own: what they take is the file
            "tensor_bytes": (
                counts["total"] * DTYPE_BYTES[manifest.dtype]
                if manifest.quantize == "none"
                else manifest.files[WEIGHTS]["size"]
            ),
            "file_bytes": manifest.files[WEIGHTS]["size"],
        },
        "cache": cache_facts(manifest.cache, manifest.model, manifest.recurrence),
        "tokens": {"eos_token_ids": list(manifest.eos_token_ids), "bos_token_id": manifest.bos_token_id},
        "graph": graph,
        "graph_note": note,
        "files": {name: dict(entry) for name, entry in sorted(manifest.files.items())},
        "reports": {name: _report_state(bundle, name) for name in REPORTS},
        "source": manifest.source,
        "built_with": manifest.built_with,
    }


def _report_state(bundle: Bundle, name: str) -> str:
    """What a report says of this bundle; reports are outside of the hashes, so a broken one is no broken bundle."""
    try:
        report = read_report(bundle, name, allow_stale=True)
    except InputError:
        return "unreadable"
    if report is None:
        return "none"
    if report.get("manifest_digest") != bundle.manifest.digest():
        return "stale: of another manifest"
    if name == "validation.json":
        return "passed" if report.get("passed") is True else "failed"
    return "measured this bundle"


def summary(bundle: Bundle) -> str:
    """What an export made, for the terminal: a few lines, each ending in a newline."""
    manifest = bundle.manifest
    size = sum(entry["size"] for entry in manifest.files.values()) / 2**20
    total = parameters(manifest.model, manifest.recurrence)["total"]
    slot = manifest.cache.bytes_per_slot(manifest.model)
    prompt = '-p "..."' if "tokenizer.json" in manifest.files else "--ids 1,2,3"
    lines = [
        f"wrote {bundle.folder}: {len(manifest.files)} files, {size:.1f} MiB, digest {manifest.digest()[:16]}",
        f"{manifest.family}, {total:,} parameters, up to {manifest.recurrence.max_steps} steps a token, "
        f"{manifest.target} {manifest.dtype if manifest.quantize == 'none' else manifest.quantize}, "
        f"opset {manifest.opset}{'' if manifest.prefill == EXACT else f', prefill {manifest.prefill}'}",
        f"cache: {slot:,} bytes per token per step; at most {manifest.cache.max_seq_len:,} tokens, "
        f"{manifest.cache.max_batch:,} sequences",
        _validation_line(bundle),
        f"next: {_next(bundle, prompt)}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _next(bundle: Bundle, prompt: str) -> str:
    if bundle.manifest.target == TENSORRT:
        return f"{rebuild_command(bundle, engine_folder(bundle))}, beside the GPU"
    return f"latentcot generate {bundle.folder} {prompt} --show-depth"


def _validation_line(bundle: Bundle) -> str:
    try:
        report = read_report(bundle, "validation.json")
    except InputError:
        report = None
    if report is None:
        device = " --device cuda" if bundle.manifest.target == TENSORRT else ""
        return f"not validated; do that with `latentcot validate {bundle.folder}{device}`"
    gates = report.get("gates")
    count = len(gates) if isinstance(gates, list) else 0
    state = "passed" if report.get("passed") is True else "FAILED"
    depth = report.get("mean_depth")
    mean = f", mean depth {depth:.2f}" if isinstance(depth, int | float) else ""
    return f"validation {state}: {count} gates on {report.get('tokens')} tokens{mean}"
