"""Hostile and broken input at the command line: status 2, one sentence, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.bundle.sample import forge, write_bundle
from tests.checkpoint.sample import adaptive, edit_config, edit_tensors, shard, stock
from tests.cli.terminal import ENVIRONMENT, LATENTCOT, latentcot, one_sentence, refused, tree

WEIGHTS = "model.safetensors"
NAME = "model.layers.0.mlp.up_proj.weight"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def only_a_pickle(folder: Path, name: str = "pytorch_model.bin") -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))


def poke(folder: Path, value: float) -> None:
    tensor = load_file(folder / WEIGHTS)[NAME]
    tensor.view(-1)[-1] = value
    edit_tensors(folder, {NAME: tensor})


def cut(folder: Path, size: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])


def lie_about_the_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 62) + data[8:])


def spoil(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def shard_out_of_the_folder(folder: Path) -> None:
    weight_map = shard(folder)
    index = {"weight_map": {**weight_map, NAME: "../model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def link(name: str, target: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


# what is done to a good checkpoint -> what the sentence must name
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut in the data": (lambda f: cut(f, -7), "truncated"),
    "weights cut in the header": (lambda f: cut(f, 100), "ends after 100 bytes, inside its header"),
    "weights empty": (lambda f: cut(f, 0), "ends after 0 bytes"),
    "weights with a lying header": (lie_about_the_header, "its header claims"),
    "weights that are text": (spoil(WEIGHTS, b"these are no weights at all"), WEIGHTS),
    "weights that are a pickle by another name": (spoil(WEIGHTS, pickle.dumps(Bomb())), WEIGHTS),
    "weights of Git LFS": (spoil(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "weights gone": (lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors"),
    "only a pickle": (only_a_pickle, "only as a pickle (pytorch_model.bin)"),
    "only a pickle, named .pt": (lambda f: only_a_pickle(f, "model.pt"), "only as a pickle (model.pt)"),
    "a shard outside": (shard_out_of_the_folder, "not the plain name"),
    "NaN weights": (lambda f: poke(f, float("nan")), f"{NAME}' holds nan at flat index"),
    "infinite weights": (lambda f: poke(f, float("-inf")), f"{NAME}' holds -inf at flat index"),
    "misshapen weights": (lambda f: edit_tensors(f, {NAME: torch.zeros(3, 4)}), f"{NAME} is [3, 4] and should be"),
    "integer weights": (lambda f: edit_tensors(f, {NAME: torch.zeros(24, 16, dtype=torch.int8)}), "only F32, F16"),
    "a missing tensor": (lambda f: edit_tensors(f, drop=(NAME,)), f"missing ({NAME})"),
    "an unexpected tensor": (lambda f: edit_tensors(f, {"backdoor": torch.zeros(1)}), "unexpected (backdoor)"),
    "broken JSON": (spoil("config.json", b'{"model_type": "llama",'), "config.json is not valid JSON"),
    "JSON that is a list": (spoil("config.json", b"[]"), "holds no JSON object"),
    "JSON with NaN": (spoil("config.json", b'{"rms_norm_eps": NaN}'), "holds NaN"),
    "JSON with a key twice": (spoil("config.json", b'{"a": 1, "a": 2}'), "states the key 'a' twice"),
    "JSON nested without end": (spoil("config.json", b'{"a":' * 100_000), "nests more than 32 levels"),
    "JSON that is not text": (spoil("config.json", b"\xff\xfe\x00"), "is not UTF-8"),
    "JSON with a huge number": (spoil("config.json", b'{"vocab_size": %s}' % (b"9" * 5000)), "more than 20 digits"),
    "config gone": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config of a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "regular file"),
    "config linked out": (link("config.json", "/etc/hostname"), "link out of the checkpoint folder"),
    "weights linked out": (link(WEIGHTS, "../elsewhere"), "link"),
    "unknown family": (lambda f: edit_config(f, model_type="frob\x1b[31m"), "the family 'frob\\x1b[31m' is unknown"),
    "no family": (lambda f: edit_config(f, drop=("model_type",)), "model_type is missing"),
    "remote code": (
        lambda f: edit_config(f, model_type="x", auto_map={"AutoModel": "x.Y"}),
        "the family 'x' is unknown",
    ),
    "negative sizes": (lambda f: edit_config(f, num_hidden_layers=-1), "num_hidden_layers is -1"),
    "absurd sizes": (lambda f: edit_config(f, hidden_size=1 << 60), "hidden_size"),
    "other sizes": (lambda f: edit_config(f, num_hidden_layers=3), "are missing"),
    "quantized": (lambda f: edit_config(f, quantization_config={"bits": 4}), "quantization_config"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("verb", ["export", "init", "inspect"])
def test_a_broken_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (stock if verb == "init" else adaptive)(tmp_path / "c")
    damage, part = BROKEN[kind]
    damage(tmp_path / "c")
    before = tree(tmp_path)
    rest = {"export": ["new/out"], "init": ["new/out", "--max-latents", "2"], "inspect": ["-o", "json"]}[verb]
    sentence = refused(verb, "c", *rest)
    assert part in sentence, sentence
    assert "; " in sentence, "no advice"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["export", "init", "inspect", "validate", "bench", "generate"])
@pytest.mark.parametrize("place", ["nowhere", "file", "", "no\0name", "n" * 5000, "empty", "loop", "a/b/c"])
def test_a_place_that_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = tree(tmp_path)
    rest = {"export": ["out"], "init": ["out", "--max-latents", "2"], "generate": ["--ids", "1"]}.get(verb, [])
    assert "; " in refused(verb, place, *rest)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["export", "init"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("out", ["file", "papers", "file/out", "c", ".", "link", "no\0name", "n" * 300, ""])
def test_a_place_that_is_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, force: bool, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (stock if verb == "init" else adaptive)(tmp_path / "c")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis").write_bytes(b"years")
    (tmp_path / "link").symlink_to("papers")
    before = tree(tmp_path)
    options = [*(["--max-latents", "2"] if verb == "init" else ["--no-validate"]), *(["--force"] if force else [])]
    refused(verb, "c", out, *options)
    assert tree(tmp_path) == before


def test_an_existing_output_needs_force(random_bundle: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(random_bundle, tmp_path / "b")
    before = tree(tmp_path)
    assert "--force" in refused("export", random_checkpoint, tmp_path / "b")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("verb", "room"), [("export", 5000), ("init", 300), ("init", 5000)])
def test_no_room_leaves_nothing(tmp_path: Path, verb: str, room: int) -> None:
    """A real limit on file sizes stands in for a full disk: the system call fails in the same place."""
    (stock if verb == "init" else adaptive)(tmp_path / "c")
    before = tree(tmp_path)
    rest = ["--max-latents", "2"] if verb == "init" else ["--no-validate"]
    done = subprocess.run(
        [*LATENTCOT, verb, str(tmp_path / "c"), str(tmp_path / "new" / "out"), *rest],
        env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    told = "".join(line for line in done.stderr.splitlines(True) if not line.endswith(" ...\n"))
    assert "File too large" in one_sentence(told)
    assert tree(tmp_path) == before


# --- bundles ---------------------------------------------------------------------------------------------------------

VERBS_ON_BUNDLES = [["inspect"], ["generate", "--ids", "1,2"], ["validate"], ["bench"]]


@pytest.mark.parametrize("verb", VERBS_ON_BUNDLES, ids=lambda verb: verb[0])
@pytest.mark.parametrize("name", ["latentcot.json", "config.json", "model.onnx", "model.onnx.data", "README.md"])
def test_a_flipped_bit_anywhere(random_bundle: Path, tmp_path: Path, verb: list[str], name: str) -> None:
    copy = tmp_path / "b"
    shutil.copytree(random_bundle, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    before = tree(tmp_path)
    assert name in refused(verb[0], copy, *verb[1:])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", VERBS_ON_BUNDLES, ids=lambda verb: verb[0])
@pytest.mark.parametrize("kind", ["path", "link", "hard link", "extra", "missing", "version"])
def test_a_bundle_that_leads_out_or_is_not_whole(tmp_path: Path, verb: list[str], kind: str) -> None:
    copy = tmp_path / "b"
    write_bundle(copy)
    outside = tmp_path / "outside"
    outside.write_bytes((copy / "model.onnx").read_bytes())
    if kind == "path":
        files = json.loads((copy / "latentcot.json").read_bytes())["files"]
        forge(copy, {"files": {**files, "../outside": files["model.onnx"]}})
    elif kind == "extra":
        (copy / "model.py").write_bytes(b"import os")
    elif kind == "version":
        forge(copy, {"schema_version": 99})
    else:
        (copy / "model.onnx").unlink()
        if kind == "link":
            (copy / "model.onnx").symlink_to(outside)
        elif kind == "hard link":
            os.link(outside, copy / "model.onnx")
    before = tree(tmp_path)
    assert "; " in refused(verb[0], copy, *verb[1:])
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "args",
    [
        "-n 0",
        "-n -1",
        "-n 99999999999999999999",
        "-n 1000000",
        "--temperature nan",
        "--temperature inf",
        "--temperature -1",
        "--top-p 0",
        "--top-p 1.5",
        "--top-p nan",
        "--top-k -1",
        "--seed -1",
        "--threads -1",
        "--stop ",
        "-o xml",
        "--frobnicate",
        "--ids 96",
        "--ids -1",
        "--ids 1,x",
        "--ids 1,,2",
        "--ids 99999999999999999999999",
        "-p text",
        "--ids " + ",".join(["1"] * 513),
    ],
)
def test_wrong_values_of_generate(random_bundle: Path, args: str) -> None:
    option, _, value = args.partition(" ")
    given = [option] if option == "--frobnicate" else [option, value]
    refused("generate", random_bundle, *([] if option == "--ids" else ["--ids", "1,2"]), *given)


def test_empty_prompts_and_none_at_all(random_bundle: Path) -> None:
    refused("generate", random_bundle)
    refused("generate", random_bundle, "--ids", "")
    refused("generate", random_bundle, "-p", "")


@pytest.mark.parametrize(
    "args",
    [
        ["validate", "--text", "nowhere"],
        ["validate", "--against", "nowhere"],
        ["validate", "--level", "frob"],
        ["validate", "--tokens", "0"],
        ["validate", "--tokens", "-1"],
        ["validate", "-o", "xml"],
        ["bench", "-b", "0"],
        ["bench", "-b", "x"],
        ["bench", "-b", ""],
        ["bench", "-p", "-1"],
        ["bench", "-p", "0", "-n", "0"],
        ["bench", "-p", "1000000"],
        ["bench", "-r", "0"],
        ["bench", "-w", "-1"],
        ["bench", "--depth", "fixed:0"],
        ["bench", "--depth", "fixed:x"],
        ["bench", "--depth", "trace:nowhere"],
        ["bench", "--depth", "frob"],
        ["bench", "--schedule", "frob"],
        ["bench", "--baseline", "frob"],
        ["bench", "--threads", "-1"],
        ["bench", "-o", "xml"],
    ],
    ids=" ".join,
)
def test_wrong_values_of_validate_and_bench(random_bundle: Path, args: list[str]) -> None:
    before = tree(random_bundle)
    refused(args[0], random_bundle, *args[1:])
    assert tree(random_bundle) == before


def test_the_good_ones_would_have_worked(tmp_path: Path) -> None:
    """Otherwise the tests above could pass for a reason of their own."""
    stock(tmp_path / "c")
    assert latentcot("inspect", tmp_path / "c").exit_code == 0
    assert latentcot("init", tmp_path / "c", tmp_path / "out", "--max-latents", 2).exit_code == 0
    assert latentcot("inspect", tmp_path / "out").exit_code == 0
