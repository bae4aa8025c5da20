from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.bundle import BundleWriter, open_bundle, write_report
from latentcot_export.bundle import files as rules
from latentcot_export.errors import InputError
from tests.bundle.sample import FILES, full_manifest, manifest, tree, write_bundle, write_files

ROOT = Path(__file__).parents[2]


def test_commit_returns_the_bundle_at_its_place(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    assert bundle == open_bundle(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["b"]
    assert sorted(os.listdir(tmp_path / "b")) == sorted([*FILES, "latentcot.json"])


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a")
    write_bundle(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_missing_parents_are_made_and_removed_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BundleWriter(tmp_path / "x" / "y" / "b"):
        raise ZeroDivisionError
    assert tree(tmp_path) == {}
    write_bundle(tmp_path / "x" / "y" / "b")
    open_bundle(tmp_path / "x" / "y" / "b")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError, InputError, MemoryError])
@pytest.mark.parametrize("old", [False, True])
def test_any_exception_leaves_all_as_it_was(tmp_path: Path, kind: type[BaseException], old: bool) -> None:
    if old:
        write_bundle(tmp_path / "b")
    before = tree(tmp_path)
    with pytest.raises(kind), BundleWriter(tmp_path / "b", force=True) as writer:
        write_files(writer.folder)
        (writer.folder / "scratch").mkdir()
        raise kind
    assert tree(tmp_path) == before


def test_leaving_without_commit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without commit"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
    assert tree(tmp_path) == {}
    with pytest.raises(RuntimeError, match="inside its with block"):
        _ = BundleWriter(tmp_path).folder


def test_an_exception_after_commit_leaves_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="later"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
        writer.commit(manifest())
        raise OSError("later")
    open_bundle(tmp_path / "b")


def test_a_sealed_folder_is_a_bundle_before_it_is_in_place(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
        sealed = writer.seal(manifest())
        assert open_bundle(writer.folder) == sealed
        write_report(sealed, "validation.json", {"passed": True})
        with pytest.raises(RuntimeError):
            writer.commit(manifest())
        assert not (tmp_path / "b").exists()
        writer.commit()
    assert open_bundle(tmp_path / "b").manifest == full_manifest()
    assert sorted(os.listdir(tmp_path)) == ["b"]


def test_a_file_that_comes_after_the_seal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 'late\.txt'"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
        writer.seal(manifest())
        (writer.folder / "late.txt").write_bytes(b"")
        writer.commit()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", [".hidden", "a b", "latentcot.json", "validation.json", "bench.json", "Config.json"])
def test_names_that_a_bundle_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot hold|was not written"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
        (writer.folder / name).write_bytes(b"")
        writer.commit(manifest())
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", rules.REQUIRED)
def test_required_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"lacks {name}"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder, {key: data for key, data in FILES.items() if key != name})
        writer.commit(manifest())
    assert tree(tmp_path) == {}


def test_links_into_the_new_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    for link in (os.link, os.symlink):
        with pytest.raises(InputError, match=r"hard links|symbolic link"), BundleWriter(tmp_path / "b") as writer:
            write_files(writer.folder)
            link(outside, writer.folder / "heldout.txt")
            writer.commit(manifest())
    assert tree(tmp_path) == {"outside": b"x"}


def test_existing_output_needs_force(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="exists; choose another name or replace it with --force"):
        write_bundle(tmp_path / "b")
    assert tree(tmp_path) == before
    (tmp_path / "b" / "tokenizer.json").write_bytes(b"old")
    write_bundle(tmp_path / "b", force=True)
    assert tree(tmp_path) == before


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"), BundleWriter(tmp_path / "b") as writer:
        write_files(writer.folder)
        (tmp_path / "b").mkdir()
        writer.commit(manifest())
    assert tree(tmp_path) == {"b": None}


def test_force_replaces_only_bundles_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis").write_bytes(b"years")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("papers")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "latentcot.json").symlink_to(tmp_path / "file")
    before = tree(tmp_path)
    for name in ("papers", "file", "link", "dangling", "fake"):
        with pytest.raises(InputError, match=r"exists and is not a (bundle|folder)"):
            write_bundle(tmp_path / name, force=True)
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", force=True)
    open_bundle(tmp_path / "empty")


def test_output_and_checkpoint_keep_apart(tmp_path: Path) -> None:
    source = tmp_path / "models" / "checkpoint"
    source.mkdir(parents=True)
    (source / "latentcot.json").write_bytes(b"")  # so that only this rule protects it
    (tmp_path / "alias").symlink_to(source)
    before = tree(tmp_path)
    for out in (source, source / "b", tmp_path / "models", tmp_path / "alias" / "b", source / ".." / "checkpoint"):
        with pytest.raises(InputError, match="the same folder or one lies in the other"):
            write_bundle(out, force=True, source=source)
    assert tree(tmp_path) == before
    write_bundle(tmp_path / "models" / "b", source=source)


def test_the_root_and_a_nul_are_no_output() -> None:
    with pytest.raises(InputError, match="root of a disk"):
        write_bundle(Path(Path.cwd().anchor), force=True)
    with pytest.raises(InputError, match="correct its name"):
        write_bundle(Path("a\0b"))


def test_a_failed_second_rename_brings_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_bytes(b"old")
    before, real = tree(tmp_path), os.rename
    for kind in (OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()):

        def rename(old: Any, new: Any, kind: BaseException = kind) -> None:
            if ".partial-" in str(old):
                raise kind
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises((InputError, KeyboardInterrupt)):
            write_bundle(tmp_path / "b", force=True)
        assert tree(tmp_path) == before


def test_an_interrupt_after_the_last_rename_leaves_the_new_bundle_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "b")
    before, real = tree(tmp_path), os.rename
    (tmp_path / "b" / "tokenizer.json").write_bytes(b"old")

    def rename(old: Any, new: Any) -> None:
        real(old, new)
        if ".partial-" in str(old):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "b", force=True)
    assert tree(tmp_path) == before


def test_an_interrupt_while_cleaning_up_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, interrupts = rules.shutil.rmtree, [KeyboardInterrupt()]

    def rmtree(folder: Any) -> None:
        if interrupts:
            raise interrupts.pop()
        real(folder)

    monkeypatch.setattr(rules.shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "b"):
        raise RuntimeError
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space or write to another disk"),
        (errno.EDQUOT, "free some space of your quota"),
        (errno.EROFS, "Read-only file system; choose a place that is not read-only"),
        (errno.EACCES, "Permission denied; choose a place that you may write to"),
        (errno.EIO, "Input/output error; correct that and run it again"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "mkdir", "write"])
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str, call: str
) -> None:
    write_bundle(tmp_path / "b")
    before = tree(tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr(rules, "open", refuse, raising=False)
        elif call in ("fsync", "mkdir"):
            patch.setattr(os, call, refuse)
        refusal = pytest.raises(InputError, match=f"bundle .*b was not written: .*{advice}")
        with refusal, BundleWriter(tmp_path / "b", force=True) as writer:
            write_files(writer.folder)
            if call == "write":
                refuse()
            writer.commit(manifest())
    assert tree(tmp_path) == before


def test_an_error_without_a_number_is_one_line_and_names_other_files(tmp_path: Path) -> None:
    refusal = pytest.raises(
        InputError, match=r"was not written: 10 requested and 0 written; correct that and run it again$"
    )
    with refusal, BundleWriter(tmp_path / "b"):
        raise OSError("10 requested and 0 written\nmore")  # as numpy's tofile says it
    with pytest.raises(InputError, match=r"No such file or directory \(.*elsewhere\)"), BundleWriter(tmp_path / "b"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(BrokenPipeError), BundleWriter(tmp_path / "b"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert tree(tmp_path) == {}


def test_a_real_limit_of_the_system_leaves_nothing(tmp_path: Path) -> None:
    """The system itself refuses to write on: RLIMIT_FSIZE, in the weights or, later, in the manifest."""
    script = tmp_path / "script.py"
    script.write_text(
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from latentcot_export.bundle import BundleWriter\n"
        "from latentcot_export.errors import InputError\n"
        "from tests.bundle.sample import FILES, manifest, write_files\n"
        "where, limit, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "try:\n"
        "    with BundleWriter(where / 'new' / 'b') as writer:\n"
        "        write_files(writer.folder, {name: bytes(size) for name in FILES})\n"
        "        writer.commit(manifest())\n"
        "except InputError as error:\n"
        "    print(error)\n"
        "    sys.exit(2)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    for limit, size in ((65536, 1 << 20), (512, 100)):
        done = subprocess.run(
            [sys.executable, str(script), str(out), str(limit), str(size)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (2, "")
        assert "b was not written: File too large; raise the file size limit" in done.stdout
        assert tree(out) == {}
