from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from latentcot_export.bundle import open_bundle, read_report, write_report
from latentcot_export.errors import InputError
from tests.bundle.sample import tree, write_bundle


def test_a_report_is_read_back_with_the_digest_it_measured(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    assert read_report(bundle, "validation.json") is None
    for given in (bundle, tmp_path / "b", str(tmp_path / "b")):
        path = write_report(
            given, "validation.json", {"passed": True, "worst": float("nan"), "rows": [(1, float("inf"))]}
        )
        assert path == tmp_path / "b" / "validation.json"
        assert read_report(given, "validation.json") == {
            "passed": True,
            "worst": None,
            "rows": [[1, None]],
            "manifest_digest": bundle.manifest.digest(),
        }
    assert open_bundle(tmp_path / "b") == bundle
    assert sorted(os.listdir(tmp_path)) == ["b"]


def test_a_report_is_replaced_whole(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    write_report(bundle, "bench.json", {"first": 1})
    write_report(bundle, "bench.json", {"second": 2})
    assert read_report(bundle, "bench.json") == {"second": 2, "manifest_digest": bundle.manifest.digest()}


def test_a_stale_report_is_not_believed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    path = write_report(bundle, "validation.json", {"passed": True})
    path.write_text(json.dumps({"passed": True, "manifest_digest": "0" * 64}))
    assert read_report(bundle, "validation.json") is None
    stale = read_report(bundle, "validation.json", allow_stale=True)
    assert stale == {"passed": True, "manifest_digest": "0" * 64}
    path.write_text(json.dumps({"passed": True}))
    assert read_report(bundle, "validation.json") is None


def test_only_the_two_reports(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    for name in ("config.json", "latentcot.json", "../x", ""):
        with pytest.raises(InputError, match=r"the reports are validation\.json and bench\.json"):
            write_report(bundle, name, {})
        with pytest.raises(InputError, match="is not a report"):
            read_report(bundle, name)


def test_a_broken_report_says_to_make_a_new_one(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    for text in ("{", "[]", "[NaN]", '{"a": 1, "a": 2}'):
        (tmp_path / "b" / "bench.json").write_text(text)
        with pytest.raises(InputError, match=r"report bench\.json of bundle .*; remove it, and run `latentcot bench`"):
            read_report(bundle, "bench.json")
    assert open_bundle(tmp_path / "b") == bundle, "the reports are not hashed and not read"


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b")
    write_report(bundle, "validation.json", {"passed": True})
    before = tree(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(
                InputError, match=r"report validation\.json of bundle .* was not written: No space left"
            ):
                write_report(bundle, "validation.json", {"passed": False})
        assert tree(tmp_path) == before


def test_writing_through_a_link_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "b" / "bench.json").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="symbolic link"):
        read_report(bundle, "bench.json")
    write_report(bundle, "bench.json", {})
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert open_bundle(tmp_path / "b") == bundle


def test_a_bundle_that_is_reached_by_a_link_takes_reports(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write_bundle(tmp_path / "disk" / "v1")
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "v1")
    write_report(tmp_path / "latest", "bench.json", {})
    assert (tmp_path / "disk" / "v1" / "bench.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["disk", "latest"]
