"""The engine of a `--target tensorrt-rtx` bundle: what engine.json states of it, and the library that reads it.

An engine is read by the very version of TensorRT for RTX that built it, on the compute capabilities it was built for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..bundle.files import REMEDY, is_flat_name
from ..errors import InputError
from ..strict_json import canonical, parse

TARGET = "tensorrt-rtx"
FACTS = "engine.json"
SCHEMA_VERSION = 1
GRAPH_FILES = ("model.onnx", "model.onnx.data")
_MAX_BYTES = 1 << 16

Sizes = Mapping[str, int]
"""Axis of the graph -> size, for `axes` of a profile."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """The sizes that one part of an engine takes: axis of the graph -> (least, what it is tuned for, most)."""

    axes: dict[str, tuple[int, int, int]]

    def __post_init__(self) -> None:
        """Check that least <= tuned <= most. Errors: ValueError."""
        for axis, (least, tuned, most) in self.axes.items():
            if not 0 <= least <= tuned <= most:
                raise ValueError(f"axis {axis} has the sizes {least}, {tuned}, {most}")

    def takes(self, sizes: Sizes) -> bool:
        """Whether every axis of it has a size in range."""
        return all(least <= sizes[axis] <= most for axis, (least, _, most) in self.axes.items())


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """What engine.json states. `file` lies in the bundle, `version` is the library's, `graph` a sha256, see `graph_key`.

    `compute_capabilities` as NVIDIA writes them: "8.9".
    """

    version: str
    dtype: str
    graph: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]

    @property
    def file(self) -> str:
        """Name of the engine: another library, dtype or graph has another name."""
        return f"model.{TARGET}-{self.version}.{self.dtype}.{self.graph[:12]}.engine"

    def to_json(self) -> dict[str, Any]:
        """The document of engine.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "library": TARGET,
            **dataclasses.asdict(self),
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [{axis: list(sizes) for axis, sizes in each.axes.items()} for each in self.profiles],
        }

    @staticmethod
    def from_json(data: Any) -> EngineFacts:
        """The inverse of `to_json`. Errors: ValueError, also for a value that `to_json` would not write."""
        try:
            facts = EngineFacts(
                version=data["version"],
                dtype=data["dtype"],
                graph=data["graph"],
                compute_capabilities=tuple(data["compute_capabilities"]),
                profiles=tuple(
                    Profile({axis: (least, tuned, most) for axis, (least, tuned, most) in each.items()})
                    for each in data["profiles"]
                ),
            )
            same = canonical(facts.to_json()) == canonical(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no engine is described so: {error}") from None
        texts = all(isinstance(each, str) for each in (facts.version, facts.graph, *facts.compute_capabilities))
        if not same or not texts or not facts.profiles or not is_flat_name(facts.file):
            raise ValueError("it states something else than this version writes")
        return facts


def graph_key(hashes: Mapping[str, str]) -> str:
    """sha256 over the sha256 of the graph and of its weights, which an engine holds both; 64 hex digits."""
    return hashlib.sha256(canonical({name: hashes[name] for name in GRAPH_FILES})).hexdigest()


def rebuild_command(bundle: Path) -> str:
    """What builds the engine of a bundle again, with the library that is installed."""
    folder = shlex.quote(str(bundle))
    return f"latentcot export {folder} {folder} --target {TARGET} --force"


def engine_facts(bundle: Bundle) -> EngineFacts:
    """engine.json of a bundle, whose engine is of the bundle's own graph. Errors: InputError."""
    what = f"file {FACTS} of bundle {bundle.folder}"
    try:
        facts = EngineFacts.from_json(parse(bundle.read_bytes(FACTS), what, _MAX_BYTES, REMEDY))
    except ValueError as error:
        raise InputError(f"{what} is not one of this version ({error}); {REMEDY}") from None
    key = graph_key({name: entry["sha256"] for name, entry in bundle.manifest.files.items()})
    if (facts.graph, facts.dtype) != (key, bundle.manifest.dtype):
        raise InputError(f"{what} is about another graph than this bundle's; run `{rebuild_command(bundle.folder)}`")
    return facts


def tensorrt_rtx() -> Any:
    """The module of TensorRT for RTX. Errors: InputError that says what to install."""
    try:
        import tensorrt_rtx as module
    except (ImportError, OSError, RuntimeError) as error:  # the package, or a library that it loads
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"target {TARGET} needs TensorRT for RTX, which cannot be imported here ({reason}); "
            f"install it with `pip install '.[{TARGET}]'` in a checkout of latentcot-export"
        ) from None
    return module


def check_version(bundle: Bundle, facts: EngineFacts, installed: str) -> None:
    """Refuses an engine that another version of the library built. Errors: InputError with the rebuild command."""
    if facts.version != installed:
        raise InputError(
            f"engine {facts.file} was built with TensorRT for RTX {facts.version} and {installed} is installed, which "
            f"does not read it; build it again with `{rebuild_command(bundle.folder)}`"
        )


def check_capability(facts: EngineFacts, found: str) -> None:
    """Refuses a GPU that the engine was not built for; there are none that a rebuild would add. Errors: InputError."""
    if found not in facts.compute_capabilities:
        raise InputError(
            f"this GPU has compute capability {found} and engine {facts.file} is for "
            f"{', '.join(facts.compute_capabilities)}, all that TensorRT for RTX {facts.version} builds for; export with "
            "--target ort, or use device cpu"
        )
