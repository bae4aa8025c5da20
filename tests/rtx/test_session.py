"""The session of target tensorrt-rtx over stand-ins: what the host does, which is all of it but the engine itself."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentcot_export.bench import Settings, bench
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.errors import InputError, LatentCoTError
from latentcot_export.runtime import LatentCoTForCausalLM, rtx_session
from latentcot_export.runtime.cuda_driver import Gpu
from latentcot_export.runtime.rtx_engine import engine_facts
from latentcot_export.runtime.rtx_session import RtxSession
from tests.cli.terminal import refused
from tests.rtx.stand_in import library as stand_in

PROMPTS = [[5, 9, 11], list(range(40, 140)), [7], [1000, 3, 3, 8, 12, 700, 4]]


@dataclasses.dataclass
class Machine:
    """A library and a driver that are stand-ins; `bundle` is what they run."""

    bundle: Bundle
    driver: Any
    library: Any
    patch: pytest.MonkeyPatch

    def model(self, **options: Any) -> LatentCoTForCausalLM:
        """Of the device cuda, with the engine's stand-in of these options."""
        facts = engine_facts(self.bundle)
        self.library = stand_in(
            self.bundle.path("model.onnx"), facts.profiles, self.bundle.read_bytes(facts.file), **options
        )
        self.patch.setattr(rtx_session, "tensorrt_rtx", lambda: self.library)
        return LatentCoTForCausalLM(self.bundle, device="cuda")


@pytest.fixture
def rtx(tiny: Bundle, machine: Any, driver: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(rtx_session, "Gpu", lambda: Gpu(str(driver)))
    return Machine(tiny, machine, None, monkeypatch)


def test_it_gives_what_the_graph_gives(rtx: Machine) -> None:
    """Tokens, depths and passes of unequal prompts, greedy and sampled; every byte of the GPU is given back."""
    cpu, gpu = LatentCoTForCausalLM(rtx.bundle), rtx.model()
    options: dict[str, Any] = {"temperature": [0, 0.8, 0.8, 0], "top_p": [1, 0.9, 0.9, 1], "top_k": [0, 0, 40, 0]}
    options |= {"seed": [0, 3, 4, 0], "max_new_tokens": [30, 5, 12, 40]}
    truth, made = cpu.generate(PROMPTS, **options), gpu.generate(PROMPTS, **options)
    assert isinstance(gpu.session, RtxSession)
    assert made.to_json() == truth.to_json()
    # prompts by the profiles of many rows, decoding by those of one, and back only for the next generation
    (context,) = rtx.library.contexts
    kinds = [gpu.session.facts.profiles[index].axes["rows"][2] for index in context.chosen]
    assert kinds == sorted(kinds, reverse=True) and {1, 64} == set(kinds)
    gc.collect()
    assert rtx.driver.stand_in_held() == 0


def test_streams_and_stop_tokens(rtx: Machine) -> None:
    cpu, gpu = LatentCoTForCausalLM(rtx.bundle), rtx.model(on_host=("lockstep", "max_passes"))
    truth = [dataclasses.astuple(each) for each in cpu.stream(PROMPTS[:2], 16, stop_token_ids=[17, 18])]
    assert [dataclasses.astuple(each) for each in gpu.stream(PROMPTS[:2], 16, stop_token_ids=[17, 18])] == truth


def test_a_batch_that_the_profiles_of_prompts_do_not_take_runs_row_by_row(rtx: Machine) -> None:
    gpu = rtx.model()
    assert isinstance(gpu.session, RtxSession)
    narrow = tuple(
        dataclasses.replace(each, axes=each.axes | ({"batch": (1, 1, 1)} if each.axes["rows"][2] > 1 else {}))
        for each in gpu.session.facts.profiles
    )
    gpu.session.facts = dataclasses.replace(gpu.session.facts, profiles=narrow)
    truth = LatentCoTForCausalLM(rtx.bundle).generate(PROMPTS, 4)
    assert gpu.generate(PROMPTS, 4).to_json() == truth.to_json()
    assert {narrow[index].axes["rows"][2] for index in rtx.library.contexts[0].chosen} == {1}
    none = tuple(dataclasses.replace(each, axes=each.axes | {"batch": (1, 1, 1)}) for each in narrow)
    gpu.session.facts = dataclasses.replace(gpu.session.facts, profiles=none)
    with pytest.raises(InputError, match=r"has no profile for batch 4, length \d+, .*; give a smaller max_batch"):
        gpu.generate(PROMPTS, 4)


def test_threads_take_turns(rtx: Machine) -> None:
    gpu = rtx.model()
    alone = [gpu.generate(prompt, 12).to_json() for prompt in PROMPTS]
    made: dict[int, Any] = {}

    def run(index: int) -> None:
        made[index] = gpu.generate(PROMPTS[index], 12).to_json()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(PROMPTS))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [made[index] for index in range(len(PROMPTS))] == alone


def test_a_loop_that_runs_too_long_is_found(rtx: Machine) -> None:
    with pytest.raises(LatentCoTError, match=r"ran 2 passes where 1 were allowed"):
        rtx.model(extra=1).generate(PROMPTS[1], 8)


def test_what_does_not_fit_is_told(rtx: Machine) -> None:
    gpu = rtx.model()
    rtx.driver.stand_in_room(1 << 10)
    with pytest.raises(LatentCoTError, match="answers cuMemAllocAsync with error 2; try fewer or shorter prompts"):
        gpu.generate(PROMPTS, 4)


def test_another_version_is_answered_by_the_command(rtx: Machine) -> None:
    with pytest.raises(InputError) as refusal:
        rtx.model(version="1.8.0.3")
    folder = rtx.bundle.folder
    assert str(refusal.value).endswith(f"`latentcot export {folder} {folder} --target tensorrt-rtx --force`")
    assert "1.7.1.116 and 1.8.0.3 is installed" in str(refusal.value)


def test_another_gpu_is_refused(rtx: Machine) -> None:
    rtx.driver.stand_in_machine(1, 9, 0)
    with pytest.raises(InputError, match=r"capability 9\.0 and engine .* is for 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        rtx.model()


def test_a_changed_engine_never_reaches_the_library(rtx: Machine, tmp_path: Path) -> None:
    """Changed after the bundle was opened, too: the bytes that are hashed are those that are deserialised."""
    copy = tmp_path / "tiny"
    shutil.copytree(rtx.bundle.folder, copy)
    opened = open_bundle(copy)
    model = dataclasses.replace(rtx, bundle=opened)
    assert isinstance(model.model().session, RtxSession)
    data = bytearray(opened.path(engine_facts(opened).file).read_bytes())
    data[-1] ^= 1
    opened.path(engine_facts(opened).file).write_bytes(data)
    with pytest.raises(InputError, match="does not have the sha256 its manifest states"):
        LatentCoTForCausalLM(opened, device="cuda")
    assert "does not have the sha256" in refused("generate", copy, "--ids", "1", "--device", "cuda")


def test_an_engine_of_another_graph_is_refused(rtx: Machine) -> None:
    entry = rtx.bundle.manifest.files["model.onnx"]
    files = {**rtx.bundle.manifest.files, "model.onnx": {**entry, "sha256": "0" * 64}}
    other = Bundle(rtx.bundle.folder, dataclasses.replace(rtx.bundle.manifest, files=files))
    with pytest.raises(InputError, match=r"engine\.json of bundle .* is about another graph"):
        RtxSession(other)


def test_no_gpu_and_no_library_are_one_sentence_each(rtx: Machine) -> None:
    rtx.model()
    folder = rtx.bundle.folder
    rtx.driver.stand_in_machine(0, 0, 0)
    assert "device cuda needs an NVIDIA GPU and the driver finds none" in refused(
        "generate", folder, "--ids", "1", "--device", "cuda"
    )
    rtx.patch.setattr(rtx_session, "Gpu", lambda: Gpu("libcuda_that_is_not_there.so"))
    told = refused("generate", folder, "--ids", "1", "--device", "cuda")
    assert "libcuda_that_is_not_there.so is not there" in told and "or use device cpu" in told
    rtx.patch.undo()
    rtx.patch.setitem(sys.modules, "tensorrt_rtx", None)
    told = refused("generate", folder, "--ids", "1", "--device", "cuda")
    assert "pip install '.[tensorrt-rtx]'" in told
    assert "pip install '.[tensorrt-rtx]'" in refused("bench", folder, "-b", "1", "--device", "cuda")
    # the report is about the graph on the processor, and says so: no gate runs on the engine
    assert "keeps no logits to compare; use device cpu" in refused("validate", folder, "--device", "cuda")


def test_bench_measures_the_engine(rtx: Machine) -> None:
    """What depths decide is the same on both devices."""
    rtx.model()
    settings = Settings(prompt=70, new=5, batches=(2,), runs=1, warmup=0, threads=1)
    reports = [bench(rtx.bundle, dataclasses.replace(settings, device=name)) for name in ("cpu", "cuda")]
    assert len(rtx.library.contexts) == 2 and rtx.library.contexts[-1].chosen  # its own, beside the model's
    work = [[(row["test"], row["mean_depth"], row["occupancy"]) for row in each["rows"]] for each in reports]
    assert work[0] == work[1] and [each["machine"]["device"] for each in reports] == ["cpu", "cuda"]


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.bool_])
def test_arrays_come_back_as_they_went(machine: ctypes.CDLL, driver: Path, shape: tuple, dtype: Any) -> None:
    gpu = Gpu(str(driver))
    assert gpu.capability == "8.9" and gpu.stream
    array = np.arange(30)[: int(np.prod(shape))].reshape(shape).astype(dtype)
    there = gpu.put(array)
    back = there.numpy()
    assert (back.dtype, back.shape) == (array.dtype, shape) and (back == array).all()
    del there
    gc.collect()
    assert machine.stand_in_held() == 0
