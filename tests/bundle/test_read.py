from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentcot_export.bundle import open_bundle, read_manifest
from latentcot_export.bundle.files import sha256_of
from latentcot_export.errors import InputError
from tests.bundle.sample import FILES, full_manifest, write_bundle

ROOT = Path(__file__).parents[2]


def test_a_written_bundle_opens_and_gives_back_its_files(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest == full_manifest() == read_manifest(str(tmp_path / "b"))
    for name, data in FILES.items():
        assert bundle.read_bytes(name) == data
        assert bundle.path(name) == tmp_path / "b" / name


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    write_bundle(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    assert open_bundle(tmp_path / "latest").manifest == full_manifest()


def test_only_listed_names_have_a_path(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    for name in ("latentcot.json", "validation.json", "../x", "nothing", "", "\x1b"):
        with pytest.raises(InputError, match="has no file"):
            bundle.path(name)
        with pytest.raises(InputError, match="has no file"):
            bundle.read_bytes(name)


def test_what_is_returned_is_what_was_hashed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    for data in (b"x" + FILES["model.onnx"][1:], FILES["model.onnx"] + b"x", b""):
        (tmp_path / "b" / "model.onnx").write_bytes(data)
        with pytest.raises(InputError, match=r"file model\.onnx of bundle .* does not have the sha256"):
            bundle.read_bytes("model.onnx")


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    seen: list[tuple[int, int]] = []
    open_bundle(tmp_path / "b", progress=lambda done, total: seen.append((done, total)))
    total = sum(map(len, FILES.values()))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_hashing_reads_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"")
    with open(path, "r+b") as stream:
        stream.truncate(5 << 20)
    sizes: list[int] = []
    with open(path, "rb", buffering=0) as stream:
        sha256_of(stream, 5 << 20, "large", sizes.append)
    assert sum(sizes) == 5 << 20
    assert max(sizes) <= 1 << 20


def test_missing_folders_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make one with `latentcot export"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"is not a bundle, it has no latentcot\.json; make one"):
        open_bundle(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is not a folder; make one"):
        open_bundle(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be opened"):
        open_bundle("a\0b")
    with pytest.raises(InputError, match="cannot be read"):
        open_bundle("n" * 300)


def test_this_floor_loads_no_framework() -> None:
    code = (
        "import sys, latentcot_export.bundle\n"
        "names = ('torch', 'numpy', 'onnx', 'transformers', 'safetensors', 'onnxruntime')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
