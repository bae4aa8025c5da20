"""A checkpoint folder becomes a bundle: trace, wrap, write, seal, and validate before anything is put in its place."""

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
from ..spec import CacheSpec
from .card import bundle_card
from .save import save_graph

TARGETS = ("onnx",)
DTYPES = ("float32", "float16")
DEFAULT_OPSET = 24
OPSETS = (20, 21, 22, 23, 24)
Progress = Callable[[str], None]
_VERSIONED = ("latentcot-export", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    target: str = "onnx",
    dtype: str = "float32",
    opset: int = DEFAULT_OPSET,
    max_seq_len: int | None = None,
    max_batch: int = 64,
    family: str | None = None,
    validate: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Writes a bundle of the checkpoint folder and returns it, verified and, unless `validate` is false, validated.

    `max_seq_len` defaults to the checkpoint's `max_position_embeddings`. `progress` is told each stage in a few words.
    Nothing is left behind when anything fails, and an older bundle stays until the new one has passed.
    Errors: InputError for unusable input, CheckFailed when the quick validation finds a difference from the oracle.
    """
    say = progress or (lambda _stage: None)
    _check_options(target, dtype, opset)
    say("reading the checkpoint")
    source = read_checkpoint(checkpoint, family)
    cache = _cache_spec(source, dtype, max_seq_len, max_batch)
    with BundleWriter(bundle, force=force, source=source.folder) as writer:
        say("tracing the pass")
        from .trace import portable_model  # torch.export and onnxscript take seconds to import

        model = portable_model(source.model, source.recurrence, source.tensors, dtype, opset)
        say("writing the graph and the weights")
        save_graph(model, writer.folder)
        _copy_companions(source, writer.folder)
        tokens = special_tokens(source)
        manifest = Manifest(
            family=source.family,
            target=target,
            dtype=dtype,
            opset=opset,
            model=source.model,
            recurrence=source.recurrence,
            cache=cache,
            eos_token_ids=tokens.eos_token_ids,
            bos_token_id=tokens.bos_token_id,
            source=_source(source),
            built_with=_versions(),
        )
        (writer.folder / "README.md").write_text(bundle_card(source, manifest), encoding="utf-8")
        say("hashing")
        sealed = writer.seal(manifest)
        report = None
        if validate:
            say("validating against the oracle")
            report = _validated(sealed, writer.out.name)
        say("putting the bundle in place")
        written = writer.commit()
    if report is not None:
        write_report(written, "validation.json", report)
    return written


def _check_options(target: str, dtype: str, opset: int) -> None:
    if target not in TARGETS:
        raise InputError(
            f"--target {target} is not in this version, which writes {', '.join(TARGETS)}; use --target onnx"
        )
    if dtype == "bfloat16":
        raise InputError(
            "--dtype bfloat16 cannot run on ONNX Runtime's CPU, which has no bfloat16 products; use float32 or float16"
        )
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype}, it must be one of {', '.join(DTYPES)}; choose one of these")
    if opset not in OPSETS:
        raise InputError(
            f"--opset is {opset}, it must be from {OPSETS[0]} to {OPSETS[-1]}; leave it out for {DEFAULT_OPSET}"
        )


def _cache_spec(source: Checkpoint, dtype: str, max_seq_len: int | None, max_batch: int) -> CacheSpec:
    most = source.model.max_position_embeddings
    length = most if max_seq_len is None else max_seq_len
    if source.model.rope.kind == "dynamic" and length > most:
        raise InputError(
            f"--max-seq-len is {length} and {source.folder} uses dynamic RoPE made for {most} positions: beyond them "
            f"prefill and decoding differ by construction; use --max-seq-len {most} or less"
        )
    try:
        return CacheSpec(dtype=dtype, max_seq_len=length, max_batch=max_batch)
    except ValueError as error:
        raise InputError(f"{error}; change --max-seq-len or --max-batch") from None


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


def _validated(sealed: Bundle, name: str) -> dict[str, object]:
    """The quick report of the sealed folder, as of the bundle `name`. Errors: CheckFailed, the first gate that failed."""
    from ..validate import validate as run_gates

    report = run_gates(sealed, level="quick")
    failure = report.failure()
    if failure is not None:
        raise CheckFailed(
            f"the exported graph is not the oracle's, so no bundle was written: {failure}; "
            "export with --no-validate to keep it for inspection and file an issue"
        )
    return report.to_json() | {"bundle": name}


__all__ = ["export"]
