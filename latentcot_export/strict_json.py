"""JSON from untrusted folders: what a lenient parser lets pass is refused, because it hides damage or an attack.

Also the two spellings in which this package writes JSON, and how an untrusted value is quoted in a sentence.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from latentcot_export.errors import InputError

# A manifest nests 4 deep and a validation report 5; deeper input is none of ours.
MAX_LEVELS = 16
# 2**63 - 1 has 19 digits: every integer we write fits, and none can cost quadratic time to parse.
MAX_DIGITS = 19

# Files of other projects in a checkpoint folder: the largest config.json or shard index known to us is a few hundred
# kilobytes and nests four deep; some hold unsigned 64-bit integers.
MAX_JSON_BYTES = 4 << 20
MAX_CHECKPOINT_LEVELS = 32
MAX_CHECKPOINT_DIGITS = 20
CHECKPOINT_REMEDY = "fix the file or save the checkpoint again"


class _RefusedError(ValueError):
    """What is wrong with the text, as a clause."""


def parse(
    raw: bytes,
    what: str,
    limit: int | None,
    remedy: str,
    *,
    levels: int = MAX_LEVELS,
    digits: int = MAX_DIGITS,
) -> Any:
    """The value of the JSON text `raw`, at most `limit` bytes of UTF-8 (None: the caller has bounded it).

    Refused besides broken syntax: duplicate keys, NaN and infinities (1e999 too), integers of more than `digits`
    digits, more than `levels` levels, lone surrogates. Errors: InputError, "`what` ...; `remedy`".
    """
    if limit is not None and len(raw) > limit:
        raise InputError(f"{what} has more than {limit} bytes, the most this version reads; {remedy}")

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > digits:
            raise _RefusedError(f"holds an integer of more than {digits} digits, which is too large")
        return int(text)

    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=integer,
        )
        _check_levels(value, levels)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text (byte {error.start}); {remedy}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{what} is not valid JSON ({place}: {error.msg}); {remedy}") from None
    except _RefusedError as error:
        raise InputError(f"{what} {error}; {remedy}") from None
    except RecursionError:
        raise InputError(f"{what} nests more than {levels} levels; {remedy}") from None
    return value


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object of a file of a checkpoint, `parse` with room for what other projects write.

    The caller bounds its bytes. Errors: InputError, also when the value is no object.
    """
    value = parse(raw, what, None, CHECKPOINT_REMEDY, levels=MAX_CHECKPOINT_LEVELS, digits=MAX_CHECKPOINT_DIGITS)
    if not isinstance(value, dict):
        raise InputError(f"{what} holds no JSON object; {CHECKPOINT_REMEDY}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a checkpoint, of at most 4 MiB. Errors: InputError that names the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from None
    if len(raw) > MAX_JSON_BYTES:
        raise InputError(
            f"{path} is larger than the {MAX_JSON_BYTES >> 20} MiB allowed for it; save the checkpoint again"
        )
    return parse_object(raw, str(path))


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed: sorted keys, no whitespace, ASCII. Errors: ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def readable(value: Any) -> bytes:
    """The one spelling of a JSON value that is stored: sorted keys, two spaces a level, ASCII, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def finite(value: Any) -> Any:
    """The same value with every NaN and infinity as None, which is how this package reports them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(value: object, limit: int = 80) -> str:
    """A value as it may stand in a sentence: ASCII, so that it cannot steer a terminal, at most `limit` characters."""
    try:
        return shortened(ascii(value), limit)
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return "a value too long to show"


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of a text, with `...` where some are left out."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _RefusedError(f"states the key {shown(key)} twice")
        result[key] = value
    return result


def _constant(text: str) -> Any:
    raise _RefusedError(f"holds {text}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"holds the number {shown(text)}, which is too large")
    return value


def _check_levels(value: Any, levels: int) -> None:
    level = [value]
    for _ in range(levels):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError:  # a lone surrogate: it parses here but cannot be written out
                    raise _RefusedError(f"holds {shown(item)}, which is not Unicode text") from None
        level = below
    if level:
        raise _RefusedError(f"nests more than {levels} levels")
