"""Every node of every pass is placed on the device, and a burst of captured passes waits once, at its end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from latentcot_export.errors import InputError
from latentcot_export.export import export
from tests.checkpoints import in_memory
from tests.families.sample import SAMPLES, publish
from tests.specs import backbones, thinking

pytestmark = pytest.mark.onnxruntime_gpu
Program = Callable[..., subprocess.CompletedProcess[str]]
KINDS: tuple[dict[str, str], ...] = (
    *({}, {"dtype": "float16"}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"}),
    *({"dtype": "float16", "quantize": "int4"}, {"dtype": "bfloat16", "quantize": "int8"}),
)


def placed(on_gpu: Program, graphs: list[Path]) -> None:
    done = on_gpu("place.py", *graphs)
    assert done.returncode == 0, done.stderr[-3000:]
    version, *lines = done.stdout.splitlines()
    assert version == "1.31.1" and len(lines) == len(graphs) > 0
    assert [line for line in lines if not line.endswith(" nodes, 0 copies")] == []


def test_passes_of_every_family_and_dtype(on_gpu: Program, tmp_path: Path) -> None:
    graphs = []
    for number, sample in enumerate(SAMPLES):
        publish(tmp_path / f"c{number}", sample)
        for kind in KINDS:
            out = tmp_path / f"b{number}-{'-'.join(kind.values())}"
            try:
                bundle = export(tmp_path / f"c{number}", out, target="ort", validate=False, **kind)
            except InputError as error:
                assert "over the whole vocabulary" in str(error)  # which is not quantised
                continue
            graphs.append(bundle.path("pass.onnx"))
    assert len(graphs) > 90
    placed(on_gpu, graphs)


def test_passes_of_any_model(on_gpu: Program, tmp_path: Path) -> None:
    graphs: list[Path] = []

    @settings(max_examples=60, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(backbones(), st.data(), st.sampled_from(("float32", "float16", "bfloat16")))
    def draw(model: object, data: st.DataObject, dtype: str) -> None:
        folder = tmp_path / str(len(graphs))
        with in_memory(folder / "c", model, data.draw(thinking(model.num_layers)), 3) as checkpoint:  # type: ignore
            bundle = export(checkpoint, folder / "b", target="ort", dtype=dtype, validate=False)
        graphs.append(bundle.path("pass.onnx"))

    draw()
    placed(on_gpu, graphs)


def test_a_graph_with_a_loop_is_refused(on_gpu: Program, random_checkpoint: Path, tmp_path: Path) -> None:
    """So the sessions above are no accident."""
    bundle = export(random_checkpoint, tmp_path / "b", target="ort", validate=False)
    assert "refused: " in on_gpu("place.py", bundle.path("model.onnx")).stdout


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()) or "float32")
def test_a_burst_of_replays_waits_once(
    on_gpu: Program, random_checkpoint: Path, tmp_path: Path, kind: dict[str, str]
) -> None:
    bundle = export(random_checkpoint, tmp_path / "b", target="ort", validate=False, **kind)  # type: ignore[arg-type]
    done = on_gpu("bursts.py", bundle.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    calls = [line.removeprefix("cuda: ") for line in done.stderr.splitlines() if line.startswith("cuda: ")]
    first = calls.index("cudaGraphLaunch")
    count = calls.count("cudaGraphLaunch")
    assert count >= 16
    # one launch a pass and nothing between them; the last one is waited for, then the host reads what it is told
    assert calls[first : first + count] == ["cudaGraphLaunch"] * count
    assert calls[first + count] == "cudaStreamSynchronize"
    assert {"cudaMalloc", "cudaStreamBeginCapture"}.isdisjoint(calls)
