"""pass.onnx: documented inputs and outputs, the weights of model.onnx, and, of any model, its tokens, depths and logits."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export import Engine
from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.checkpoint import random_tensors, read_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.export.native_graph import native_model
from latentcot_export.export.native_layers import Weights
from latentcot_export.export.pass_graph import pass_model
from latentcot_export.export.save import save_beside, save_graph
from latentcot_export.ops.packed_tables import OPS
from latentcot_export.runtime.library import library_path
from latentcot_export.runtime.native_session import NativeSession
from latentcot_export.runtime.pass_session import PassSession
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate.packed import PackedEngine
from tests.bundles import RANDOM_MODEL
from tests.checkpoints import in_memory
from tests.export.native import graphs, native_bundle, pass_graph
from tests.export.test_native_graph import INPUTS, declared
from tests.export.test_native_property import EXAMPLES, EXPORTS, NEW, check, random_prompts
from tests.runtime.engines import check_empty, drain
from tests.runtime.replaying import Replaying
from tests.specs import backbones, recurrences, thinking

CARRIED = {
    "rows": ("INT32", ["rows", 4]),
    "latent": ("FLOAT", ["rows", 48]),
    "reach": ("FLOAT", ["rows"]),
    "mix": ("FLOAT", ["rows", 48]),
}
SOME = settings(EXPORTS, max_examples=max(2, EXAMPLES // 3))


@pytest.fixture(scope="module")
def ort_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(random_checkpoint, tmp_path_factory.mktemp("ort") / "bundle", target="ort", validate=False)


def test_inputs_and_outputs_are_the_documented_ones(ort_bundle: Bundle) -> None:
    graph = pass_graph(ort_bundle)
    tables = {name: kind for name, kind in INPUTS.items() if name not in ("max_passes", "fresh", *CARRIED)}
    assert {each.name: declared(each) for each in graph.input} == tables | CARRIED
    assert [each.name for each in graph.input] == [*tables, *CARRIED]
    outputs = {f"{name}_out": kind for name, kind in CARRIED.items()} | {"again": ("BOOL", [])}
    assert {each.name: declared(each) for each in graph.output} == outputs
    assert [each.name for each in graph.output] == list(outputs)


def test_one_pass_without_a_loop_and_no_shape_that_hangs_on_a_value(ort_bundle: Bundle) -> None:
    model = onnx.load(ort_bundle.path("pass.onnx"), load_external_data=False)
    onnx.checker.check_model(str(ort_bundle.path("pass.onnx")), full_check=True)
    assert {each.domain: each.version for each in model.opset_import} == {"": 24, "latentcot": 1, "com.microsoft": 1}
    nodes = list(model.graph.node)
    own = [node.op_type for node in nodes if node.domain == "latentcot"]
    layer = ["RaggedAttention", "AddNorm", "GatedUnit"]
    assert own == ["RaggedAdvance", *layer, *layer, "RaggedHalt", "ChooseToken"]
    fixed = {node.op_type for node in nodes for each in node.attribute if each.name == "fixed" and each.i == 1}
    assert fixed == {"RaggedAdvance", "RaggedAttention", "RaggedHalt", "ChooseToken"}
    dynamic = {"Loop", "If", "Scan", "NonZero", "Compress", "Shape", "ConstantOfShape"}
    assert not dynamic & {node.op_type for node in nodes}
    names = [output for node in nodes for output in node.output]
    assert len(names) == len(set(names)) and all(node.name for node in nodes)
    assert not model.metadata_props and b".py" not in ort_bundle.path("pass.onnx").read_bytes()
    assert not [node for node in graphs(ort_bundle)[1].node for each in node.attribute if each.name == "fixed"]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("stop", ["reach", "tail"])
def test_every_op_that_can_find_a_fault_is_given_the_counters(qk_norm: bool, stop: str) -> None:
    model, recurrence = dataclasses.replace(RANDOM_MODEL, qk_norm=qk_norm), RecurrenceSpec(2, stop=stop)
    tensors = random_tensors(model, recurrence, 3)
    native = native_model(model, recurrence, CacheSpec(slots=9), tensors)
    one_pass = pass_model(model, recurrence, CacheSpec(slots=9), native.weights.again())
    given = {op.name: op.inputs.index("counters") for op in OPS if "counters" in op.inputs}
    assert given.keys() == {"RaggedAttention", "RaggedHalt", "ChooseToken", "RaggedAdvance"}
    nodes = [node for node in one_pass.model.graph if node.op_type in given]
    assert len(nodes) == 3 + model.num_layers
    for node in nodes:
        value = node.inputs[given[node.op_type]]
        assert value is not None and value.name == "counters", node.name
    # the form with the Loop is the processor's, whose ops throw
    loop = [node for node in native.model.graph.all_nodes() if node.op_type in ("RaggedAttention", "ChooseToken")]
    assert len(loop) == 1 + model.num_layers
    assert not [node for node in loop for value in node.inputs if value is not None and value.name == "counters"]


def test_a_bundle_of_an_older_version_without_that_input_still_runs(ort_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(ort_bundle.folder, tmp_path / "older")
    older = open_bundle(tmp_path / "older")
    model = onnx.load(older.path("pass.onnx"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type in ("RaggedAttention", "ChooseToken"):
            node.input.remove("counters")
    older.path("pass.onnx").write_bytes(model.SerializeToString())
    prompts = random_prompts(older.manifest.model, 7)
    for run, other in zip(fixed(ort_bundle).write(prompts, NEW), fixed(older).write(prompts, NEW), strict=True):
        assert (list(run.tokens), list(run.depths)) == (list(other.tokens), list(other.depths))


def places(graph: onnx.GraphProto) -> dict[str, tuple[str, ...] | bytes]:
    """Where each initializer lies: file, offset and length, or its own bytes."""
    return {
        each.name: tuple(f"{entry.key}={entry.value}" for entry in each.external_data) or each.SerializeToString()
        for each in graph.initializer
    }


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_no_weight_is_stored_a_second_time(tmp_path: Path, tied: bool, quantize: str) -> None:
    model = dataclasses.replace(RANDOM_MODEL, tie_word_embeddings=tied)
    bundle = native_bundle(tmp_path, model, RecurrenceSpec(2, router_shared=False), quantize=quantize)
    with_loop, one_pass = places(graphs(bundle)[0]), places(pass_graph(bundle))
    assert {name: one_pass[name] for name in with_loop if name in one_pass} == {
        name: place for name, place in with_loop.items() if name in one_pass
    }
    # what the fixed form has of its own, or not, are numbers
    for name in with_loop.keys() ^ one_pass.keys():
        assert name.startswith("constants/") and isinstance((with_loop | one_pass)[name], bytes), name
    external = [place for place in one_pass.values() if isinstance(place, tuple)]
    assert external and all("location=model.onnx.data" in place for place in external)
    lengths = {place: int(dict(each.split("=") for each in place)["length"]) for place in external}
    assert sum(lengths.values()) <= bundle.path("model.onnx.data").stat().st_size
    assert bundle.path("pass.onnx").stat().st_size < 1 << 16


def test_it_is_listed_hashed_and_written_again_to_the_byte(
    ort_bundle: Bundle, random_checkpoint: Path, random_bundle: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(ort_bundle.folder).manifest
    assert manifest.files["pass.onnx"]["size"] == ort_bundle.path("pass.onnx").stat().st_size
    again = export(random_checkpoint, tmp_path / "bundle", target="ort", validate=False)
    assert again.read_bytes("pass.onnx") == ort_bundle.read_bytes("pass.onnx")
    assert "pass.onnx" not in open_bundle(random_bundle).manifest.files, "of target ort alone"


def test_it_can_be_written_alone(random_checkpoint: Path, ort_bundle: Bundle, tmp_path: Path) -> None:
    source = read_checkpoint(random_checkpoint)
    alone = pass_model(source.model, source.recurrence, ort_bundle.manifest.cache, Weights(source.tensors, None))
    save_graph(alone.model, tmp_path, alone.views)
    assert (tmp_path / "model.onnx.data").stat().st_size == ort_bundle.path("model.onnx.data").stat().st_size
    native = native_model(source.model, source.recurrence, CacheSpec(slots=9), source.tensors)
    one_pass = pass_model(source.model, source.recurrence, CacheSpec(slots=9), native.weights.again())
    with pytest.raises(AssertionError):  # its weights are nowhere yet
        save_beside(one_pass.model, tmp_path, one_pass.views)


def test_any_number_of_rows_through_one_graph(ort_bundle: Bundle) -> None:
    """Rows more than there is work for stay dead, and no tensor shows them."""
    spec = ort_bundle.manifest.model
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(str(ort_bundle.path("pass.onnx")), options, providers=["CPUExecutionProvider"])
    for rows in (1, 2, 7, 33):
        tables = {
            each.name: np.zeros(
                [
                    {"places": 2, "length": 8, "stops": 1, "cache_slots": 40, "logit_positions": 0}.get(d, d)
                    for d in each.shape
                ],
                {"tensor(int32)": np.int32, "tensor(int64)": np.int64}.get(each.type, np.float32),
            )
            for each in session.get_inputs()
            if each.name not in CARRIED
        }
        tables["order"][:] = [0, -1]
        tables["sequences"][0] = [1, 0, 8, 3, 0, 0, 0, 3]
        tables["tokens"][0, :3] = [5, 6, 7]
        tables["slots"][:], tables["stop_tokens"][:] = -1, -1
        tables["free_slots"][:], tables["counters"][0], tables["control"][:2] = range(40), 40, 99
        carried = {
            "rows": np.full((rows, 4), -1, np.int32),
            "latent": np.zeros((rows, spec.hidden_size), np.float32),
            "reach": np.zeros(rows, np.float32),
            "mix": np.zeros((rows, spec.hidden_size), np.float32),
        }
        for _ in range(40):
            made = session.run(None, {**tables, **carried})
            again = made.pop()
            carried = dict(zip(CARRIED, made, strict=True))
            dead = carried["rows"][:, 0] < 0
            assert (carried["rows"][dead] == -1).all() and not carried["latent"][dead].any()
            assert not carried["mix"][dead].any() and not carried["reach"][dead].any()
            if not again:
                break
        assert tables["sequences"][0, 0] == 2 and tables["counters"][0] == 40
        assert tables["depths"][0, :3].all() and dead.all()


def fixed(bundle: Bundle, apart: bool = False) -> PackedEngine:
    session = Replaying(bundle) if apart else PassSession(bundle, 1, "cpu")
    return PackedEngine(bundle, session=session)


def same_as_the_loop(bundle: Bundle, seed: int) -> None:
    """Bit for bit, together and in lockstep; and through the engine, whoever comes and goes."""
    prompts = random_prompts(bundle.manifest.model, seed)
    loop = PackedEngine(bundle)
    for lockstep in (False, True):
        wanted = loop.write(prompts, NEW, lockstep)
        for apart in (False, True):
            for run, other in zip(wanted, fixed(bundle, apart).write(prompts, NEW, lockstep), strict=True):
                assert list(run.tokens) == list(other.tokens) and list(run.depths) == list(other.depths)
                assert np.array_equal(run.logits, other.logits)
    coming_and_going(bundle, seed)


def coming_and_going(bundle: Bundle, seed: int) -> None:
    draw = random.Random(seed)
    vocabulary, steps = bundle.manifest.model.vocab_size, bundle.manifest.recurrence.max_steps
    requests: list[dict[str, Any]] = [
        {
            "prompt": draw.choices(range(vocabulary), k=draw.choice((1, 3, 9, 20))),
            "max_new_tokens": draw.randint(1, 12),
            "temperature": draw.choice((0.0, 1.0)),
            "seed": i,
            "stop_token_ids": [draw.randrange(vocabulary)],
        }
        for i in range(8)
    ]
    with Engine(NativeSession(bundle, 1), None, max_batch=1) as engine:
        alone = [engine.submit(**each).result() for each in requests]
    engine = Engine(Replaying(bundle), None, max_batch=3, cache_slots=33 * steps)
    handles = []
    for request in requests:
        handles.append(engine.submit(**request))
        for _ in range(draw.choice((0, 1, 4))):
            engine.step()
        if draw.random() < 0.2:
            draw.choice(handles).cancel()
    drain(engine)
    for handle, wanted in zip(handles, alone, strict=True):
        out = handle.result()
        assert out == wanted or (out.stop == ["cancelled"] and out.ids[0] == wanted.ids[0][: len(out.ids[0])])
    check_empty(engine)


@SOME
@given(backbones(), recurrences(), st.integers(0, 1000))
def test_any_backbone_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int
) -> None:
    check(tmp_path_factory.mktemp("pass"), spec, recurrence, seed, 0.0, fixed)


@SOME
@given(backbones(), st.data(), st.integers(0, 1000))
def test_any_recurrence_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, data: st.DataObject, seed: int
) -> None:
    check(tmp_path_factory.mktemp("pass"), spec, data.draw(thinking(spec.num_layers)), seed, 4e-3, fixed)


@SOME
@given(backbones(), st.data(), st.integers(0, 1000), st.sampled_from(("none", "int8", "int4")))
def test_any_model_is_that_of_the_loop_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, data: st.DataObject, seed: int, quantize: str
) -> None:
    folder = tmp_path_factory.mktemp("pass")
    recurrence = data.draw(thinking(spec.num_layers))
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        try:
            bundle = export(checkpoint, folder / "bundle", target="ort", validate=False, quantize=quantize)
        except InputError as refused:
            assert "over the whole vocabulary" in str(refused)
            return
    same_as_the_loop(bundle, seed)
