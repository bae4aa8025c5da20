"""`device`: one sentence where a bundle or a machine has none such, from the library and on the command line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from latentcot_export import Engine, LatentCoTForCausalLM
from latentcot_export.bench import Settings, bench
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.runtime import cuda_driver, device, library
from latentcot_export.runtime.library import library_path
from latentcot_export.runtime.pass_session import PassSession, packed_session
from latentcot_export.validate import validate
from tests.cli.terminal import refused
from tests.runtime.sample import rebundle

CUDA = "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(random_checkpoint, tmp_path_factory.mktemp("device") / "b", target="ort", validate=False)


@pytest.fixture(scope="module")
def old(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as older versions wrote them: no pass.onnx."""
    folder = rebundle(bundle.folder, tmp_path_factory.mktemp("old") / "b", without=["pass.onnx"])
    assert "pass.onnx" not in open_bundle(folder).manifest.files
    return folder


def said_of(folder: Path, name: Any) -> list[str]:
    """What each way of running a bundle on a device says."""
    found = []
    ways = (
        lambda: LatentCoTForCausalLM.from_pretrained(folder, device=name),
        lambda: validate(folder, tokens=32, device=name),
        lambda: bench(open_bundle(folder), Settings(device=name)),
    )
    for way in ways:
        with pytest.raises(InputError) as refusal:
            way()
        found.append(str(refusal.value))
    arguments = (["generate", "--ids", "1"], ["validate"], ["bench"])
    found += [refused(verb, folder, *rest, "--device", name) for verb, *rest in arguments]
    assert all(sentence.isprintable() and "; " in sentence for sentence in found)
    return found


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:0", ""])
def test_a_device_that_is_none(bundle: Bundle, name: str) -> None:
    for sentence in said_of(bundle.folder, name):
        assert f"device is {name!r}, it must be one of cpu, cuda; choose one of these" in sentence


def test_a_bundle_of_another_target(random_bundle: Path) -> None:
    for sentence in said_of(random_bundle, "cuda"):
        assert "device cuda is for bundles of the targets ort, tensorrt and tensorrt-rtx and bundle" in sentence
        assert "is onnx; export it" in sentence


def test_an_old_bundle_runs_but_not_there(old: Path, bundle: Bundle) -> None:
    for sentence in said_of(old, "cuda"):
        assert "has no pass.onnx, which device cuda runs: an older version wrote it; export it again" in sentence
    with pytest.raises(InputError, match=r"has no pass.onnx; export it again with --target ort"):
        PassSession(open_bundle(old), 1, "cpu")
    wanted = LatentCoTForCausalLM.from_pretrained(bundle.folder, device="cpu").generate([1, 2], 9)
    assert LatentCoTForCausalLM.from_pretrained(old).generate([1, 2], 9) == wanted
    assert all(gate.passed for gate in validate(old, tokens=64).gates)


@pytest.mark.skipif(CUDA in device.ort.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_onnxruntime_without_cuda(bundle: Bundle) -> None:
    for sentence in said_of(bundle.folder, "cuda"):
        assert "needs onnxruntime-gpu" in sentence and "install onnxruntime-gpu in place of onnxruntime" in sentence
    with pytest.raises(InputError, match="needs onnxruntime-gpu"):
        Engine.from_pretrained(bundle.folder, device="cuda")


def test_onnxruntime_with_cuda_and_no_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on without the provider, on the processor; this does not."""
    monkeypatch.setattr(device.ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(library, "_check_kernels", lambda *_: None)
    for name, why in (("libnothing.so.1", "the driver's library .* is not there"), ("libc.so.6", ".* is no driver")):
        monkeypatch.setattr(cuda_driver, "LIBRARY", name)
        with pytest.raises(InputError, match=f"device cuda needs an NVIDIA GPU and {why}; check that `nvidia-smi`"):
            PassSession(bundle, 1, "cuda")
    monkeypatch.setattr(device, "require_gpu", lambda: None)
    with warnings.catch_warnings(), pytest.raises(InputError) as refusal:
        warnings.simplefilter("ignore")
        PassSession(bundle, 1, "cuda")
    assert "finds no CUDA device it can use; check that `nvidia-smi` shows a GPU" in str(refusal.value)


def test_onnxruntime_that_refuses_the_provider(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: str, options: object, providers: list[Any], **more: object) -> None:
        assert graph.endswith("pass.onnx") and more == {"enable_fallback": 0}
        ((name, settings),) = providers
        assert name == CUDA and settings["enable_cuda_graph"] == "1" and settings["use_tf32"] == "0"
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nand more")

    monkeypatch.setattr(device.ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(device.ort, "InferenceSession", refuse)
    monkeypatch.setattr(device, "require_gpu", lambda: None)
    monkeypatch.setattr(library, "_check_kernels", lambda *_: None)
    with pytest.raises(InputError) as refusal:
        PassSession(bundle, 1, "cuda")
    sentence = str(refusal.value)
    assert "on device cuda (CUDA failure 100: no CUDA-capable device is detected); check that `nvidia-smi`" in sentence
    assert "and more" not in sentence


def test_an_op_library_without_kernels_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_path("cpu").is_file()
    for content in (None, b"", b"no library"):
        built = tmp_path / library.LIBRARY
        built.write_bytes(library_path().read_bytes() if content is None else content)
        if content is None:
            monkeypatch.setattr(library.ctypes, "CDLL", lambda _path: object())
        with pytest.raises(InputError, match=r"holds no kernels for device cuda; build it anew with `pip install .`"):
            library._check_kernels(built, "cuda")
        monkeypatch.undo()


def test_a_table_that_does_not_fit_on_the_device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = PassSession(bundle, 1, "cpu", apart=True)

    def full(*_: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 99")

    monkeypatch.setattr("latentcot_export.runtime.device_tables.ort.OrtValue.ortvalue_from_numpy", full)
    engine = Engine(session, None, max_batch=1)
    with pytest.raises(
        InputError, match=r"table control of 16 bytes does not fit on device cpu .* give fewer cache_slots"
    ):
        engine.submit([1], 2).result()


def test_the_processor_runs_the_loop_and_a_gpu_the_pass(bundle: Bundle) -> None:
    assert type(packed_session(bundle, 1, "cpu")).__name__ == "NativeSession"
    model = LatentCoTForCausalLM.from_pretrained(bundle.folder, device="cpu")
    assert model.generate([1, 2], 4).ids[0]
