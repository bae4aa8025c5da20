from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcot_export.checkpoint import random_tensors, read_checkpoint, write, write_checkpoint
from latentcot_export.checkpoint.families import find_family
from latentcot_export.errors import InputError
from tests.checkpoint.sample import MODEL, RECURRENCE, TIED, adaptive, same_tensors, stock

CONFIG: dict[str, Any] = find_family("adaptive_latent_cot", "test").config(MODEL, RECURRENCE)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL, RECURRENCE, 3)
    out = write_checkpoint(tmp_path / "new" / "c", {**CONFIG, "note": "é"}, tensors, {"heldout.txt": b"text"})
    read = read_checkpoint(out)
    assert same_tensors(read.tensors, tensors)
    assert (read.model, read.recurrence, read.config["note"]) == (MODEL, RECURRENCE, "é")
    assert sorted(content(out)) == ["config.json", "heldout.txt", "model.safetensors"]
    assert os.listdir(tmp_path) == ["new"] and os.listdir(tmp_path / "new") == ["c"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = write_checkpoint(tmp_path / "c", CONFIG, random_tensors(MODEL, RECURRENCE, 0))
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}


def test_writing_is_deterministic(tmp_path: Path) -> None:
    one = adaptive(tmp_path / "1").folder
    two = adaptive(tmp_path / "2").folder
    assert content(one) == content(two)


def test_views_and_shared_memory_are_written_as_what_they_show(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL, RECURRENCE, 0)
    both = torch.randn(2, 40, 16)
    tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = both[0], both[1]
    tensors["model.layers.0.input_layernorm.weight"] = tensors["model.norm.weight"]
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous().T.requires_grad_()
    assert same_tensors(read_checkpoint(write_checkpoint(tmp_path / "c", CONFIG, tensors)).tensors, tensors)


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    tensors = random_tensors(TIED, RECURRENCE, 0)
    config = find_family("adaptive_latent_cot", "test").config(TIED, RECURRENCE)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert same_tensors(read_checkpoint(write_checkpoint(tmp_path / "c", config, tensors | head)).tensors, tensors)
    with pytest.raises(InputError, match="differs"):
        write_checkpoint(tmp_path / "d", config, tensors | {"lm_head.weight": torch.ones(40, 16)})


@pytest.mark.parametrize(
    ("config", "change", "extras", "sentence"),
    [
        ({"model_type": "x"}, {}, {}, "'x' is unknown"),
        ({"vocab_size": 41}, {}, {}, "2 tensors are misshapen"),
        ({"note": float("nan")}, {}, {}, "cannot be written as JSON"),
        ({"note": object()}, {}, {}, "cannot be written as JSON"),
        ({"note": 10**30}, {}, {}, "more than 20 digits"),
        ({}, {"extra": torch.ones(1)}, {}, "1 tensor is unexpected"),
        ({}, {"router.bias": torch.tensor([torch.nan])}, {}, "'router.bias' holds nan"),
        ({}, {"router.bias": torch.ones(1, dtype=torch.float64)}, {}, "router.bias is torch.float64"),
        ({}, {}, {"config.json": b""}, "extra file"),
        ({}, {}, {"model.safetensors": b""}, "extra file"),
        ({}, {}, {"../x": b""}, "extra file"),
        ({}, {}, {"a/b": b""}, "extra file"),
        ({}, {}, {"": b""}, "extra file"),
        ({}, {}, {"..": b""}, "extra file"),
    ],
)
def test_what_reading_would_refuse_is_not_written(
    tmp_path: Path, config: Any, change: Any, extras: dict[str, bytes], sentence: str
) -> None:
    tensors = random_tensors(MODEL, RECURRENCE, 0)
    with pytest.raises(InputError, match=sentence):
        write_checkpoint(tmp_path / "c", CONFIG | config, tensors | change, extras)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_needs_force_and_is_then_replaced_whole(tmp_path: Path) -> None:
    old = adaptive(tmp_path / "c")
    (tmp_path / "c" / "notes.txt").write_text("old")
    before = content(tmp_path / "c")
    (tmp_path / "c").chmod(0o500)
    tensors = random_tensors(MODEL, RECURRENCE, 9)
    with pytest.raises(InputError, match="exists already; give another folder or replace it with --force"):
        write_checkpoint(tmp_path / "c", CONFIG, tensors)
    assert content(tmp_path / "c") == before
    kept = {name: value.clone() for name, value in old.tensors.items()}
    write_checkpoint(tmp_path / "c", CONFIG, tensors, force=True)
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, tensors)
    assert sorted(content(tmp_path)) == ["c/config.json", "c/model.safetensors"]
    assert same_tensors(old.tensors, kept)  # still mapped from the file that was replaced


def test_a_checkpoint_can_be_rewritten_in_place_from_itself(tmp_path: Path) -> None:
    read = adaptive(tmp_path / "c")
    kept = {name: value.clone() for name, value in read.tensors.items()}
    write_checkpoint(tmp_path / "c", read.config, read.tensors, force=True)
    assert same_tensors(read_checkpoint(tmp_path / "c").tensors, kept)


def test_force_replaces_nothing_but_a_checkpoint(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL, RECURRENCE, 0)
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text("{}")
    with pytest.raises(InputError, match="something else than a checkpoint and is not replaced"):
        write_checkpoint(project, CONFIG, tensors, force=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(stock(tmp_path / "target").folder)
    for name in ("file", "link"):
        with pytest.raises(InputError, match="exists and is not a folder"):
            write_checkpoint(tmp_path / name, CONFIG, tensors, force=True)
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "empty", CONFIG, tensors, force=True)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link", "project", "target"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["save_file", "_sync"])
def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, error: BaseException, place: str
) -> None:
    out = tmp_path / "c" if force else tmp_path / "new" / "c"
    if force:
        adaptive(out)
    before = content(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(write, place, fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_checkpoint(out, CONFIG, random_tensors(MODEL, RECURRENCE, 1), force=force)
    if isinstance(error, OSError):
        assert (
            str(caught.value) == f"{out} cannot be written (No space left on device); check the free space and the "
            "permissions"
        )
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == (["c"] if force else [])


def test_a_failed_exchange_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive(tmp_path / "c")
    before = content(tmp_path)
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(InputError, match="Input/output error"):
        write_checkpoint(tmp_path / "c", CONFIG, random_tensors(MODEL, RECURRENCE, 1), force=True)
    assert content(tmp_path) == before


def test_relative_and_dotted_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    write_checkpoint("a/../c", CONFIG, random_tensors(MODEL, RECURRENCE, 1))
    assert json.loads((tmp_path / "c" / "config.json").read_text())["max_latents"] == 3
    assert sorted(os.listdir(tmp_path)) == ["a", "c"]
    with pytest.raises(InputError, match="Not a directory"):
        write_checkpoint("c/config.json/d", CONFIG, random_tensors(MODEL, RECURRENCE, 1))
