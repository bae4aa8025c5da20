"""Engines on disk: their names and descriptions, what is proved before one is loaded, and the builder's calls."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.runtime import tensorrt_build
from latentcot_export.runtime.tensorrt_build import axes, build_engine, profiles, shapes
from latentcot_export.runtime.tensorrt_engine import (
    EngineKey,
    engine_folder,
    engine_key,
    read_engine,
    rebuild_command,
    timing_file,
    write_engine,
)
from latentcot_export.runtime.tensorrt_library import PLUGINS_VARIABLE, plugin_library, tensorrt
from latentcot_export.runtime.tensorrt_session import TensorRTSession
from tests.tensorrt.stand_in import TensorRT

VERSION, SM = "11.4.0.106", "9.0"
PLAN = b"an engine" * 100


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tensorrt") / "a model"
    return export(
        random_checkpoint, folder, target="tensorrt", dtype="bfloat16", validate=False, max_seq_len=40, max_batch=3
    )


@pytest.fixture
def key(bundle: Bundle) -> EngineKey:
    return engine_key(bundle, VERSION, SM)


def refused(bundle: Bundle, folder: Path, key: EngineKey) -> str:
    with pytest.raises(InputError) as error:
        read_engine(bundle, folder, key)
    said = str(error.value)
    assert rebuild_command(bundle, folder) in said and "\n" not in said
    return said


def test_the_name_of_an_engine_says_what_it_depends_on(key: EngineKey, bundle: Bundle) -> None:
    assert key.file == f"tensorrt-{VERSION}.sm90.bfloat16.{bundle.manifest.digest()[:16]}.engine"
    others = [
        dataclasses.replace(key, tensorrt="10.14.1.48"),
        dataclasses.replace(key, sm="10.0"),
        dataclasses.replace(key, dtype="float16"),
        dataclasses.replace(key, bundle="0" * 64),
    ]
    assert len({each.file for each in [key, *others]}) == 5


def test_what_was_written_is_read(bundle: Bundle, tmp_path: Path, key: EngineKey) -> None:
    path = write_engine(tmp_path / "new" / "folder", key, memoryview(PLAN))
    assert read_engine(bundle, path.parent, key) == PLAN
    assert sorted(each.name for each in path.parent.iterdir()) == [key.file, f"{key.file}.json"]
    facts = json.loads((path.parent / f"{key.file}.json").read_text())
    assert (facts["tensorrt"], facts["sm"], facts["size"]) == (VERSION, SM, len(PLAN))
    write_engine(path.parent, key, b"another one")
    assert read_engine(bundle, path.parent, key) == b"another one"


def test_the_rebuild_command_is_one_that_runs(bundle: Bundle, tmp_path: Path) -> None:
    assert engine_folder(bundle) == bundle.folder.with_name("a model.engines")
    assert engine_folder(bundle, tmp_path) == tmp_path
    command = rebuild_command(bundle, engine_folder(bundle))
    assert command == f"python -m latentcot_export.runtime.tensorrt_build '{bundle.folder}'"
    assert rebuild_command(bundle, tmp_path) == f"{command} --engines {tmp_path}"


def test_without_an_engine_the_command_is_told(bundle: Bundle, tmp_path: Path, key: EngineKey) -> None:
    said = refused(bundle, tmp_path / "nowhere", key)
    assert said.startswith(f"there is no engine of this bundle for TensorRT {VERSION} and compute capability {SM}")


@pytest.mark.parametrize("other", [{"tensorrt": "10.14.1.48"}, {"sm": "8.0"}])
def test_another_version_or_gpu_is_named(bundle: Bundle, tmp_path: Path, key: EngineKey, other: dict[str, str]) -> None:
    theirs = dataclasses.replace(key, **other)
    write_engine(tmp_path, theirs, PLAN)
    assert f"only for TensorRT {theirs.tensorrt} and compute capability {theirs.sm};" in refused(bundle, tmp_path, key)


@pytest.mark.parametrize(
    "other", [{"tensorrt": "10.14.1.48"}, {"sm": "8.0"}, {"bundle": "0" * 64}, {"dtype": "float32"}]
)
def test_a_renamed_engine_is_not_loaded(bundle: Bundle, tmp_path: Path, key: EngineKey, other: dict[str, str]) -> None:
    path = write_engine(tmp_path, dataclasses.replace(key, **other), PLAN)
    for source, name in ((path, key.file), (path.with_name(f"{path.name}.json"), f"{key.file}.json")):
        source.rename(tmp_path / name)
    ((name, value),) = other.items()
    assert f"states {name} {value} and this bundle on this machine needs" in refused(bundle, tmp_path, key)


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a bit": flipped,
    "shorter": lambda path: path.write_bytes(PLAN[:-1]),
    "longer": lambda path: path.write_bytes(PLAN + b"!"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_engine_is_never_deserialised(
    bundle: Bundle, tmp_path: Path, key: EngineKey, change: Callable[[Path], object]
) -> None:
    change(write_engine(tmp_path, key, PLAN))
    assert "is not the one that was built, by its size or sha256, and is not loaded" in refused(bundle, tmp_path, key)


def test_a_link_in_place_of_an_engine_is_refused(bundle: Bundle, tmp_path: Path, key: EngineKey) -> None:
    path = write_engine(tmp_path, key, PLAN)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        read_engine(bundle, tmp_path, key)


@pytest.mark.parametrize(
    "facts",
    ["", "{", "[]", "{}", '{"schema_version": 2}', pytest.param("size", id="size"), pytest.param("more", id="more")],
)
def test_a_description_that_is_none_is_refused(bundle: Bundle, tmp_path: Path, key: EngineKey, facts: str) -> None:
    path = write_engine(tmp_path, key, PLAN)
    beside = path.with_name(f"{path.name}.json")
    good = json.loads(beside.read_text())
    changed = {"size": {**good, "size": True}, "more": {**good, "more": 1}}
    beside.write_text(json.dumps(changed[facts]) if facts in changed else facts)
    refused(bundle, tmp_path, key)


def test_profiles_cover_what_a_host_asks_for(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    dims = {each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in graph.input}
    open_ones = {name: tuple(each) for name, each in dims.items() if any(isinstance(dim, str) for dim in each)}
    assert axes(bundle.manifest) == open_ones
    decoding, prompts = profiles(bundle.manifest)
    assert (decoding["rows"], prompts["rows"]) == ((1, 3, 3), (1, 512, 512))
    assert {name: size for name, size in decoding.items() if name != "rows"}.items() <= prompts.items()
    made = shapes(bundle.manifest, decoding)
    slots = bundle.manifest.cache.slots
    assert made["rows"] == ((1, 4), (3, 4), (3, 4))
    assert made["cache_1"] == ((2, 5, 2, 16), (2, slots, 2, 16), (2, slots, 2, 16))
    assert made["logits"][0][1] == 0 and made["logits"][2][1] == 40
    for least, tuned, most in made.values():
        assert all(a <= b <= c for a, b, c in zip(least, tuned, most, strict=True))


def test_a_build_keeps_its_timings_and_leaves_the_bundle_alone(
    bundle: Bundle, tmp_path: Path, key: EngineKey, library: TensorRT, plugins_found: Path
) -> None:
    before = sorted(path.name for path in bundle.folder.iterdir())
    assert build_engine(bundle, tmp_path) == tmp_path / key.file
    assert library.log == ["plugins", "timings b''"]
    build_engine(bundle, tmp_path)
    assert library.log[2:] == ["timings b'timed;'"]  # plugins are loaded once
    assert timing_file(tmp_path, key).read_bytes() == b"timed;timed;"
    assert sorted(path.name for path in bundle.folder.iterdir()) == before
    open_bundle(bundle.folder)


@pytest.mark.parametrize("complaint", ["no op of that name", "build: out of memory"])
def test_what_tensorrt_refuses_is_a_sentence_and_leaves_nothing(
    bundle: Bundle, tmp_path: Path, library: TensorRT, plugins_found: Path, complaint: str
) -> None:
    if complaint.startswith("build"):
        library.OnnxParser = lambda network, logger: _Parser(network)
    library.complaint = complaint
    with pytest.raises(InputError, match=rf"TensorRT {VERSION} does not build this graph \({complaint}\)"):
        build_engine(bundle, tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


class _Parser:
    def __init__(self, network: object) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.path = path  # type: ignore[attr-defined]
        return True


def test_the_command(
    bundle: Bundle,
    tmp_path: Path,
    key: EngineKey,
    library: TensorRT,
    plugins_found: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [str(bundle.folder), "--engines", str(tmp_path)]
    assert tensorrt_build.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / key.file}\n"
    library.complaint = "no"
    assert tensorrt_build.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: TensorRT") and told.err.count("\n") == 1


def test_without_tensorrt_one_sentence_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for load in (tensorrt, lambda: build_engine(bundle), lambda: TensorRTSession(bundle)):
        with pytest.raises(InputError, match=r"needs TensorRT, which cannot be imported here .*pip install"):
            load()


def test_without_a_gpu_one_sentence_says_so(bundle: Bundle, library: TensorRT, plugins_found: Path) -> None:
    library.driver.stand_in_machine(0, 9, 0)
    for load in (lambda: build_engine(bundle), lambda: TensorRTSession(bundle)):
        with pytest.raises(InputError, match="needs an NVIDIA GPU"):
            load()


def test_the_plugin_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path / "plugins.so"))
    with pytest.raises(InputError, match=f"cmake -S plugins/tensorrt.*set {PLUGINS_VARIABLE}"):
        plugin_library()
    (tmp_path / "plugins.so").write_bytes(b"")
    assert plugin_library() == tmp_path / "plugins.so"


def test_a_library_without_our_plugins_is_refused(
    bundle: Bundle, tmp_path: Path, library: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.so").write_bytes(b"nothing of ours")
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(InputError, match=r"gives TensorRT .* no ChooseToken of version 1"):
        build_engine(bundle, tmp_path)


def test_a_bundle_of_another_target_is_refused(random_bundle: Path, library: TensorRT) -> None:
    with pytest.raises(InputError, match="has the target onnx and TensorRT builds those of tensorrt alone"):
        build_engine(open_bundle(random_bundle))
