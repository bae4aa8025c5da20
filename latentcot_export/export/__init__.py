"""A checkpoint folder becomes a bundle: graph, weights, seal, and validate before anything is put in its place."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

from ..bundle import Bundle, BundleWriter, Manifest, write_report
from ..checkpoint import Checkpoint, read_checkpoint, special_tokens, tokenizer_files
from ..errors import CheckFailed, InputError
from ..spec import EXACT
from .card import bundle_card
from .options import (
    cache_spec,
    check_options,
    check_prefill,
    check_quantize,
    check_refinable,
    default_cache_dtype,
    default_opset,
)
from .rtx import bundle_to_rebuild, check_rtx, is_bundle, rebuild_engine, same_folder, write_engine
from .save import save_beside, save_graph

Progress = Callable[[str], None]
_VERSIONED = ("latentcot-export", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    target: str = "onnx",
    dtype: str = "float32",
    quantize: str = "none",
    opset: int | None = None,
    max_seq_len: int | None = None,
    max_batch: int = 64,
    cache_dtype: str | None = None,
    cache_slots: int | None = None,
    prefill: str = EXACT,
    family: str | None = None,
    validate: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Writes a bundle of the checkpoint folder and returns it, verified and, unless `validate` is false, validated.

    `max_seq_len` defaults to the checkpoint's `max_position_embeddings`. For target `ort` only: `quantize` int8 or int4,
    `cache_dtype` (default: `dtype`, float16 where float32 is quantised), `cache_slots` of the pool (default: see
    `cache_spec`), `prefill` `jacobi:R`: prompts refined in parallel, see docs/families.md. A quantised bundle is validated
    against the checkpoint itself. `progress` is told each stage in a few words. Nothing is left behind when anything
    fails, and an older bundle stays until the new one has passed. Where the target is tensorrt-rtx, the checkpoint may be
    a bundle of it, whose engine is built again by the installed library.
    Errors: InputError for unusable input, CheckFailed when the quick validation finds a difference from the oracle.
    """
    say = progress or (lambda _stage: None)
    opset = default_opset(target) if opset is None else opset
    check_options(target, dtype, quantize, opset, cache_dtype, cache_slots)
    check_prefill(target, prefill)
    if target == "tensorrt" and validate:
        raise InputError(
            "--target tensorrt is validated where its engine is built: export with --no-validate, then run `python -m "
            "latentcot_export.runtime.tensorrt_build BUNDLE` and `latentcot validate BUNDLE --device cuda` beside the GPU"
        )
    if target == "tensorrt-rtx" and is_bundle(checkpoint):
        old = bundle_to_rebuild(checkpoint, dtype, max_seq_len, family)
        with BundleWriter(
            bundle, force=force, source=None if same_folder(old.folder, bundle) else old.folder
        ) as writer:
            say("building the engine")
            return _finish(writer, rebuild_engine(writer, old), None, validate, say)
    say("reading the checkpoint")
    source = read_checkpoint(checkpoint, family)
    check_quantize(source, quantize)
    check_refinable(source, prefill)
    if target == "tensorrt-rtx":
        check_rtx(source)
    stored = cache_dtype or default_cache_dtype(dtype, quantize)
    cache = cache_spec(source, target, stored, max_seq_len, max_batch, cache_slots)
    built_with = _versions()
    with BundleWriter(bundle, force=force, source=source.folder) as writer:
        if target == "ort":
            say("writing the pass" if quantize == "none" else f"quantising the weights to {quantize}")
            from .narrow_graph import narrow_pass, widen_weights
            from .native_graph import native_model
            from .pass_graph import pass_model

            specs = (source.model, source.recurrence, cache)
            native = native_model(*specs, source.tensors, quantize, prefill != EXACT, dtype)
            widen_weights(native.model)
            say("writing the graphs and the weights")
            save_graph(native.model, writer.folder, native.views)
            if prefill == EXACT:  # refining is the host's work pass by pass, which a replay has not
                one_pass = pass_model(*specs, native.weights.again())
                replayed, views = one_pass.model, one_pass.views
                if dtype != "float32":
                    replayed, views = narrow_pass(one_pass, dtype)
                save_beside(replayed, writer.folder, views)
        elif target == "tensorrt":
            say("writing the pass")
            from .tensorrt_graph import write_pass

            write_pass(writer.folder, source, cache, dtype)
        else:
            say("tracing the pass")
            from .trace import portable_model  # torch.export and onnxscript take seconds to import

            model = portable_model(source.model, source.recurrence, source.tensors, dtype, opset)
            say("writing the graph and the weights")
            save_graph(model, writer.folder)
            if target == "tensorrt-rtx":
                say("building the engine")
                facts = write_engine(writer.folder, source.model, source.recurrence, cache, dtype)
                built_with[target] = facts.version
        _copy_companions(source, writer.folder)
        tokens = special_tokens(source)
        manifest = Manifest(
            family=source.family,
            target=target,
            dtype=dtype,
            quantize=quantize,
            opset=opset,
            model=source.model,
            recurrence=source.recurrence,
            cache=cache,
            eos_token_ids=tokens.eos_token_ids,
            bos_token_id=tokens.bos_token_id,
            prefill=prefill,
            source=_source(source),
            built_with=built_with,
        )
        (writer.folder / "README.md").write_text(bundle_card(source, manifest), encoding="utf-8")
        return _finish(writer, manifest, None if quantize == "none" else source.folder, validate, say)


def _finish(writer: BundleWriter, manifest: Manifest, against: Path | None, validate: bool, say: Progress) -> Bundle:
    """Seals what was written, validates it and puts it in place."""
    say("hashing")
    sealed = writer.seal(manifest)
    report = None
    if validate:
        by = " with ONNX Runtime on the CPU, the engine is not run" if manifest.target == "tensorrt-rtx" else ""
        say(f"validating the graph against the oracle{by}")
        report = _validated(sealed, writer.out.name, against)
    say("putting the bundle in place")
    written = writer.commit()
    if report is not None:
        write_report(written, "validation.json", report)
    return written


def _copy_companions(source: Checkpoint, folder: Path) -> None:
    """config.json as the checkpoint has it, and the files that travel with a model: tokenizer, held-out text."""
    (folder / "config.json").write_bytes((source.folder / "config.json").read_bytes())
    for name, path in tokenizer_files(source.folder).items():
        (folder / name).write_bytes(path.read_bytes())


def _source(source: Checkpoint) -> dict[str, str]:
    """Where the weights came from: hashes, not paths. The weights' hash covers names, dtypes, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in source.tensors.items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    config = hashlib.sha256((source.folder / "config.json").read_bytes()).hexdigest()
    name = source.folder.resolve().name or "checkpoint"
    return {"family": source.family, "name": name, "config_sha256": config, "weights_sha256": digest.hexdigest()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _validated(sealed: Bundle, name: str, against: Path | None) -> dict[str, object]:
    """The quick report of the sealed folder, as of the bundle `name`, held against its own weights or a checkpoint's.

    Errors: CheckFailed, the first gate that failed.
    """
    from ..validate import validate as run_gates

    report = run_gates(sealed, against=against, level="quick")
    failure = report.failure()
    if failure is not None:
        raise CheckFailed(
            f"the exported graph is not the oracle's, so no bundle was written: {failure}; "
            "export with --no-validate to keep it for inspection and file an issue"
        )
    return report.to_json() | {"bundle": name}


__all__ = ["export"]
