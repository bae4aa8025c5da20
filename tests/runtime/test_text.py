"""Text that grows token by token: no broken characters, nothing lost, stop texts found across tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from latentcot_export.errors import InputError
from latentcot_export.runtime.text import Detokenizer, StopTexts, TextStream, Tokenizer
from tests.runtime.sample import END, byte_tokenizer

TEXTS = st.text(alphabet="abcthe indéé€€😀😀.\n", max_size=40)


def tokenizer() -> Tokenizer:
    return Tokenizer(byte_tokenizer().to_str().encode(), "here")


BYTES = tokenizer()


def pieces(reader: Tokenizer, prompt: list[int], new: list[int]) -> list[str]:
    detokenizer = Detokenizer(reader, prompt)
    return [*(detokenizer.push(token) for token in new), detokenizer.finish()]


@given(TEXTS, TEXTS)
def test_pieces_join_to_the_text_and_none_is_broken(before: str, text: str) -> None:
    got = pieces(BYTES, BYTES.encode(before), BYTES.encode(text))
    assert "".join(got) == text
    assert all("\ufffd" not in piece for piece in got)
    assert got[-1] == "", "nothing is held back once every character is whole"


@given(st.lists(st.integers(0, 90), max_size=60), st.lists(st.integers(0, 90), max_size=12))
def test_any_ids_lose_nothing(new: list[int], prompt: list[int]) -> None:
    whole = BYTES.decode([0, *new])
    got = "".join(pieces(BYTES, [], [0, *new]))
    # a run of broken bytes may be cut into a different number of signs, every other character is there
    assert got.replace("\ufffd", "") == whole.replace("\ufffd", "")
    assert bool("\ufffd" in got) == bool("\ufffd" in whole)
    assert all(isinstance(piece, str) for piece in pieces(BYTES, prompt, new))


def test_a_character_appears_with_its_last_token() -> None:
    assert len(BYTES.encode("😀")) == 4
    assert pieces(BYTES, BYTES.encode("a"), BYTES.encode("b😀c")) == ["b", "", "", "", "😀", "c", ""]


def test_a_character_that_the_prompt_began_is_finished() -> None:
    ids = BYTES.encode("é")
    assert "".join(pieces(BYTES, ids[:1], ids[1:])) == "é"


def test_broken_bytes_come_out_at_the_end_and_are_not_held_for_ever() -> None:
    first = BYTES.encode("😀")[0]
    assert pieces(BYTES, [], [first]) == ["", "\ufffd"]
    assert "".join(pieces(BYTES, [], [first] * 40)[:-1]).count("\ufffd") > 20


def spaced() -> Tokenizer:
    """As Llama 2 has it: spaces are signs, the first one is dropped, unknown characters are bytes."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁list", "is", "▁is"]
    raw = RawTokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(raw.to_str().encode(), "here")


def test_the_space_between_prompt_and_new_text_is_kept() -> None:
    reader = spaced()
    a, list_, is_ = 258, 259, 261
    assert reader.decode([a, list_]) == "a list"
    assert pieces(reader, [a], [list_, is_, *[a, list_] * 20]) == [" list", " is", *[" a", " list"] * 20, ""]


def test_bytes_of_a_fallback_decoder_become_characters() -> None:
    reader = spaced()
    ids = [byte + 1 for byte in "ü€".encode()]
    assert "".join(pieces(reader, [258], [*ids, 259, *ids])) == "ü€ listü€"


@given(
    st.lists(st.text(alphabet="aab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="aab", min_size=1, max_size=4), max_size=3),
)
def test_stop_texts_are_found_across_pieces(chunks: list[str], stops: list[str]) -> None:
    scanner = StopTexts(stops)
    given_out, seen = "", ""
    for chunk in chunks:
        seen += chunk
        piece, found = scanner.push(chunk)
        given_out += piece
        places = [seen.find(stop) for stop in stops if stop in seen]
        assert found == bool(places), "found with the piece that completes it, not later and not earlier"
        if found:
            assert given_out == seen[: min(places)]
            return
        assert seen.startswith(given_out)
        begun = [n for n in range(len(seen) + 1) if n == 0 or any(stop.startswith(seen[-n:]) for stop in stops)]
        assert len(seen) - len(given_out) == max(begun), "what may become a stop text, and no more"
    assert given_out + scanner.finish() == seen


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    scanner = StopTexts(["\n\n", "END"])
    assert scanner.push("some\nEN") == ("some\n", False)
    assert scanner.push("C\n") == ("ENC", False)
    assert scanner.push("\n rest") == ("", True)


def test_a_stream_lets_go_of_what_was_no_stop_text() -> None:
    stream = TextStream(BYTES, [], ["ab!"])
    got = [stream.push(token)[0] for token in BYTES.encode("xab")]
    assert got == ["x", "", ""]
    assert stream.finish() == "ab"


def test_special_tokens_have_no_text_and_settings_of_training_do_not_count() -> None:
    raw = byte_tokenizer()
    raw.enable_truncation(2)
    raw.enable_padding(length=9)
    reader = Tokenizer(raw.to_str().encode(), "here")
    assert reader.encode("abcd") == BYTES.encode("abcd")
    assert reader.decode([*BYTES.encode("ab"), 0]) == "ab"
    assert reader.encode(END) == [0]


def test_unknown_ids_have_no_text() -> None:
    assert BYTES.decode([95, 10**6]) == ""


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"model": 1}', b"[" * 5000, b'{"version":"1.0"}'])
def test_bytes_that_are_no_tokenizer_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^file here cannot be read .*; export the bundle again$"):
        Tokenizer(data, "file here")


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="place 1; give text in valid UTF-8"):
        BYTES.encode("a\udce9")
