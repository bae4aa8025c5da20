"""`latentcot convert`: a published pickle becomes safetensors, and a hostile one becomes a sentence."""

from __future__ import annotations

import collections
import io
import json
import os
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from latentcot_export.checkpoint import convert_decider, read_checkpoint
from latentcot_export.checkpoint.unpickle import unpickle
from latentcot_export.errors import InputError
from tests.cli.terminal import latentcot, refused
from tests.families.sample import publish

SAFE, PICKLED = "iter_decider.safetensors", "iter_decider.bin"


def pickled(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, torch.Tensor]:
    """A checkpoint as it is published: its decider in a pickle and nowhere else. The decider's tensors."""
    publish(folder, "tah")
    tensors = {name: value.to(dtype) for name, value in load_file(folder / SAFE).items()}
    (folder / SAFE).unlink()
    arguments = {"topk": 7, "dtype": torch.bfloat16, "hidden_dims": [5, 5, 6], "dropout_rate": 0.1}
    stored = {"threshold": torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64)), **tensors}
    torch.save({"class": "MLPIterDecider", "state_dict": stored, "init_args": arguments, **changes}, folder / PICKLED)
    return tensors


def refusal(folder: Path, **options: Any) -> str:
    before = sorted(os.listdir(folder))
    with pytest.raises(InputError) as caught:
        convert_decider(folder, **options)
    assert sorted(os.listdir(folder)) == before
    text = str(caught.value)
    assert "\n" not in text and "; " in text and len(text) < 1000, text
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_tensors_arrive_as_they_are(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    tensors = pickled(tmp_path / "c", dtype)
    if legacy:  # a module's own state_dict: an OrderedDict with an attribute, and views of one buffer
        whole = torch.cat([value.flatten() for value in tensors.values()])
        parts = whole.split([value.numel() for value in tensors.values()])
        views = {name: part.view(value.shape) for (name, value), part in zip(tensors.items(), parts, strict=True)}
        state = collections.OrderedDict(views)
        state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
        torch.save({"class": "MLPIterDecider", "state_dict": state}, tmp_path / "c" / PICKLED)
    written = convert_decider(tmp_path / "c")
    assert written == tmp_path / "c" / SAFE
    found = load_file(written)
    assert found.keys() == tensors.keys() and not any(name.endswith(".part") for name in os.listdir(tmp_path / "c"))
    for name, value in tensors.items():
        assert found[name].dtype == dtype and torch.equal(found[name], value)
    assert read_checkpoint(tmp_path / "c").recurrence.decider is not None
    assert written.stat().st_mode == (tmp_path / "c" / "config.json").stat().st_mode


def test_the_refusal_of_every_verb_names_the_command_that_helps(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    pickled(folder)
    for args in (
        ("inspect", folder),
        ("export", folder, tmp_path / "bundle"),
        ("validate", tmp_path, "--against", folder),
    ):
        sentence = refused(*args)
        if args[0] != "validate":  # which opens the bundle first
            command = re.findall(r"`latentcot (.*?)`", sentence)
            assert command == [f"convert {shlex.quote(str(folder))}"], sentence
    result = latentcot(*shlex.split(command[0]))
    assert (result.exit_code, result.stdout) == (0, f"wrote {folder / SAFE}\n")
    assert latentcot("inspect", folder).exit_code == 0


def test_an_older_file_is_kept_unless_it_is_forced(tmp_path: Path) -> None:
    pickled(tmp_path / "c")
    (tmp_path / "c" / SAFE).write_text("precious")
    assert "exists already; replace it with --force" in refusal(tmp_path / "c")
    assert (tmp_path / "c" / SAFE).read_text() == "precious"
    convert_decider(tmp_path / "c", force=True)
    assert load_file(tmp_path / "c" / SAFE)


def test_another_folder_is_made_only_when_all_is_well(tmp_path: Path) -> None:
    pickled(tmp_path / "c", state_dict={})
    assert latentcot("convert", tmp_path / "c", "-o", tmp_path / "new" / "out").exit_code == 2
    assert not (tmp_path / "new").exists()
    tensors = pickled(tmp_path / "d")
    assert latentcot("convert", tmp_path / "d", "-o", tmp_path / "new" / "out").exit_code == 0
    assert load_file(tmp_path / "new" / "out" / SAFE).keys() == tensors.keys() and not (tmp_path / "d" / SAFE).exists()
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "d", out_folder=tmp_path / "file")


def test_what_has_no_decider_has_nothing_to_convert(tmp_path: Path) -> None:
    publish(tmp_path / "q", "qwen3")
    assert "checkpoint of qwen3, which has no decider" in refusal(tmp_path / "q")
    publish(tmp_path / "one", "tah with one iteration")
    (tmp_path / "one" / PICKLED).write_bytes(b"whatever")
    assert "one step a token" in refusal(tmp_path / "one")
    read_checkpoint(tmp_path / "one")  # a pickle that nobody needs is no obstacle
    pickled(tmp_path / "c")
    (tmp_path / "c" / PICKLED).unlink()
    assert f"has no {PICKLED}" in refusal(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: {"class": "Qwen3MLPIterDecider"}, "holds a Qwen3MLPIterDecider of TaH2"),
        (lambda state: {"class": "FixedIterDecider"}, "class 'FixedIterDecider'; only MLPIterDecider"),
        (lambda state: {"class": ["MLPIterDecider"]}, "only MLPIterDecider"),
        (lambda state: {"state_dict": [1]}, "no dict with class and state_dict"),
        (lambda state: {"state_dict": {}}, r"tensors are missing"),
        (lambda state: {"state_dict": {**state, "more": torch.ones(1)}}, r"1 tensor is unexpected \(more\)"),
        (lambda state: {"state_dict": {**state, "x": [1]}}, "'x' of its state_dict is no tensor"),
        (lambda state: {"state_dict": {**state, 3: torch.ones(1)}}, "3 of its state_dict is no tensor"),
        (lambda state: changed(state, lambda x: x[:2]), r"tah_config.json disagree.*misshapen.*\[2, 7\].*\[16, 7\]"),
        (lambda state: changed(state, lambda x: x.double()), "logits_projection.weight' is float64"),
        (lambda state: changed(state, lambda x: x.long()), "is int64"),
        (lambda state: changed(state, lambda x: x * float("nan")), "logits_projection.weight' holds nan"),
        (lambda state: changed(state, lambda x: x[:1, :1].expand(1 << 40, 1 << 20)), "misshapen"),
    ],
)
def test_what_is_not_the_decider_of_the_config_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, Any]], named: str
) -> None:
    state = pickled(tmp_path / "c")
    content = {"class": "MLPIterDecider", "state_dict": state, **change(state)}
    torch.save(content, tmp_path / "c" / PICKLED)
    text = refusal(tmp_path / "c")
    assert re.search(named, text) and PICKLED in text, text


def changed(state: dict[str, torch.Tensor], how: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    name = "logits_projection.weight"
    return {"state_dict": {**state, name: how(state[name])}}


def test_a_config_of_the_later_machine_is_refused_before_the_pickle(tmp_path: Path) -> None:
    pickled(tmp_path / "c")
    side = tmp_path / "c" / "tah_config.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | {"iter_decider": "Qwen3MLPIterDecider"}))
    assert "iter_decider is 'Qwen3MLPIterDecider', which is not supported" in refusal(tmp_path / "c")


# --- hostile and damaged files ---------------------------------------------------------------------------------------


class Calls:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(mark: Path) -> dict[str, Any]:
    return {
        "os.system": Calls(os.system, f"touch {shlex.quote(str(mark))}"),
        "builtins.exec": Calls(exec, f"open({str(mark)!r}, 'w').close()"),
        "builtins.getattr": Calls(getattr, dict, "get"),
        "pathlib.Path.mkdir": Calls(Path.mkdir, mark),
        "torch.FloatTensor": Calls(torch.FloatTensor, 1 << 50),  # which weights_only alone would allocate
        "torch.load": Calls(torch.load, str(mark)),
    }


@pytest.mark.parametrize("what", payloads(Path()))
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", ["state_dict", "class", "init_args", "more"])
def test_a_hostile_pickle_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, legacy: bool, key: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    state = pickled(tmp_path / "c")
    hostile = payloads(tmp_path / "mark")[what]
    content = {"class": "MLPIterDecider", "state_dict": state, key: {"x": hostile} if key == "state_dict" else hostile}
    protocol = {"pickle_protocol": 2, "_use_new_zipfile_serialization": not legacy}
    torch.save(content, tmp_path / "c" / PICKLED, **protocol)  # type: ignore[arg-type]
    text = refusal(tmp_path / "c")
    assert (
        "is not an archive of torch.save" in text
        if legacy
        else "where only tensors belong; nothing of it was run" in text
    )
    assert not (tmp_path / "mark").exists()


def test_the_payloads_above_would_have_run(tmp_path: Path) -> None:
    """Else the test of them proves nothing."""
    torch.save(payloads(tmp_path / "mark")["os.system"], tmp_path / "x")
    torch.load(tmp_path / "x", weights_only=False)
    assert (tmp_path / "mark").exists()


def archive(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for name, data in records.items():
            file.writestr(name, data)
    return made.getvalue()


def system(mark: Path, protocol: str) -> bytes:
    """A call of os.system in the instructions of several protocols, which torch.save does not write."""
    command = f"touch {mark}".encode()
    return {
        "text": b"(cos\nsystem\nS'" + command + b"'\ntR.",
        "inst": b"(S'" + command + b"'\nios\nsystem\n.",
        "stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "obj": b"(cos\nsystem\nS'" + command + b"'\no.",
    }[protocol]


@pytest.mark.parametrize("protocol", ["text", "inst", "stack", "extension", "obj"])
def test_no_instruction_reaches_a_function(tmp_path: Path, protocol: str) -> None:
    program = system(Path(os.path.relpath(tmp_path / "m")), protocol)
    path = tmp_path / "x.bin"
    path.write_bytes(archive({"a/data.pkl": program, "a/version": b"3\n", "a/byteorder": b"little"}))
    with pytest.raises(InputError, match=r"x\.bin asks for .*; nothing of it was run"):
        unpickle(path, 1 << 20)
    assert not (tmp_path / "m").exists()


RECORDS = {"a/data.pkl": b"\x80\x02}.", "a/version": b"3\n", "a/byteorder": b"little"}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "not an archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x80\x02}q\x00.", "not an archive"),
        (archive(RECORDS)[:-10], "not an archive"),
        (archive({"a/version": b"3\n"}), "lacks data.pkl"),
        (archive(RECORDS, zipfile.ZIP_DEFLATED), "is compressed"),
        (archive(RECORDS | {"b/data.pkl": b"."}), "in several folders"),
        (archive(RECORDS | {"a/code/x.py": b"1"}), "a/code/x.py', which torch.save does not write"),
        (archive(RECORDS | {"a/constants.pkl": b"."}), "a/constants.pkl"),
        (archive(RECORDS | {"a/data.pkl": b"N" * (1 << 20) + b"."}), "more than 1048576 bytes"),
        (archive(RECORDS | {"a/data.pkl": b"\x80\x02}"}), "not an archive"),
        (archive(RECORDS | {"a/data.pkl": b"("}), "not an archive"),
        (archive(RECORDS | {"a/data.pkl": b"]" * 100000 + b"a" * 99999 + b"."}), "no dict with class"),
        (b"x" * (17 << 20), r"has 17825792 bytes, at most 167\d+ hold what its config says"),
    ],
    ids=range(14),
)
def test_a_file_that_is_not_what_it_claims(tmp_path: Path, data: bytes, named: str) -> None:
    pickled(tmp_path / "c")
    (tmp_path / "c" / PICKLED).write_bytes(data)
    assert re.search(named, refusal(tmp_path / "c"))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    pickled(tmp_path / "c")
    (tmp_path / "c" / PICKLED).rename(tmp_path / "elsewhere")
    (tmp_path / "c" / PICKLED).symlink_to(tmp_path / "elsewhere")
    assert "is a link out of the checkpoint folder" in refusal(tmp_path / "c")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decider") / "c"
    pickled(folder)
    return folder


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_sentence_or_harmless(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray((whole / PICKLED).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(raw[: data.draw(st.sampled_from((len(raw), len(raw) // 2)))])
    try:
        unpickle(tmp_path / "x", 1 << 20)
    except InputError as error:
        assert "\n" not in str(error) and "; " in str(error)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(tmp_path / "c")
    (tmp_path / "c" / SAFE).write_text("precious")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written (No space left on device)" in refusal(tmp_path / "c", force=True)
    assert (tmp_path / "c" / SAFE).read_text() == "precious"
