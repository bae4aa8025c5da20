"""A bundle of target tensorrt from its export to its tokens: everything but TensorRT and the GPU is what a user runs."""

from __future__ import annotations

import collections
import ctypes
import gc
import math
from pathlib import Path

import pytest

from latentcot_export import LatentCoTForCausalLM
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.export import export
from latentcot_export.runtime.tensorrt_build import build_engine
from latentcot_export.validate import validate
from tests.runtime.engines import state_of
from tests.tensorrt.stand_in import TensorRT

PROMPTS = [[5, 9, 13, 2, 40, 61], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def exported(checkpoint: Path, folder: Path, target: str = "tensorrt", **options: object) -> Bundle:
    return export(checkpoint, folder, target=target, validate=False, max_seq_len=48, max_batch=4, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt") / "random"
    exported(random_checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def native(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LatentCoTForCausalLM:
    folder = tmp_path_factory.mktemp("ort") / "random"
    exported(random_checkpoint, folder, "ort")
    return LatentCoTForCausalLM.from_pretrained(folder)


@pytest.fixture
def model(bundle: Path, library: TensorRT, plugins_found: Path) -> LatentCoTForCausalLM:
    build_engine(open_bundle(bundle))
    return LatentCoTForCausalLM.from_pretrained(bundle, device="cuda")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": [3, 4, 5]}])
def test_tokens_and_depths_are_those_of_the_processor(
    model: LatentCoTForCausalLM, native: LatentCoTForCausalLM, sampling: dict[str, object]
) -> None:
    found = model.generate(PROMPTS, max_new_tokens=[6, 9, 4], **sampling)  # type: ignore[arg-type]
    wanted = native.generate(PROMPTS, max_new_tokens=[6, 9, 4], **sampling)  # type: ignore[arg-type]
    assert (found.sequences, found.depths) == (wanted.sequences, wanted.depths)
    assert {depth for row in found.depths for depth in row} > {1}


def test_a_burst_is_replays_and_nothing_is_left_behind(bundle: Path, library: TensorRT, plugins_found: Path) -> None:
    build_engine(open_bundle(bundle))
    driver: ctypes.CDLL = library.driver
    gc.collect()
    graphs, held = driver.stand_in_graphs(), driver.stand_in_held()
    model = LatentCoTForCausalLM.from_pretrained(bundle, device="cuda")
    model.generate(PROMPTS, max_new_tokens=8)
    launches = driver.stand_in_launches()
    model.generate(PROMPTS, max_new_tokens=8)
    assert driver.stand_in_launches() > launches + 8
    # whatever the number of bursts, two captures for each number of rows, each in a context of its own
    captured = collections.Counter(context.shapes["rows"][0] for context in library.contexts)
    assert set(captured.values()) == {2} and driver.stand_in_graphs() - graphs == len(library.contexts)
    model.engine.close()
    del model
    library.contexts.clear()
    gc.collect()
    assert (driver.stand_in_graphs(), driver.stand_in_held()) == (graphs, held)


def test_slots_come_back_and_a_cancelled_request_leaves_no_trace(
    model: LatentCoTForCausalLM, native: LatentCoTForCausalLM
) -> None:
    stream = model.stream(PROMPTS, max_new_tokens=12)
    for _, event in zip(range(3), stream, strict=False):
        assert event.depth >= 1
    stream.close()
    again, wanted = (each.generate(PROMPTS[2], max_new_tokens=5) for each in (model, native))
    assert (again.sequences, again.depths) == (wanted.sequences, wanted.depths)


def test_more_sequences_than_places_take_turns(model: LatentCoTForCausalLM, native: LatentCoTForCausalLM) -> None:
    many = [[i + 1, 2 * i + 3, 7] for i in range(7)]
    found, wanted = (each.generate(many, max_new_tokens=3) for each in (model, native))
    assert (found.sequences, found.depths) == (wanted.sequences, wanted.depths)


def test_a_fault_of_a_plugin_is_one_sentence(model: LatentCoTForCausalLM, bundle: Path) -> None:
    stream = model.stream(PROMPTS, max_new_tokens=12)
    next(stream)
    state_of(model.engine).arrays["sampling"][:] = math.nan
    with pytest.raises(LatentCoTError) as told:
        list(stream)
    assert str(told.value) == (
        "ChooseToken found values that do not fit together in TensorRT (fault -3) and their rows were dropped; run "
        f"`latentcot validate {bundle} --device cuda`"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_narrow_bundle_runs(
    random_checkpoint: Path, tmp_path: Path, library: TensorRT, plugins_found: Path, dtype: str
) -> None:
    bundle = exported(random_checkpoint, tmp_path / "narrow", dtype=dtype)
    assert (bundle.manifest.dtype, bundle.manifest.cache.dtype) == (dtype, dtype)
    build_engine(bundle)
    model = LatentCoTForCausalLM.from_pretrained(tmp_path / "narrow", device="cuda")
    out = model.generate(PROMPTS[0], max_new_tokens=4)
    assert len(out.sequences[0]) == len(PROMPTS[0]) + 4 and min(out.depths[0]) >= 1
    # what a user does beside the GPU
    report = validate(bundle, against=random_checkpoint, device="cuda", tokens=40)
    assert report.passed and {"weights", "depth", "tokens", "logits"} < {gate.name for gate in report.gates}


def test_the_processor_is_refused(bundle: Path, library: TensorRT) -> None:
    with pytest.raises(InputError, match="runs on device cuda alone"):
        LatentCoTForCausalLM.from_pretrained(bundle)


def test_an_engine_that_tensorrt_cannot_load_is_a_sentence(
    bundle: Path, library: TensorRT, plugins_found: Path
) -> None:
    build_engine(open_bundle(bundle))
    library.complaint = "the plan file is not compatible"
    with pytest.raises(InputError, match=r"cannot be loaded \(the plan file is not compatible\)"):
        LatentCoTForCausalLM.from_pretrained(bundle, device="cuda")
