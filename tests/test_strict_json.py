"""JSON of untrusted folders: one parser, with the room that its two kinds of files need and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcot_export.errors import InputError
from latentcot_export.strict_json import (
    MAX_CHECKPOINT_DIGITS,
    MAX_CHECKPOINT_LEVELS,
    MAX_DIGITS,
    MAX_JSON_BYTES,
    MAX_LEVELS,
    canonical,
    finite,
    parse,
    parse_object,
    read_object,
    readable,
    shortened,
    shown,
)


def of_ours(raw: bytes) -> Any:
    return parse(raw, "file f", 1 << 20, "do this")


def of_others(raw: bytes) -> Any:
    return parse_object(raw, "file f")


def refusal(read: Callable[[bytes], Any], raw: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(raw)
    text = str(caught.value)
    assert text.startswith("file f ") and "; " in text and text.isprintable() and len(text) < 300, text
    return text


@pytest.mark.parametrize(
    ("read", "levels", "digits"),
    [(of_ours, MAX_LEVELS, MAX_DIGITS), (of_others, MAX_CHECKPOINT_LEVELS, MAX_CHECKPOINT_DIGITS)],
)
def test_the_limits_are_exact(read: Callable[[bytes], Any], levels: int, digits: int) -> None:
    def nested(count: int) -> bytes:
        return b'{"a":' * (count - 1) + b"[]" + b"}" * (count - 1)

    def number(count: int) -> bytes:
        return b'{"a": -' + b"9" * count + b"}"

    read(nested(levels)), read(number(digits))
    assert f"nests more than {levels} levels" in refusal(read, nested(levels + 1))
    assert f"more than {digits} digits" in refusal(read, number(digits + 1))


@pytest.mark.parametrize("read", [of_ours, of_others])
@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "is not valid JSON (line 1, column 1"),
        (b"{}{}", "is not valid JSON"),
        (b"\xff", "is not UTF-8 text (byte 0)"),
        (b'{"a": NaN}', "holds NaN, which is not JSON"),
        (b'{"a": -Infinity}', "holds -Infinity, which is not JSON"),
        (b'{"a": 1e999}', "holds the number '1e999', which is too large"),
        (b'{"a": {"b\\u001b": 1, "b\\u001b": 1}}', "states the key 'b\\x1b' twice"),
        (b'{"a": ["\\ud800"]}', "holds '\\ud800', which is not Unicode text"),
        (b'{"\\udfff": 1}', "holds '\\udfff', which is not Unicode text"),
        (b"[" * 200_000, "nests more than"),
    ],
)
def test_what_a_lenient_parser_lets_pass(read: Callable[[bytes], Any], raw: bytes, part: str) -> None:
    assert part in refusal(read, raw)


def test_size_and_kind() -> None:
    assert of_ours(b"[1]") == [1]
    assert "holds no JSON object" in refusal(of_others, b"[1]")
    assert "more than 1048576 bytes" in refusal(of_ours, b" " * (1 << 20) + b"1")


def test_files_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'{"a": "' + b"x" * (MAX_JSON_BYTES - 9) + b'"}')
    assert len(read_object(tmp_path / "f")["a"]) == MAX_JSON_BYTES - 9
    with (tmp_path / "f").open("ab") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(InputError, match="larger than the 4 MiB allowed"):
        read_object(tmp_path / "f")
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_object(tmp_path / "g")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    value = finite(value)
    for text in (canonical(value), readable(value), json.dumps(value, ensure_ascii=False).encode()):
        try:
            assert parse(text, "file f", None, "do this", levels=64) == value
        except InputError as error:
            assert "nests more than" in str(error)  # rare: the strategy can nest deeper


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_value_or_a_sentence(raw: bytes) -> None:
    for read in (of_ours, of_others):
        try:
            read(raw)
        except InputError as error:
            assert str(error).isprintable()


def test_values_in_sentences() -> None:
    assert shown("é\x1b") == "'\\xe9\\x1b'"
    assert shown("x" * 100) == f"'{'x' * 76}..."
    assert len(shown("x" * 100, 20)) == 20
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 6) == "abc..."
    assert finite({"a": [1.5, float("nan"), (float("-inf"),)]}) == {"a": [1.5, None, [None]]}
