from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.bundle import Manifest
from latentcot_export.bundle.manifest import MAX_BYTES
from latentcot_export.errors import InputError
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec, RopeSpec
from tests.bundle.sample import full_manifest, manifest

SHA = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and text[0] not in "/\\~" and text[1:2] != ":" and not text.startswith("file:")
)
NAMES = st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,10}", fullmatch=True).filter(
    lambda name: ".." not in name and name not in ("latentcot.json", "validation.json", "bench.json")
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    heads, groups = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    vocab = draw(st.integers(2, 1 << 20))
    kind = draw(
        st.sampled_from([RopeSpec(), RopeSpec("linear", factor=4.0), RopeSpec("yarn", 1e6, 8.0, truncate=True)])
    )
    model = ModelSpec(
        vocab_size=vocab,
        hidden_size=draw(st.integers(1, 4096)),
        intermediate_size=draw(st.integers(1, 4096)),
        num_layers=draw(st.integers(1, 100)),
        num_heads=heads * groups,
        num_kv_heads=heads,
        head_dim=2 * draw(st.integers(1, 64)),
        rms_norm_eps=draw(st.floats(0, 1)),
        max_position_embeddings=draw(st.integers(1, 1 << 20)),
        rope=kind,
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )
    names = {"config.json", "model.onnx", "model.onnx.data"} | draw(st.sets(NAMES, max_size=4))
    native = draw(st.booleans())
    cache = CacheSpec(max_seq_len=draw(st.integers(1, 1 << 20)))
    if native:
        cache = CacheSpec(
            dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
            max_seq_len=draw(st.integers(1, 1 << 20)),
            slots=draw(st.integers(1, (1 << 31) - 1)),
        )
    return Manifest(
        family=draw(st.sampled_from(["adaptive_latent_cot", "llama"])),
        target="ort" if native else "onnx",
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"][: 3 if native else 2])),
        opset=draw(st.integers(1, 99)),
        model=model,
        recurrence=RecurrenceSpec(
            draw(st.integers(0, 64)), draw(st.floats(0, 10)), embedding_scale=draw(st.floats(-9, 9))
        ),
        cache=cache,
        source={
            "family": draw(TEXT),
            "name": draw(TEXT),
            "config_sha256": draw(SHA),
            "weights_sha256": draw(SHA),
            **draw(st.sampled_from([{}, {"revision": "main"}])),
        },
        built_with=draw(st.dictionaries(st.sampled_from(["torch", "onnx", "latentcot-export"]), TEXT)),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, vocab - 1), max_size=4, unique=True))),
        bos_token_id=draw(st.none() | st.integers(0, vocab - 1)),
        quantize=draw(st.sampled_from(["none", "int8", "int4"])) if native else "none",
        files={name: {"size": draw(st.integers(0, 1 << 50)), "sha256": draw(SHA)} for name in sorted(names)},
    )


@settings(max_examples=30, deadline=None)
@given(manifests())
def test_reading_is_the_inverse_of_writing(made: Manifest) -> None:
    assert Manifest.from_json(made.to_json()) == made
    assert Manifest.from_bytes(made.to_bytes()) == made
    assert Manifest.from_bytes(made.to_bytes()).digest() == made.digest()


def test_digest_is_sha256_of_the_canonical_json_without_it() -> None:
    data = json.loads(full_manifest().to_bytes())
    digest = data.pop("digest")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert digest == hashlib.sha256(text.encode()).hexdigest() == full_manifest().digest()


def test_digest_tells_any_two_manifests_apart() -> None:
    assert full_manifest(opset=20).digest() != full_manifest().digest()
    entry = {"size": 1, "sha256": "0" * 64}
    assert full_manifest(files={**full_manifest().files, "notes.txt": entry}).digest() != full_manifest().digest()


def test_a_manifest_does_not_share_its_dicts_with_the_caller() -> None:
    versions = {"torch": "2.13.0"}
    made = manifest(built_with=versions)
    versions["torch"] = "0"
    assert made.built_with == {"torch": "2.13.0"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_bytes_are_refused_and_never_crash(data: st.DataObject) -> None:
    raw = bytearray(full_manifest().to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.sampled_from([start, start + 1, start + 4, len(raw)]))
        raw[start:end] = data.draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"", b"null", b"{", b"]", b'"\\ud800"', b"1e999", b"NaN", b"-1", b"9" * 5000, b"true", b"[[[["]
            )
        )
    if bytes(raw) == full_manifest().to_bytes():
        return
    with pytest.raises(InputError) as refusal:
        Manifest.from_bytes(bytes(raw))
    sentence = str(refusal.value)
    assert sentence.isprintable(), "the sentence must be one line and must not steer a terminal"
    assert sentence.startswith("latentcot.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(full_manifest().to_json())), JSON)
def test_any_value_in_any_key_is_refused_or_read_back_as_it_is(key: str, value: Any) -> None:
    data = {**full_manifest().to_json(), key: value}
    with pytest.raises(InputError):
        if Manifest.from_json(data).to_json() == full_manifest().to_json():
            raise InputError("the value was what it had been")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [
            (part, key)
            for part in ("model", "recurrence", "cache", "source", "files")
            for key in full_manifest().to_json()[part]
        ]
        + [
            ("model", "unknown"),
            ("recurrence", "unknown"),
            ("cache", "unknown"),
            ("source", "unknown"),
            ("files", "../x"),
        ]
    ),
    JSON,
)
def test_any_value_in_any_inner_key_gives_only_sentences(place: tuple[str, str], value: Any) -> None:
    part, key = place
    data = full_manifest().to_json()
    data = {**data, part: {**data[part], key: value}}
    with pytest.raises(InputError):
        if Manifest.from_json(data).to_json() == full_manifest().to_json():
            raise InputError("the value was what it had been")


def test_a_manifest_without_slots_is_written_as_before_there_were_any() -> None:
    assert full_manifest().to_json()["cache"] == {"dtype": "float32", "max_seq_len": 256, "max_batch": 64}
    # of a manifest written by version 0.1.0
    assert full_manifest().digest() == "3073e05264d5b3f0dd669898cc4532a418d41a3d2a9c8f815c52595b4ec1cb05"
    made = full_manifest(target="ort", cache=CacheSpec("float16", 256, 64, 9000), quantize="int4")
    assert made.to_json()["cache"] == {"dtype": "float16", "max_seq_len": 256, "max_batch": 64, "slots": 9000}


def refined(prefill: Any, target: str = "ort", **recurrence: Any) -> Manifest:
    thinks = RecurrenceSpec(**{"max_latents": 2, "visibility": "all", "stop": "count", "readout": "last", **recurrence})
    slots = {"cache": CacheSpec(max_seq_len=256, slots=9000)} if target == "ort" else {}
    return full_manifest(target=target, recurrence=thinks, prefill=prefill, **slots)


def test_a_prefill_is_told_only_where_it_is_not_exact() -> None:
    assert "prefill" not in refined("exact").to_json() and refined("exact").rounds is None
    assert refined("jacobi:3").to_json()["prefill"] == "jacobi:3" and refined("jacobi:3").rounds == 3
    assert Manifest.from_bytes(refined("jacobi:0").to_bytes()) == refined("jacobi:0")
    assert len({refined(prefill).digest() for prefill in ("exact", "jacobi:0", "jacobi:1")}) == 3
    with pytest.raises(InputError, match="does not have the sha256"):  # a left-out default that is there
        Manifest.from_json({**refined("exact").to_json(), "prefill": "exact"})


@pytest.mark.parametrize(
    "prefill",
    [
        *(
            "",
            "Exact",
            "jacobi",
            "jacobi:",
            "jacobi:-1",
            "jacobi:03",
            "jacobi:+3",
            "jacobi: 3",
            "jacobi:3 ",
            "jacobi:3\n",
        ),
        *("jacobi:65537", "jacobi:" + "9" * 99, "jacobi:\u0663", None, 3, [], ["exact"], {}),
    ],
)
def test_another_prefill_is_refused(prefill: Any) -> None:
    with pytest.raises(InputError, match="it must be exact or jacobi:R with R from 0 to 65536"):
        refined(prefill)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "onnx"},
        {"max_latents": 0},
        {"visibility": "duo"},
        {"visibility": "same"},
        {"stop": "tail", "readout": "shares"},
        {"stop": "gate"},
        {"readout": "sum"},
    ],
)
def test_only_some_prompts_can_be_refined(changes: dict[str, Any]) -> None:
    refined("exact", **changes)
    with pytest.raises(InputError, match="prefill is jacobi:2, which target"):
        refined("jacobi:2", **changes)


def test_a_slot_of_a_pool_has_whole_vectors() -> None:
    model = dataclasses.replace(manifest().model, head_dim=18)  # 2 layers, 2 kv heads
    assert CacheSpec().bytes_per_slot(model) == 2 * 2 * 2 * 18 * 4
    assert CacheSpec(slots=5).bytes_per_slot(model) == 2 * 2 * 2 * 32 * 4
    assert CacheSpec("float16", slots=5).bytes_per_slot(manifest().model) == 2 * 2 * 2 * 16 * 2


def test_every_missing_and_every_unknown_key_is_named() -> None:
    for key in full_manifest().to_json():
        data = full_manifest().to_json()
        del data[key]
        with pytest.raises(InputError, match=f"lacks the key '{key}'"):
            Manifest.from_json(data)
    with pytest.raises(InputError, match="unknown key 'extra'"):
        Manifest.from_json({**full_manifest().to_json(), "extra": 1})


def test_a_newer_schema_says_to_upgrade_whatever_else_it_holds() -> None:
    with pytest.raises(InputError, match="has schema_version 2 and this version reads up to 1; upgrade"):
        Manifest.from_json({"schema_version": 2, "something": "new"}, "file latentcot.json of bundle b")
    for version in (0, -1, True, "1", 1.0, None):
        with pytest.raises(InputError, match=r"schema_version|lacks"):
            Manifest.from_json({**full_manifest().to_json(), "schema_version": version})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "no such/family"}, "family is 'no such/family', it must be a word"),
        ({"target": "coreml"}, "target is 'coreml', this version knows onnx, ort, tensorrt, tensorrt-rtx"),
        ({"target": "ort"}, "cache.slots is None, which target ort cannot have"),
        ({"cache": CacheSpec(slots=7)}, "cache.slots is 7, which target onnx cannot have"),
        ({"quantize": "int8"}, "quantize is 'int8', which target onnx cannot have"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', which target onnx cannot have"),
        ({"cache": CacheSpec("bfloat16")}, "cache.dtype is 'bfloat16', which target onnx cannot have"),
        ({"dtype": "float64"}, "dtype is 'float64', this version knows float32, float16, bfloat16"),
        ({"quantize": "int2"}, "quantize is 'int2', this version knows none, int8, int4"),
        ({"opset": 0}, "opset is 0, it must be an integer from 1 to 99"),
        ({"opset": True}, "opset is True, it must be an integer"),
        ({"eos_token_ids": (512,)}, "a token of eos_token_ids is 512, it must be an integer from 0 to 511"),
        ({"eos_token_ids": (3, 3)}, "names a token twice"),
        ({"eos_token_ids": 3}, "eos_token_ids is 3, it must be a list"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"model": None}, "model is None, it must be a ModelSpec"),
        ({"built_with": {"torch": 2}}, "built_with.torch is 2"),
        ({"built_with": {"a b": "2"}}, "built_with has the key 'a b', which is no package name"),
        ({"built_with": {"torch": "2\x1b[31m"}}, r"built_with.torch is '2\\x1b\[31m', it must be 1 to 256 printable"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_limit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        manifest(**changes)


@pytest.mark.parametrize("name", ["/home", "\\\\host\\share", "C:\\models", "C:models", "~/models", "file:///x", ""])
def test_provenance_tells_nothing_of_the_machine(name: str) -> None:
    source = manifest().source
    with pytest.raises(InputError, match=r"source\.name"):
        manifest(source={**source, "name": name})
    assert manifest(source={**source, "name": "org/model", "revision": "v1.0"}).source["name"] == "org/model"


def test_provenance_must_be_complete() -> None:
    source = manifest().source
    for key in source:
        with pytest.raises(InputError, match=f"source lacks '{key}'"):
            manifest(source={name: text for name, text in source.items() if name != key})
    with pytest.raises(InputError, match="unknown key 'user'"):
        manifest(source={**source, "user": "x"})
    with pytest.raises(InputError, match="64 lower-case hex digits"):
        manifest(source={**source, "weights_sha256": "A" * 64})


def test_size_and_digest_are_strict() -> None:
    raw = full_manifest().to_bytes()
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        Manifest.from_bytes(raw + b" " * MAX_BYTES)
    with pytest.raises(InputError, match="does not have the sha256 it states as its digest"):
        Manifest.from_bytes(raw.replace(b'"opset": 24', b'"opset": 23'))
    with pytest.raises(InputError, match="not spelled as it was written"):
        Manifest.from_bytes(raw.replace(b"1e-05", b"1E-05"))
    with pytest.raises(InputError, match="states the key 'opset' twice"):
        Manifest.from_bytes(raw.replace(b'"opset": 24', b'"opset": 24, "opset": 24'))
    # A default that is left out reads as the same manifest, but is not what was written.
    data = full_manifest().to_json()
    del data["model"]["mlp_bias"]
    with pytest.raises(InputError, match="does not have the sha256"):
        Manifest.from_json(data)


def test_nan_and_endless_integers_are_refused_in_a_dict_too() -> None:
    for value in (float("nan"), float("inf"), 10**400):
        for key in full_manifest().to_json():
            with pytest.raises(InputError, match=r"; (export it again|upgrade latentcot-export)"):
                Manifest.from_json({**full_manifest().to_json(), key: value})
        model = {**full_manifest().to_json()["model"], "rms_norm_eps": value}
        with pytest.raises(InputError, match="; export it again"):
            Manifest.from_json({**full_manifest().to_json(), "model": model})


def test_the_sections_are_specs_again() -> None:
    read = Manifest.from_bytes(full_manifest().to_bytes())
    assert dataclasses.is_dataclass(read.model)
    assert read.model.rope.factor == 2.0
    assert read.recurrence.max_steps == 5
    assert read.eos_token_ids == (0, 2)
