"""Hostile requests and hostile bundles: one sentence, status 2, nothing run, nothing printed, never a traceback."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from latentcot_export import Engine, LatentCoTForCausalLM
from latentcot_export.bundle import open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.export import export
from latentcot_export.runtime.pass_session import PassSession
from latentcot_export.spec import CacheSpec
from tests.cli.terminal import refused
from tests.runtime.sample import byte_tokenizer, rebundle


@pytest.fixture(scope="module")
def bundle(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 tokens, at most 40 in a sequence, with a tokenizer."""
    files = {"tokenizer.json": byte_tokenizer().to_str().encode()}
    small = CacheSpec(max_seq_len=40, max_batch=4)
    return rebundle(random_bundle, tmp_path_factory.mktemp("attack") / "b", files, cache=small, eos_token_ids=(0,))


@pytest.fixture(scope="module")
def model(bundle: Path) -> LatentCoTForCausalLM:
    return LatentCoTForCausalLM.from_pretrained(bundle)


def sentence(refusal: pytest.ExceptionInfo[LatentCoTError]) -> str:
    text = str(refusal.value)
    assert text.isprintable() and "; " in text and len(text) < 600
    return text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ids", "1", "-n", "0"], "max_new_tokens is 0"),
        (["--ids", "1", "-n", "-5"], "max_new_tokens is -5"),
        (["--ids", "1", "-n", "many"], "'-n'"),
        (["--ids", "1", "-n", "1.5"], "'-n'"),
        (["--ids", "1", "-n", "9" * 30], "at most 40"),
        (["--ids", "1", "-n", "40"], "ask for at most 39"),
        (["--ids", ",".join(["1"] * 40), "-n", "1"], "has 40 tokens"),
        (["--ids", ",".join(["1"] * 100000), "-n", "1"], "has 100000 tokens"),
        (["-p", "x" * 5000], "has 5000 tokens"),
        (["--ids", "96"], "token id 96, ids of this model are integers from 0 to 95"),
        (["--ids", "1,-1"], "token id -1"),
        (["--ids", str(2**63)], str(2**63)),
        (["--ids", "9" * 5000], "--ids is '999"),
        (["--ids", ""], "prompt 0 has no tokens"),
        (["--ids", "1,,2"], "--ids is '1,,2'"),
        (["--ids", "1.5"], "--ids is '1.5'"),
        (["--ids", "٣"], "--ids is"),
        (["--ids", "²"], "--ids is"),
        (["--ids", "--5"], "--ids is"),
        (["-p", ""], "prompt 0 is empty"),
        (["-p", "the", "-p", ""], "prompt 1 is empty"),
        (["-p", "a\udce9"], "valid UTF-8"),
        ([], "no prompt was given"),
        (["-p", "a", "--temperature", "nan"], "temperature is nan"),
        (["-p", "a", "--temperature", "inf"], "temperature is inf"),
        (["-p", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["-p", "a", "--temperature", "hot"], "'--temperature'"),
        (["-p", "a", "--top-k", "-1"], "top_k is -1"),
        (["-p", "a", "--top-k", "nan"], "'--top-k'"),
        (["-p", "a", "--top-p", "0"], "top_p is 0.0"),
        (["-p", "a", "--top-p", "1.01"], "top_p is 1.01"),
        (["-p", "a", "--top-p", "nan"], "top_p is nan"),
        (["-p", "a", "--seed", "-1"], "seed is -1"),
        (["-p", "a", "--seed", str(2**64)], "seed is 18446744073709551616"),
        (["-p", "a", "--stop", ""], "stop text ''"),
        (["-p", "a", "--stop", "x" * 2000], "1 to 1024 characters"),
        (["-p", "a", *["--stop", "x"] * 65], "65 stop texts"),
        (["-p", "a", "--threads", "-1"], "threads is -1"),
        (["-p", "a", "--threads", "100000"], "threads is 100000"),
        (["-p", "a", "-o", "yaml"], "-o is 'yaml'"),
        (["-p", "a", "--frobnicate"], "--frobnicate"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(bundle: Path, arguments: list[str], said: str) -> None:
    assert said in refused("generate", bundle, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": []},
        {"prompts": [[]]},
        {"prompts": [[1], []]},
        {"prompts": ""},
        {"prompts": ["a", ""]},
        {"prompts": None},
        {"prompts": 5},
        {"prompts": b"bytes"},
        {"prompts": [b"bytes"]},
        {"prompts": [None]},
        {"prompts": [[1.0, 2.0]]},
        {"prompts": [[True]]},
        {"prompts": [["a"]]},
        {"prompts": [[[1]]]},
        {"prompts": [[96]]},
        {"prompts": [[-1]]},
        {"prompts": [[2**70]]},
        {"prompts": "a\ud800"},
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"max_new_tokens": 2.0},
        {"max_new_tokens": "5"},
        {"max_new_tokens": [None, 5]},
        {"max_new_tokens": True},
        {"max_new_tokens": 10**40},
        {"max_new_tokens": []},
        {"max_new_tokens": [1, 2]},
        {"temperature": math.nan},
        {"temperature": [0.5, 0.5]},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 2},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": []},
        {"stop": ""},
        {"stop": [5]},
        {"stop": 5},
        {"stop": 1.5},
        {"stop": b"x"},
        {"stop_token_ids": 0.5},
        {"stop_token_ids": "1"},
        {"stop": ["x" * 1025]},
        {"stop_token_ids": [96]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["a"]},
        {"stop_token_ids": [1] * 1025},
    ],
)
def test_arguments_are_refused_before_anything_runs(
    model: LatentCoTForCausalLM, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the graph was run")

    monkeypatch.setattr(model.session, "call", never)
    for verb in (model.generate, model.stream):  # a stream refuses at once, not at its first token
        with pytest.raises(InputError) as refusal:
            verb(**{"prompts": "the", "max_new_tokens": 3, **arguments})
        sentence(refusal)


def test_a_good_request_among_them_would_have_run(model: LatentCoTForCausalLM) -> None:
    assert len(model.generate("the", 3, ignore_eos=True).ids[0]) == 3


def test_extreme_values_that_are_allowed_are_harmless(model: LatentCoTForCausalLM) -> None:
    greedy = model.generate("the", 9, ignore_eos=True)
    for extreme in ({"temperature": 1e-320}, {"temperature": 1e-30}, {"temperature": 3.0, "top_p": 1e-320}):
        # all of the mass is on the most probable token
        assert model.generate("the", 9, ignore_eos=True, seed=5, **extreme).ids == greedy.ids
    hot = model.generate("the", 9, ignore_eos=True, temperature=1e308, top_k=2**62, seed=2**64 - 1)
    assert all(0 <= token < 96 for token in hot.ids[0])


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"model":{"type":"BPE"}}', b"\x00" * 64])
def test_a_tokenizer_of_garbage_with_a_good_hash(bundle: Path, tmp_path: Path, data: bytes) -> None:
    broken = rebundle(bundle, tmp_path / "b", {"tokenizer.json": data})
    assert "file tokenizer.json of bundle" in refused("generate", broken, "-p", "a")


def test_a_tokenizer_of_another_model(bundle: Path, tmp_path: Path) -> None:
    other = byte_tokenizer()
    other.add_tokens([f"<{i}>" for i in range(50)])
    wrong = rebundle(bundle, tmp_path / "b", {"tokenizer.json": other.to_str().encode()})
    assert "ids of this model are integers from 0 to 95" in refused("generate", wrong, "-p", "a<49>")


def identity_graph() -> bytes:
    """A valid ONNX file that is no model of ours."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "another graph"])
def test_a_graph_of_garbage_with_a_good_hash(bundle: Path, tmp_path: Path, kind: str) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    data = {"empty": b"", "garbage": b"\x7f" * 999, "truncated": whole[: len(whole) // 2]}
    broken = rebundle(bundle, tmp_path / "b", {"model.onnx": data[kind] if kind in data else identity_graph()})
    assert "model.onnx: " in refused("generate", broken, "-p", "a")


def test_weights_of_the_wrong_size_with_a_good_hash(bundle: Path, tmp_path: Path) -> None:
    short = (bundle / "model.onnx.data").read_bytes()[:100]
    broken = rebundle(bundle, tmp_path / "b", {"model.onnx.data": short})
    assert "model.onnx: ONNX Runtime" in refused("generate", broken, "-p", "a")


def test_a_manifest_of_other_sizes_than_its_graph(bundle: Path, tmp_path: Path, model: LatentCoTForCausalLM) -> None:

    for changes in ({"hidden_size": 40}, {"num_kv_heads": 4}, {"num_layers": 3}, {"vocab_size": 90}):
        lie = dataclasses.replace(model.manifest.model, **changes)
        broken = rebundle(bundle, tmp_path / next(iter(changes)), model=lie)
        said = refused("generate", broken, "-p", "a", "-n", "2")
        assert "model.onnx" in said or "ONNX Runtime" in said


@pytest.fixture(scope="module")
def packed(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of target ort, with its two graphs over one weights file."""
    return export(random_checkpoint, tmp_path_factory.mktemp("packed") / "b", target="ort", validate=False).folder


def pass_refused(folder: Path) -> str:
    with pytest.raises(InputError) as refusal:
        PassSession(open_bundle(folder), 1, "cpu")
    return sentence(refusal)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, b"\x08\x0a", None])
def test_a_pass_graph_of_garbage_or_of_another_kind(packed: Path, tmp_path: Path, data: bytes | None) -> None:
    graph = (packed / "model.onnx").read_bytes() if data is None else data
    said = pass_refused(rebundle(packed, tmp_path / "b", {"pass.onnx": graph}))
    assert "pass.onnx: " in said
    assert ("inputs and outputs are not those of a bundle" if data is None else "cannot load this graph") in said


@pytest.mark.parametrize("location", ["../outside", "config.json", "nowhere", os.path.join(os.sep, "outside")])
def test_a_pass_graph_whose_weights_lie_elsewhere(packed: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "outside").write_bytes(bytes((packed / "model.onnx.data").stat().st_size))
    graph = onnx.load(packed / "pass.onnx", load_external_data=False)
    for each in graph.graph.initializer:
        for entry in each.external_data:
            entry.value = location if entry.key == "location" else entry.value
    folder = rebundle(packed, tmp_path / "b", {"pass.onnx": graph.SerializeToString()})
    assert "pass.onnx: " in pass_refused(folder)


def test_a_pass_graph_that_is_not_the_listed_one(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "b"))
    good = (copy / "pass.onnx").read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 4
        (copy / "pass.onnx").write_bytes(bad)
        assert "file pass.onnx of bundle" in refused("generate", copy, "--ids", "1")
    (copy / "pass.onnx").unlink()
    assert "file pass.onnx of bundle" in refused("generate", copy, "--ids", "1")
    (copy / "pass.onnx").symlink_to(packed / "pass.onnx")
    assert "is a symbolic link" in refused("generate", copy, "--ids", "1")
    old = rebundle(packed, tmp_path / "old", without=["pass.onnx"])
    (old / "pass.onnx").write_bytes(good)
    assert "holds 'pass.onnx', which its manifest does not list" in refused("generate", old, "--ids", "1")


def test_a_manifest_of_other_sizes_than_its_pass_graph(packed: Path, tmp_path: Path) -> None:
    model = open_bundle(packed).manifest.model
    for changes in ({"hidden_size": 40}, {"num_kv_heads": 4}, {"num_layers": 3}, {"vocab_size": 90}):
        lie = dataclasses.replace(model, **changes)
        broken = open_bundle(rebundle(packed, tmp_path / next(iter(changes)), model=lie))
        for apart in (False, True):
            with pytest.raises(LatentCoTError) as refusal:
                Engine(PassSession(broken, 1, "cpu", apart), None, max_batch=1).submit([1], 2).result()
            sentence(refusal)
