"""`latentcot.json`: what a bundle holds, how it was made, and the sha256 of its every byte."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path, PureWindowsPath
from typing import Any, TypedDict

from latentcot_export import spec, strict_json
from latentcot_export.bundle import files as rules
from latentcot_export.errors import InputError
from latentcot_export.spec.fields import added
from latentcot_export.strict_json import shortened, shown

SCHEMA_VERSION = 1
MAX_BYTES = 1 << 20
MAX_FILES = 256
MAX_FILE_BYTES = 1 << 50
MAX_STOP_TOKENS = 1024
MAX_VERSIONS = 64
MAX_TEXT = 256
TARGETS = ("onnx", "ort", "tensorrt", "tensorrt-rtx")
POOLED = ("ort", "tensorrt")  # targets of packed rows: their cache is a pool of slots
QUANTIZE = ("none", "int8", "int4")
SOURCE_KEYS = ("family", "name", "config_sha256", "weights_sha256")
SOURCE_OPTIONAL = ("revision",)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PARTS = {"model": spec.ModelSpec, "recurrence": spec.RecurrenceSpec, "cache": spec.CacheSpec}


class FileEntry(TypedDict):
    """One file of a bundle: `size` in bytes, `sha256` as 64 lower-case hex digits."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a bundle states of itself. `files` is empty until `BundleWriter` has hashed them.

    `source` says which checkpoint it was made of: `family`, `name`, `config_sha256`, `weights_sha256` and, if known,
    `revision`; never an absolute path, which would tell of the machine it was made on. `built_with` maps a package to
    its version. Token ids are those of `config.json`, 0 <= id < vocab_size. `prefill` says how a prompt is run: `exact`, or
    `jacobi:R`, refined in parallel for R rounds. Errors: InputError on a value out of range.
    """

    family: str
    target: str
    dtype: str
    opset: int
    model: spec.ModelSpec
    recurrence: spec.RecurrenceSpec
    cache: spec.CacheSpec
    source: dict[str, str]
    built_with: dict[str, str]
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    quantize: str = "none"
    files: dict[str, FileEntry] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    prefill: str = added(spec.EXACT)

    def __post_init__(self) -> None:
        """Check every value that the specs do not check themselves."""
        _integer("schema_version", self.schema_version, SCHEMA_VERSION, SCHEMA_VERSION)
        if not isinstance(self.family, str) or not _WORD.fullmatch(self.family):
            raise InputError(f"family is {shown(self.family)}, it must be a word of letters, digits, '.', '_' and '-'")
        _choice("target", self.target, TARGETS)
        _choice("dtype", self.dtype, tuple(spec.DTYPE_BYTES))
        _choice("quantize", self.quantize, QUANTIZE)
        _integer("opset", self.opset, 1, 99)
        for name, kind in _PARTS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} is {shown(getattr(self, name))}, it must be a {kind.__name__}")
        _combination(self)
        _prefill(self)
        object.__setattr__(self, "eos_token_ids", _token_ids(self.eos_token_ids, self.model.vocab_size))
        if self.bos_token_id is not None:
            _integer("bos_token_id", self.bos_token_id, 0, self.model.vocab_size - 1)
        object.__setattr__(self, "source", _source(self.source))
        object.__setattr__(self, "built_with", _versions(self.built_with))
        object.__setattr__(self, "files", _files(self.files))

    @property
    def rounds(self) -> int | None:
        """R of a prompt that is refined in parallel, None where it is run token by token."""
        return spec.prefill_rounds(self.prefill)

    def digest(self) -> str:
        """sha256 of the canonical JSON of everything but the key `digest`: the identity of this bundle, 64 hex digits.

        Canonical: sorted keys, no whitespace, ASCII.
        """
        return hashlib.sha256(strict_json.canonical(self._body())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, `digest` included."""
        return {**self._body(), "digest": self.digest()}

    def to_bytes(self) -> bytes:
        """The text of `latentcot.json`, the only spelling of this manifest that a reader accepts."""
        return strict_json.readable(self.to_json())

    @staticmethod
    def from_json(data: Any, where: str = rules.MANIFEST) -> Manifest:
        """The inverse of `to_json`: every key must be there, an `added` one if it is not its default, and no other may.

        `digest` must hold. Errors: InputError, one sentence that begins with `where`.
        """
        if not isinstance(data, dict):
            raise InputError(f"{where} holds no JSON object; {rules.REMEDY}")
        version = data.get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            raise InputError(
                f"{where} has schema_version {shown(version)} and this version reads up to {SCHEMA_VERSION}; "
                "upgrade latentcot-export to read it"
            )
        keys = {field.name for field in dataclasses.fields(Manifest)} | {"digest"}
        needed = keys - {field.name for field in dataclasses.fields(Manifest) if field.metadata.get("added")}
        for problem, names in (("lacks the key", needed - set(data)), ("has the unknown key", set(data) - keys)):
            if names:
                raise InputError(f"{where} {problem} {shown(min(names))}; {rules.REMEDY}")
        values = {key: value for key, value in data.items() if key != "digest"}
        try:
            for name, kind in _PARTS.items():
                values[name] = spec.from_json(kind, values[name], name)
            if not isinstance(values["eos_token_ids"], list):
                raise InputError("eos_token_ids is not a list")
            if not values["files"]:
                raise InputError("files is empty")
            manifest = Manifest(**values)
            # Compared as text, so that 1 for 1.0 or a left-out default is a difference too.
            same = strict_json.canonical(data) == strict_json.canonical(manifest.to_json())
        except (InputError, ValueError, OverflowError) as error:  # a SpecError or a NaN; an integer beyond any float
            # A spec quotes the value it refuses, and that can be as long as the whole file.
            raise InputError(f"{where}: {shortened(str(error), 400)}; {rules.REMEDY}") from None
        if not same:
            raise InputError(f"{where} does not have the sha256 it states as its digest; {rules.REMEDY}")
        return manifest

    @staticmethod
    def from_bytes(raw: bytes, where: str = rules.MANIFEST) -> Manifest:
        """The inverse of `to_bytes`. Errors: InputError on anything that `to_bytes` would not have written."""
        manifest = Manifest.from_json(strict_json.parse(raw, where, MAX_BYTES, rules.REMEDY), where)
        # One flipped bit can turn 1e-05 into 1E-05, which is the same number: only the very bytes show it.
        if raw != manifest.to_bytes():
            raise InputError(f"{where} is not spelled as it was written; {rules.REMEDY}")
        return manifest

    def _body(self) -> dict[str, Any]:
        body = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not (field.metadata.get("added") and getattr(self, field.name) == field.default)
        }
        body.update({name: spec.to_json(body[name]) for name in _PARTS})
        body["eos_token_ids"] = list(self.eos_token_ids)
        return body


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} is {shown(value)}, it must be an integer from {low} to {high}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {shown(value)}, this version knows {', '.join(choices)}")


def _combination(manifest: Manifest) -> None:
    """What goes together: only packed rows have a pool of slots, only `ort` another dtype there or quantised weights."""
    cache, native = manifest.cache, manifest.target == "ort"
    if (manifest.target in POOLED) != (cache.slots is not None):
        raise InputError(f"cache.slots is {shown(cache.slots)}, which target {manifest.target} cannot have")
    if manifest.target not in POOLED:
        for name, dtype in (("dtype", manifest.dtype), ("cache.dtype", cache.dtype)):
            if dtype == "bfloat16":
                raise InputError(f"{name} is {shown(dtype)}, which target {manifest.target} cannot have")
    if not native and manifest.quantize != "none":
        raise InputError(f"quantize is {shown(manifest.quantize)}, which target {manifest.target} cannot have")


def _prefill(manifest: Manifest) -> None:
    """Which prompts can be refined in parallel, and by what."""
    try:
        rounds = spec.prefill_rounds(manifest.prefill)
    except spec.SpecError as error:
        raise InputError(str(error)) from None
    if rounds is not None and (manifest.target != "ort" or not spec.refinable(manifest.recurrence)):
        raise InputError(f"prefill is {manifest.prefill}, which target {manifest.target} or its recurrence cannot have")


def _text(name: str, value: Any) -> None:
    # Printable, since `inspect` shows it in a terminal.
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise InputError(f"{name} is {shown(value)}, it must be 1 to {MAX_TEXT} printable characters")
    if Path(value).is_absolute() or PureWindowsPath(value).drive or value[0] in "/\\~" or value.startswith("file:"):
        raise InputError(f"{name} is {shown(value)}, it must not be an absolute path")


def _sha256(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InputError(f"{name} is {shown(value)}, it must be 64 lower-case hex digits")


def _mapping(name: str, value: Any, most: int) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > most or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} is {shown(value)}, it must be an object of at most {most} keys")
    return dict(value)


def _token_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_STOP_TOKENS:
        raise InputError(f"eos_token_ids is {shown(value)}, it must be a list of at most {MAX_STOP_TOKENS} token ids")
    for token in value:
        _integer("a token of eos_token_ids", token, 0, vocab_size - 1)
    if len(set(value)) != len(value):
        raise InputError(f"eos_token_ids is {shown(value)}, it names a token twice")
    return tuple(value)


def _source(value: Any) -> dict[str, str]:
    source = _mapping("source", value, 16)
    for key in SOURCE_KEYS:
        if key not in source:
            raise InputError(f"source lacks {key!r}")
    for key, text in source.items():
        if key not in SOURCE_KEYS + SOURCE_OPTIONAL:
            raise InputError(f"source has the unknown key {shown(key)}")
        (_sha256 if key.endswith("_sha256") else _text)(f"source.{key}", text)
    return source


def _versions(value: Any) -> dict[str, str]:
    versions = _mapping("built_with", value, MAX_VERSIONS)
    for key, text in versions.items():
        if not _WORD.fullmatch(key):
            raise InputError(f"built_with has the key {shown(key)}, which is no package name")
        _text(f"built_with.{key}", text)
    return versions


def _files(value: Any) -> dict[str, FileEntry]:
    entries = _mapping("files", value, MAX_FILES)
    folded: set[str] = set()
    for name, entry in entries.items():
        if not rules.is_flat_name(name):
            raise InputError(f"files names {shown(name)}, which is not a plain file name inside the bundle")
        # A disk that ignores case would make two such names one file.
        if name.casefold() in folded or name.casefold() in (rules.MANIFEST, *rules.REPORTS):
            raise InputError(f"files names {shown(name)}, which is taken")
        folded.add(name.casefold())
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise InputError(f"files gives {name} as {shown(entry)}, it must have size and sha256")
        _integer(f"the size of {name}", entry["size"], 0, MAX_FILE_BYTES)
        _sha256(f"the sha256 of {name}", entry["sha256"])
    missing = sorted(set(rules.REQUIRED) - set(entries))
    if entries and missing:
        raise InputError(f"files lacks {missing[0]}, which every bundle has")
    return {name: FileEntry(size=entry["size"], sha256=entry["sha256"]) for name, entry in entries.items()}
