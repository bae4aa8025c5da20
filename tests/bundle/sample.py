"""A small bundle for tests: its graph and weights are any bytes, since this floor never looks into them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from latentcot_export.bundle import Bundle, BundleWriter, Manifest
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec, RopeSpec
from latentcot_export.strict_json import readable

FILES = {
    "config.json": b'{"model_type": "adaptive_latent_cot"}\n',
    "model.onnx": bytes(range(256)),
    "model.onnx.data": bytes(range(255, -1, -1)) * 16,
    "tokenizer.json": b"{}\n",
}

MODEL = ModelSpec(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-05,
    max_position_embeddings=256,
    rope=RopeSpec(kind="linear", factor=2.0),
)


def manifest(**changes: Any) -> Manifest:
    """A manifest as an exporter hands it to the writer, without files."""
    plain = Manifest(
        family="adaptive_latent_cot",
        target="onnx",
        dtype="float32",
        opset=24,
        model=MODEL,
        recurrence=RecurrenceSpec(max_latents=4, halt_threshold=0.2),
        cache=CacheSpec(max_seq_len=256),
        source={
            "family": "adaptive_latent_cot",
            "name": "latentcot-tiny",
            "config_sha256": hashlib.sha256(b"config").hexdigest(),
            "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        },
        built_with={"latentcot-export": "0.1.0", "torch": "2.13.0+cpu"},
        eos_token_ids=(0, 2),
        bos_token_id=1,
    )
    return dataclasses.replace(plain, **changes)


def full_manifest(**changes: Any) -> Manifest:
    """The manifest of a bundle of FILES."""
    entries = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(FILES.items())
    }
    return manifest(**{"files": entries, **changes})


def write_files(folder: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_bundle(out: Path, **options: Any) -> Bundle:
    with BundleWriter(out, **options) as writer:
        write_files(writer.folder)
        return writer.commit(manifest())


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, hidden ones too; None for what is no regular file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def forge(folder: Path, change: dict[str, Any]) -> None:
    """Rewrite `latentcot.json` with some keys changed and a digest that holds, as an attacker would."""
    import json

    from latentcot_export.strict_json import canonical

    path = folder / "latentcot.json"
    data = {**json.loads(path.read_bytes()), **change}
    data.pop("digest", None)
    data["digest"] = hashlib.sha256(canonical(data)).hexdigest()
    path.write_bytes(readable(data))
