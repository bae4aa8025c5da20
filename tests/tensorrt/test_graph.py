"""The graph that TensorRT's parser is given: standard operators and plugins, tables in an order that the graph states, and
the numbers of the pass it was made of."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from latentcot_export.checkpoint import random_tensors
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.export.native_layers import Weights
from latentcot_export.export.pass_graph import pass_model
from latentcot_export.export.tensorrt_graph import OPSET, PLUGINS, tensorrt_model
from latentcot_export.inspection import summary
from latentcot_export.runtime.library import library_path
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate.weights import bundle_tensors
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE
from tests.specs import backbones, thinking
from tests.tensorrt.harness import TYPES, Harness
from tests.tensorrt.stand_in import OPS, plugin_op

DTYPES = ("float32", "float16", "bfloat16")
WRITTEN = ("sequences", "slots", "free_slots", "counters", "depths", "tokens", "logits", "weights")
CARRIED = ("rows", "latent", "reach", "mix")
PLACES, LENGTH, SLOTS = 3, 24, 200


def pass_of(model: ModelSpec, recurrence: RecurrenceSpec, seed: int = 3, dtype: str = "float32") -> ir.Model:
    cache = CacheSpec(dtype, LENGTH, PLACES, SLOTS)
    return pass_model(model, recurrence, cache, Weights(random_tensors(model, recurrence, seed), None)).model


def tensorrt_of(model: ModelSpec, recurrence: RecurrenceSpec, seed: int = 3, dtype: str = "float32") -> onnx.ModelProto:
    return ir.to_proto(tensorrt_model(pass_of(model, recurrence, seed, dtype), dtype, PLACES))


OWN_OUTPUTS = {"RaggedAdvance": 3, "RaggedHalt": 7, "ChooseToken": 1, "RaggedAttention": 1}


def check(proto: onnx.ModelProto, layers: int) -> None:
    """Everything that holds whatever the model is."""
    onnx.checker.check_model(proto, full_check=True)
    assert {each.domain: each.version for each in proto.opset_import} == {"": OPSET, "latentcot": 1}
    graph, plugins = proto.graph, collections.Counter[str]()
    inputs = [each.name for each in graph.input]
    newest = {name: name for name in inputs if name in WRITTEN or name.startswith("cache_")}
    table_of = {name: name for name in newest}  # a version of a table -> the table
    for node in graph.node:
        assert all(node.input)
        read = {table_of[name]: name for name in node.input if name in table_of}
        # whoever reads a table reads it as it is by then
        assert all(newest[table] == name for table, name in read.items()), node.name
        if not node.domain:
            continue
        assert node.domain == "latentcot" and node.op_type in PLUGINS
        plugins[node.op_type] += 1
        fields = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert (fields["plugin_namespace"], fields["plugin_version"], fields["fixed"]) == (b"latentcot", b"1", 1)
        assert bin(fields["inputs"]).count("1") == len(node.input)
        for output in node.output[OWN_OUTPUTS[node.op_type] :]:
            names = {f"{node.name}/{_called(table)}": table for table in read} | {
                f"{table}_out": table for table in read
            }
            table_of[output] = names[output]
            newest[names[output]] = output
    assert plugins == {"RaggedAdvance": 1, "RaggedAttention": layers, "RaggedHalt": 1, "ChooseToken": 1}
    outputs = [each.name for each in graph.output]
    assert outputs[:5] == [*(f"{name}_out" for name in CARRIED), "again"]
    assert sorted(outputs[5:]) == sorted(newest.values()) == sorted(f"{table}_out" for table in newest)
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}


def _called(table: str) -> str:
    """What an op calls a table."""
    return "cache" if table.startswith("cache_") else {"logits": "record"}.get(table, table)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_graph_is_standard_operators_and_plugins(dtype: str) -> None:
    check(tensorrt_of(RANDOM_MODEL, RANDOM_RECURRENCE, dtype=dtype), RANDOM_MODEL.num_layers)


@settings(max_examples=20)
@given(st.data(), st.sampled_from(DTYPES))
def test_every_model_has_such_a_graph(data: st.DataObject, dtype: str) -> None:
    model = data.draw(backbones())
    check(tensorrt_of(model, data.draw(thinking(model.num_layers)), dtype=dtype), model.num_layers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_are_narrow_and_decisions_are_not(dtype: str) -> None:
    proto = tensorrt_of(RANDOM_MODEL, RANDOM_RECURRENCE, dtype=dtype)
    number = {"float32": 1, "float16": 10, "bfloat16": 16}[dtype]
    types = {each.name: each.data_type for each in proto.graph.initializer}
    for name, kind in types.items():
        if name.startswith("model.") and name.endswith(("_proj.weight_t", "embed_tokens.weight")):
            assert kind == number, name
        elif kind not in (6, 7):
            assert kind == 1, name
    inputs = {each.name: each.type.tensor_type.elem_type for each in proto.graph.input}
    assert inputs["cache_0"] == number and inputs["latent"] == inputs["mix"] == inputs["logits"] == 1
    products = collections.Counter(node.op_type for node in proto.graph.node)
    assert products["MatMul" if dtype != "float32" else "Gemm"] >= 4 * RANDOM_MODEL.num_layers - 1


class Both:
    """A pass in its own form in ONNX Runtime, and in TensorRT's with the plugins on the CPU, side by side."""

    def __init__(self, model: ModelSpec, recurrence: RecurrenceSpec, seed: int, harness: Harness, rows: int) -> None:
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(library_path()))
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        raw = ir.to_proto(pass_of(model, recurrence, seed)).SerializeToString()
        self.native = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        ops = [plugin_op(name, harness) for name in OPS]
        self.theirs = ReferenceEvaluator(tensorrt_of(model, recurrence, seed), new_ops=ops)
        self.layers = model.num_layers
        self.states = [
            NativeState(model, recurrence, places=PLACES, length=LENGTH, slots=SLOTS, logit_positions=2)
            for _ in range(2)
        ]
        shapes = {
            "rows": (rows, 4),
            "latent": (rows, model.hidden_size),
            "reach": (rows,),
            "mix": (rows, model.hidden_size),
        }
        self.carried = [
            {
                name: np.full(shape, *((-1, np.int32) if name == "rows" else (0, np.float32)))
                for name, shape in shapes.items()
            }
            for _ in range(2)
        ]
        for state in self.states:
            state.arrays["slots"][:] = -1
            state.control(rows)
            state.add([5, 9, 13, 2, 11, 6], 12)
            state.add([7], 9)
            state.add([3, 1, 4, 1, 5, 9, 2, 6], 10)
        self.cache = [np.zeros_like(each) for each in self.states[1].arrays["cache"]]

    def step(self) -> None:
        """One pass of both, which must leave the same tables."""
        tables = [
            {name: array for name, array in state.arrays.items() if name != "max_passes"} for state in self.states
        ]
        names = [f"{name}_out" for name in CARRIED]
        wanted = self.native.run([*names, "again"], {**tables[0], **self.carried[0]})
        del tables[1]["cache"]
        caches = {f"cache_{i}": each for i, each in enumerate(self.cache)}
        found = self.theirs.run(None, {**tables[1], **caches, **self.carried[1]})[:5]
        assert bool(wanted[4]) == bool(found[4][0])
        for name, array in tables[1].items():
            if array.dtype == np.float32:
                np.testing.assert_allclose(array, tables[0][name], rtol=2e-4, atol=2e-4, err_msg=name)
            else:
                np.testing.assert_array_equal(array, tables[0][name], err_msg=name)
        np.testing.assert_allclose(self.cache, tables[0]["cache"], rtol=2e-4, atol=2e-4)
        np.testing.assert_array_equal(found[0], wanted[0])
        for mine, theirs in zip(found[1:4], wanted[1:4], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4)
        for carried, made in zip(self.carried, (wanted, found), strict=True):
            carried |= dict(zip(CARRIED, made[:4], strict=True))


@pytest.mark.parametrize("rows", [4, 16])
def test_passes_are_those_of_onnx_runtime(harness_on_cpu: Harness, rows: int) -> None:
    both = Both(RANDOM_MODEL, RANDOM_RECURRENCE, 3, harness_on_cpu, rows)
    for _ in range(14):
        both.step()
    assert (both.states[0].arrays["depths"] > 1).any()


@settings(max_examples=12)
@given(st.data())
def test_passes_of_any_model_are_those_of_onnx_runtime(harness_on_cpu: Harness, data: st.DataObject) -> None:
    model = data.draw(backbones())
    recurrence = data.draw(thinking(model.num_layers))
    both = Both(model, recurrence, data.draw(st.integers(0, 99)), harness_on_cpu, 16)
    both.step()
    both.step()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bundle_holds_the_weights_it_was_made_of(random_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    bundle = export(random_checkpoint, tmp_path / dtype, target="tensorrt", dtype=dtype, validate=False)
    manifest = bundle.manifest
    assert (manifest.target, manifest.opset, manifest.cache.dtype) == ("tensorrt", OPSET, dtype)
    assert manifest.cache.slots is not None and set(manifest.files) >= {"model.onnx", "model.onnx.data"}
    held = bundle_tensors(bundle)
    wanted = random_tensors(RANDOM_MODEL, RANDOM_RECURRENCE, 3)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(held[name].float(), tensor.to(held[name].dtype).float(), err_msg=name)
    assert "tensorrt_build" in (tmp_path / dtype / "README.md").read_text()
    said = summary(bundle)
    assert f"next: python -m latentcot_export.runtime.tensorrt_build {bundle.folder}, beside the GPU" in said
    assert f"latentcot validate {bundle.folder} --device cuda" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validate": True}, "is validated where its engine is built: export with --no-validate"),
        ({"quantize": "int8"}, "--quantize int8 is for --target ort"),
        ({"dtype": "float64"}, "--dtype is float64, it must be one of float32, float16, bfloat16"),
        ({"cache_dtype": "int8"}, "--cache-dtype is int8, it must be one of float32, float16, bfloat16"),
        ({"opset": 24}, "--opset is 24, with --target tensorrt it must be 20"),
    ],
)
def test_what_the_target_does_not_take_is_refused(
    random_checkpoint: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        export(random_checkpoint, tmp_path / "out", target="tensorrt", **{"validate": False, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_harness_knows_the_types_of_the_graph() -> None:
    assert set(TYPES.values()) == {0, 1, 3, 7, 8}
