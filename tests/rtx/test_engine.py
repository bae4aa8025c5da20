"""The engine of target tensorrt-rtx, built where no GPU is: the whole graph with its Loop, for what it says it takes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from latentcot_export.bundle import Bundle, open_bundle, read_report
from latentcot_export.checkpoint import Checkpoint, random_tensors
from latentcot_export.errors import InputError
from latentcot_export.export import export, rtx
from latentcot_export.export.save import save_graph
from latentcot_export.export.trace import portable_model
from latentcot_export.runtime import rtx_engine
from latentcot_export.runtime.state import slots_for
from latentcot_export.spec import AdapterSpec, CacheSpec, DeciderSpec, FeedbackSpec, ModelSpec, RecurrenceSpec, RopeSpec
from latentcot_export.validate.report import Report
from tests.cli.terminal import latentcot, one_sentence, refused
from tests.rtx.conftest import PINS, TINY

MODEL = ModelSpec(101, 40, 64, 1, 6, 2, 20, 1e-5, 64, RopeSpec(), attention_bias=True, mlp_bias=True)
SANDWICH = dataclasses.replace(MODEL, block="sandwich", activation="gelu_tanh", qk_norm=True, tie_word_embeddings=True)
# Between them every switch whose nodes the other graphs do not have: an adapter, a decider's TopK, Softmax and Gelu, a
# gather by depth; a tail's running sums, weights in the scores, layer norms.
UNUSUAL = {
    "decider": (
        SANDWICH,
        RecurrenceSpec(
            2,
            0.5,
            "decider",
            stop="gate",
            readout="sum",
            visibility="newest",
            feedback=FeedbackSpec(4, False),
            decider=DeciderSpec((0, 1), 9, (5, 3), 2, True),
            adapter=AdapterSpec(2),
        ),
        "float16",
    ),
    "tail": (
        dataclasses.replace(MODEL, norm="layer", block="parallel", mlp="plain", activation="gelu", rotary_dim=4),
        RecurrenceSpec(3, 0.1, "mlp", 7, stop="tail", readout="shares", visibility="all", router_activation="tanh"),
        "float32",
    ),
}


AGAIN = ("--target", "tensorrt-rtx", "--force")


def engine_of(bundle: Bundle) -> Path:
    return bundle.path(rtx_engine.engine_facts(bundle).file)


def test_the_bundle_holds_the_engine_that_its_manifest_states(tiny: Bundle) -> None:
    facts = rtx_engine.engine_facts(tiny)
    version = next(
        line.split("==")[1] for line in PINS.read_text().splitlines() if line.startswith("tensorrt-rtx-cu13=")
    )
    assert (facts.version, tiny.manifest.built_with["tensorrt-rtx"]) == (version, version)
    assert facts.file == f"model.tensorrt-rtx-{version}.float32.{facts.graph[:12]}.engine"
    assert {facts.file, "engine.json", "model.onnx", "model.onnx.data"} < set(tiny.manifest.files)
    assert facts.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    # the weights are in it, and more than them
    assert engine_of(tiny).stat().st_size > tiny.path("model.onnx.data").stat().st_size
    assert (tiny.manifest.target, tiny.manifest.opset) == ("tensorrt-rtx", 20)
    assert open_bundle(tiny.folder).manifest == tiny.manifest


def test_the_graph_that_was_built_equals_the_oracle(tiny: Bundle, stages: list[str]) -> None:
    report = read_report(tiny, "validation.json")
    assert report is not None and report["passed"] and report["target"] == "tensorrt-rtx"
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert all(gates[name]["mismatched"] == 0 and gates[name]["compared"] > 0 for name in ("depth", "tokens"))
    assert report["mean_depth"] > 1.5
    assert any("ONNX Runtime on the CPU, the engine is not run" in stage for stage in stages)
    told = Report("tiny", "tiny", "tensorrt-rtx", "float32", "quick", "text", 9, (), (9,))
    assert told.summary().endswith("ONNX Runtime ran the graph; the engine was not run\n")
    assert "engine" not in dataclasses.replace(told, target="onnx").summary()


def test_loops_are_in_the_network(library: Any, tiny: Bundle) -> None:
    """The burst and the two threshold searches of the token choice, whose trip counts data decide."""
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, library.Logger(library.Logger.ERROR))
    assert parser.parse_from_file(str(tiny.path("model.onnx")))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    limits = [layer for layer in layers if layer.type == library.LayerType.TRIP_LIMIT]
    # a LoopBoundary's kind is told by the name of its enumerator; each ONNX Loop with a condition has kWHILE
    whiles = [layer for layer in limits if getattr(layer, "kind", None) == library.TripLimit.WHILE] or limits
    assert len(whiles) >= 3


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_every_kind_of_recurrence_builds(library: Any, name: str, tmp_path: Path) -> None:
    model, recurrence, dtype = UNUSUAL[name]
    tensors = random_tensors(model, recurrence, 1)
    save_graph(portable_model(model, recurrence, tensors, dtype, 20), tmp_path)
    facts = rtx.write_engine(tmp_path, model, recurrence, CacheSpec(dtype, 64, 4), dtype)
    assert len((tmp_path / facts.file).read_bytes()) > 1 << 20
    assert rtx_engine.EngineFacts.from_json(json.loads((tmp_path / "engine.json").read_text())) == facts


def test_what_the_library_refuses_is_told(library: Any, tmp_path: Path) -> None:
    """Shows that a build can fail: by an operator it has not, and by a TopK that is too large."""
    int64, make = onnx.TensorProto.INT64, onnx.helper
    x, y = (make.make_tensor_value_info(name, int64, ["batch"]) for name in "xy")
    graph = make.make_graph([make.make_node("BitwiseXor", ["x", "x"], ["y"])], "g", [x], [y])
    path = tmp_path / "xor.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10), path)
    profile = rtx_engine.Profile({"batch": (1, 1, 1)})
    with pytest.raises(InputError, match=r"does not build this graph \(.*\); export it with --target onnx or"):
        rtx.build_engine(library, path, (profile,), ["SM89"])

    wide = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 5000])
    values = make.make_tensor_value_info("values", onnx.TensorProto.FLOAT, ["batch", None])
    for count, builds in ((rtx.MOST_TOP_K, True), (rtx.MOST_TOP_K + 1, False)):
        k = onnx.numpy_helper.from_array(np.array([count]), "k")
        node = make.make_node("TopK", ["x", "k"], ["values", "indices"])
        graph = make.make_graph([node], "g", [wide], [values], [k])
        onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10), path)
        if builds:
            assert len(rtx.build_engine(library, path, (profile,), ["SM89"]))
        else:
            with pytest.raises(InputError, match="3840"):
                rtx.build_engine(library, path, (profile,), ["SM89"])


def source(recurrence: RecurrenceSpec, vocab_size: int = 6000) -> Checkpoint:
    model = dataclasses.replace(MODEL, vocab_size=vocab_size)
    return Checkpoint(Path("somewhere"), "made_by_a_test", model, recurrence, {}, {}, "float32")


def test_too_many_largest_logits_are_refused_before_anything_is_traced(library: Any) -> None:
    few, many = FeedbackSpec(rtx.MOST_TOP_K), FeedbackSpec(rtx.MOST_TOP_K + 1)
    rtx.check_rtx(source(RecurrenceSpec(2, feedback=few)))
    rtx.check_rtx(source(RecurrenceSpec(2, feedback=many), vocab_size=3841))  # all of them: a softmax
    with pytest.raises(InputError, match="the feedback of somewhere takes the 3841 largest logits"):
        rtx.check_rtx(source(RecurrenceSpec(2, feedback=many)))
    decider = DeciderSpec((0,), 5000, (3,))
    with pytest.raises(InputError, match=r"the decider .* 5000 .* at most 3840; export it with --target onnx"):
        rtx.check_rtx(source(RecurrenceSpec(2, router_type="decider", decider=decider)))


@pytest.mark.parametrize(("length", "batch", "latents"), [(1, 1, 0), (256, 8, 4), (4096, 64, 3), (131072, 64, 5)])
def test_profiles_cover_what_the_host_can_ask_for(length: int, batch: int, latents: int) -> None:
    model = dataclasses.replace(MODEL, vocab_size=128256, num_heads=32)
    profiles = rtx.engine_profiles(model, RecurrenceSpec(latents), CacheSpec("float32", length, batch))
    sizes = {"length": length, "stops": 1, "logit_positions": 0}
    most = length * (latents + 1)
    for rows in (1, 2, 64):
        for used in {0, most // 3, most - 1, most}:
            asked = slots_for(used + rows + max(64, used // 4))
            kinds = [each for each in profiles if each.takes({**sizes, "batch": 1, "rows": rows, "slots": asked})]
            assert len(kinds) == 1, (rows, used)
            # no intermediate tensor is larger than the limit, unless one sequence alone needs it
            many, tuned, _ = (kinds[0].axes[axis][2] for axis in ("batch", "rows", "slots"))
            assert many == 1 or many * tuned * 128256 <= 1 << 28
    assert max(each.axes["batch"][2] for each in profiles) <= batch
    assert len(profiles) == 2 * {1: 1, 256: 1, 4096: 3, 131072: 4}[length]


def test_without_the_library_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    sentence = refused("export", TINY, tmp_path / "b", "--target", "tensorrt-rtx")
    assert "needs TensorRT for RTX" in sentence and "pip install '.[tensorrt-rtx]'" in sentence
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--opset 24", "--opset is 24, with --target tensorrt-rtx it must be 20; leave it out"),
        ("--quantize int8", "--quantize int8 is for --target ort"),
        ("--dtype bfloat16", "--dtype is bfloat16, with --target tensorrt-rtx it must be one of float32, float16"),
        ("--cache-slots 99", "--cache-slots is for --target ort"),
    ],
)
def test_options_of_other_targets_are_refused(tmp_path: Path, options: str, part: str) -> None:
    assert part in refused("export", TINY, tmp_path / "b", "--target", "tensorrt-rtx", *options.split())


def test_the_rebuild_command_builds_the_engine_again(
    library: Any, tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be after an upgrade: the very command of the sentence, then the engine has the new name."""
    out = tmp_path / "copy of tiny"
    monkeypatch.setattr(library, "__version__", "1.7.2.5")
    monkeypatch.setattr(rtx, "build_engine", lambda *_: b"of another version")
    again = export(tiny.folder, out, target="tensorrt-rtx", validate=False)
    facts = rtx_engine.engine_facts(again)
    assert facts.version == again.manifest.built_with["tensorrt-rtx"] == "1.7.2.5"
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        assert again.manifest.files[name] == tiny.manifest.files[name]
    engines = [name for name in again.manifest.files if name.endswith(".engine")]
    assert engines == [facts.file] and "1.7.2.5" in facts.file

    monkeypatch.undo()
    with pytest.raises(InputError) as refusal:
        rtx_engine.check_version(again, facts, library.__version__)
    told = str(refusal.value)
    assert "built with TensorRT for RTX 1.7.2.5 and 1.7.1.116 is installed" in told
    command = told.split("`")[1]
    assert command == f"latentcot export '{out}' '{out}' --target tensorrt-rtx --force"
    done = latentcot("export", out, out, *AGAIN, "--no-validate")
    assert done.exit_code == 0, done.output
    rebuilt = open_bundle(out)
    rtx_engine.check_version(rebuilt, rtx_engine.engine_facts(rebuilt), library.__version__)
    assert "leave out --dtype" in refused("export", out, out, *AGAIN, "--dtype", "float16")


def test_only_an_engine_of_this_target_is_built_again(
    library: Any, tiny: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Bundle(tiny.folder, dataclasses.replace(tiny.manifest, target="onnx"))
    monkeypatch.setattr(rtx, "open_bundle", lambda _: other)
    sentence = refused("export", tiny.folder, tmp_path / "b", "--target", "tensorrt-rtx")
    assert "has the target onnx" in sentence and "export its checkpoint with --target tensorrt-rtx" in sentence


@pytest.mark.parametrize(
    "change",
    [
        {"version": 7},
        {"version": "../7"},
        {"extra": 1},
        {"profiles": []},
        {"profiles": [{"batch": [2, 1, 3]}]},
        {"profiles": [{"batch": [1, 2]}]},
        {"profiles": {"batch": 3}},
        {"compute_capabilities": None},
        {"schema_version": 2},
    ],
)
def test_engine_json_is_read_fail_closed(tiny: Bundle, change: dict[str, Any]) -> None:
    stated = json.loads(tiny.read_bytes("engine.json"))
    rtx_engine.EngineFacts.from_json(stated)
    with pytest.raises(ValueError):
        rtx_engine.EngineFacts.from_json({**stated, **change})


def test_a_tampered_engine_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(tiny.folder, copy)
    opened = open_bundle(copy)
    engine = engine_of(opened)
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    assert "does not have the sha256" in refused("generate", copy, "--ids", "1", "--device", "cuda")
    result = latentcot("inspect", copy)
    assert "does not have the sha256" in one_sentence(result.stderr)
