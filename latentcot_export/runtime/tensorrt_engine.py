"""The engines of a `--target tensorrt` bundle: which one a machine needs, where it lies, and what is proved before it runs.

An engine is one pass of a bundle for one version of TensorRT and one kind of GPU, so it is built where it runs, and kept in
a folder beside the bundle, whose own files never change. Beside each engine lies a JSON file of the same name that says
what it is; nothing is deserialised whose bytes are not the ones that were written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
from pathlib import Path
from typing import Any

from ..bundle import Bundle, files
from ..errors import InputError
from ..strict_json import parse, readable

TARGET = "tensorrt"
SCHEMA_VERSION = 1
PLUGIN_VERSION = "1"  # kVersion of plugins/tensorrt/plugin.hpp
_MAX_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class EngineKey:
    """What an engine depends on: TensorRT's version, the GPU's `sm` ("9.0"), and the bundle by dtype and digest."""

    tensorrt: str
    sm: str
    dtype: str
    bundle: str

    @property
    def file(self) -> str:
        """Name of the engine: whatever it depends on is in it."""
        return f"{TARGET}-{self.tensorrt}.sm{self.sm.replace('.', '')}.{self.dtype}.{self.bundle[:16]}.engine"


def engine_key(bundle: Bundle, tensorrt: str, sm: str) -> EngineKey:
    """The engine that a bundle needs here."""
    return EngineKey(tensorrt, sm, bundle.manifest.dtype, bundle.manifest.digest())


def engine_folder(bundle: Bundle, folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the engines of a bundle lie unless somebody says otherwise: beside it, in `<bundle>.engines`."""
    return Path(folder) if folder else bundle.folder.with_name(f"{bundle.folder.name}.engines")


def rebuild_command(bundle: Bundle, folder: Path) -> str:
    """What builds the engine of a bundle with the TensorRT and for the GPU of the machine it is run on."""
    command = f"python -m latentcot_export.runtime.tensorrt_build {shlex.quote(str(bundle.folder))}"
    return command if folder == engine_folder(bundle) else f"{command} --engines {shlex.quote(str(folder))}"


def write_engine(folder: Path, key: EngineKey, plan: bytes | memoryview) -> Path:
    """Puts an engine and its description in the folder, each as a whole, the description last."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "library": TARGET,
        **dataclasses.asdict(key),
        "plugins": PLUGIN_VERSION,
        "size": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
    }
    _facts(folder, key).unlink(missing_ok=True)  # a description never stands beside another engine's bytes
    files.replace_file(folder / key.file, plan)
    files.replace_file(_facts(folder, key), readable(facts))
    return folder / key.file


def read_engine(bundle: Bundle, folder: Path, key: EngineKey) -> bytes:
    """The bytes of an engine, proved to be those that were written for this key.

    Errors: InputError, with the command that builds it, where it is missing, of another version of TensorRT or another GPU,
    or changed.
    """
    command = rebuild_command(bundle, folder)
    if not (folder / key.file).exists() or not _facts(folder, key).exists():
        raise InputError(f"{_missing(folder, key)}; build it with `{command}`")
    facts = _read_facts(_facts(folder, key), command)
    wanted = {**dataclasses.asdict(key), "plugins": PLUGIN_VERSION}
    for name, value in wanted.items():
        if facts[name] != value:
            raise InputError(
                f"engine {folder / key.file} states {name} {facts[name]} and this bundle on this machine needs {value}; "
                f"build it again with `{command}`"
            )
    with files.open_regular(folder / key.file, f"engine {folder / key.file}") as stream:
        plan = files.read_limited(stream, facts["size"])
    if len(plan) != facts["size"] or hashlib.sha256(plan).hexdigest() != facts["sha256"]:
        raise InputError(
            f"engine {folder / key.file} is not the one that was built, by its size or sha256, and is not loaded; build it "
            f"again with `{command}`"
        )
    return plan


def _missing(folder: Path, key: EngineKey) -> str:
    """That there is no engine, and which there is instead: of another version or GPU, most likely."""
    said = f"there is no engine of this bundle for TensorRT {key.tensorrt} and compute capability {key.sm} in {folder}"
    others = []
    for path in sorted(folder.glob(f"{TARGET}-*.{key.dtype}.{key.bundle[:16]}.engine.json")):
        try:
            facts = _read_facts(path, "")
        except InputError:
            continue
        others.append(f"TensorRT {facts['tensorrt']} and compute capability {facts['sm']}")
    return f"{said}, only for {', '.join(others)}" if others else said


def _facts(folder: Path, key: EngineKey) -> Path:
    return folder / f"{key.file}.json"


def _read_facts(path: Path, command: str) -> dict[str, Any]:
    remedy = f"build the engine again with `{command}`"
    what = f"file {path}"
    with files.open_regular(path, what) as stream:
        data = parse(files.read_limited(stream, _MAX_BYTES), what, _MAX_BYTES, remedy)
    kinds = {"schema_version": int, "size": int}
    names = ["library", *(field.name for field in dataclasses.fields(EngineKey)), "plugins", "sha256", *kinds]
    good = isinstance(data, dict) and set(data) == set(names)
    good = good and all(type(data[name]) is kinds.get(name, str) for name in names)
    if not good or data["schema_version"] != SCHEMA_VERSION or data["library"] != TARGET or data["size"] < 0:
        raise InputError(f"{what} does not describe an engine as this version does; {remedy}")
    assert isinstance(data, dict)
    return data


def timing_file(folder: Path, key: EngineKey) -> Path:
    """Timings of tactics, of use to every build by the same TensorRT for the same kind of GPU."""
    return folder / f"{TARGET}-{key.tensorrt}.sm{key.sm.replace('.', '')}.timings"
