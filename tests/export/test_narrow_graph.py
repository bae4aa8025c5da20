"""`--target ort --dtype float16|bfloat16`: products of a GPU's pass are narrow, decisions are not; the processor widens."""

from __future__ import annotations

import collections
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.checkpoint import random_tensors
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.runtime.library import library_path
from latentcot_export.runtime.pass_session import PassSession
from latentcot_export.spec import RecurrenceSpec
from latentcot_export.validate import TOLERANCES, validate
from latentcot_export.validate.compare import distances
from latentcot_export.validate.narrow import is_narrow
from latentcot_export.validate.packed import PackedEngine
from latentcot_export.validate.weights import bundle_tensors
from latentcot_export.validate.widened import widened
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE
from tests.checkpoints import in_memory
from tests.export.native import graphs, native_bundle, pass_graph
from tests.export.test_native_property import EXPORTS
from tests.specs import backbones, thinking
from tests.validate.tampering import edit_graph, rewritten
from tests.validate.test_validate import failed

KINDS = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
NARROW = pytest.mark.parametrize("dtype", KINDS)
PRODUCTS = ("MatMul", "Gemm")


@pytest.fixture(scope="module")
def bundles(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("narrow")
    return {
        dtype: export(random_checkpoint, folder / dtype, target="ort", dtype=dtype, validate=False) for dtype in KINDS
    }


def replayed(bundle: Bundle) -> PackedEngine:
    """What a GPU would run, with the roundings it makes."""
    session = PassSession(bundle, 1, "cpu", content=widened(bundle))
    return PackedEngine(bundle, session=session)


@NARROW
def test_every_gate_passes_without_a_gpu(bundles: dict[str, Bundle], random_checkpoint: Path, dtype: str) -> None:
    for report in (validate(bundles[dtype]), validate(bundles[dtype], against=random_checkpoint, level="full")):
        assert not failed(report)
        gates = {gate.name: gate for gate in report.gates}
        assert gates["pass_graph"].compared > 0 and gates["pass_graph"].limit == TOLERANCES[f"{dtype} pass"].logits
        assert gates["logits"].limit == TOLERANCES[f"{dtype} cache"].logits  # the processor's own products are float32
        assert gates["batch_neighbours"].worst == 0


@NARROW
def test_a_fault_in_the_pass_of_a_gpu_is_found_on_the_processor(
    bundles: dict[str, Bundle], tmp_path: Path, dtype: str
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        nodes = [node for node in model.graph.node if node.op_type == "RaggedAttention"]
        nodes[1].input[2] = nodes[1].input[1]  # sines become cosines, in one layer

    changed = rewritten(bundles[dtype].folder, tmp_path / "x", lambda folder: edit_graph(folder, spoil, "pass.onnx"))
    assert list(failed(validate(changed))) == ["pass_graph"]


def test_a_pass_that_is_no_graph_is_a_sentence(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        (folder / "pass.onnx").write_bytes((folder / "pass.onnx").read_bytes()[:5000])

    changed = rewritten(bundles["bfloat16"].folder, tmp_path / "x", cut)
    with pytest.raises(
        InputError, match=r"file pass.onnx of bundle .* is not a graph that can be read .*; export it again"
    ):
        validate(changed)


@pytest.mark.parametrize(
    ("dtype", "facts", "said"),
    [
        ("bfloat16", {"dtype": "float16"}, "is bfloat16 where its manifest's dtype makes it float16"),
        ("float16", {"dtype": "float32"}, "is float16 where its manifest's dtype makes it float32"),
        ("bfloat16", {"cache": "float16"}, r"its cache is tensor\(bfloat16\)"),
        ("float16", {"cache": "float32"}, r"its cache is tensor\(float16\)"),
    ],
)
def test_a_manifest_of_another_dtype_than_its_graph(
    bundles: dict[str, Bundle], tmp_path: Path, dtype: str, facts: dict[str, str], said: str
) -> None:
    lie: dict[str, object] = dict(facts)
    if "cache" in facts:
        lie["cache"] = dataclasses.replace(bundles[dtype].manifest.cache, dtype=facts["cache"])
    with pytest.raises(InputError, match=said):
        validate(rewritten(bundles[dtype].folder, tmp_path / "x", **lie))


@NARROW
def test_matrices_are_stored_narrow_and_once(bundles: dict[str, Bundle], dtype: str) -> None:
    bundle = bundles[dtype]
    with_loop, one_pass = graphs(bundle)[0], pass_graph(bundle)
    for graph in (with_loop, one_pass):
        kinds = {each.name: each.data_type for each in graph.initializer if not each.name.startswith("constants/")}
        for each in graph.initializer:
            wanted = KINDS[dtype] if is_narrow(each.name, len(each.dims)) else onnx.TensorProto.FLOAT
            assert each.name.startswith("constants/") or kinds[each.name] == wanted, each.name
        assert "model.embed_tokens.weight" in kinds and kinds["router.weight_t"] == onnx.TensorProto.FLOAT
    external = [
        {each.name: sorted((e.key, e.value) for e in each.external_data) for each in graph.initializer}
        for graph in (with_loop, one_pass)
    ]
    assert all(external[0][name] == place for name, place in external[1].items() if name in external[0])
    assert bundle.manifest.cache.dtype == dtype
    held = bundle_tensors(bundle)
    for name, tensor in random_tensors(RANDOM_MODEL, RANDOM_RECURRENCE, 3).items():
        kept = getattr(torch, dtype) if is_narrow(name, tensor.dim()) else torch.float32
        assert held[name].dtype == kept and torch.equal(held[name], tensor.to(kept)), name


@NARROW
@pytest.mark.parametrize("tied", [False, True])
def test_between_two_products_of_a_layer_nothing_is_cast(tmp_path: Path, tied: bool, dtype: str) -> None:
    model = dataclasses.replace(RANDOM_MODEL, tie_word_embeddings=tied)
    nodes = list(pass_graph(native_bundle(tmp_path, model, RecurrenceSpec(2), dtype=dtype)).node)
    # what rows read; the first norm; the last sum before the norm that routers read; what the head reads and gives
    counts = collections.Counter(node.op_type for node in nodes if "rope" not in node.name)
    assert counts["Cast"] == 5 and not counts["Transpose"] and not counts["Add"]
    made = {output: node for node in nodes for output in node.output}
    readers = collections.Counter(name for node in nodes for name in node.input)
    outputs = {"rows_out", "latent_out", "reach_out", "mix_out", "again"}
    assert all(readers[node.output[0]] or node.output[0] in outputs for node in nodes if node.op_type == "Cast")
    for node in nodes:
        if node.op_type in PRODUCTS and node.name.startswith("model.layers.1"):
            assert made[node.input[0]].op_type in ("AddNorm", "RaggedAttention", "GatedUnit"), node.name
    heads = [node for node in nodes if node.name.startswith("lm_head")]
    assert [node.op_type for node in heads if node.op_type in PRODUCTS] == ["Gemm" if tied else "MatMul"]


def test_the_processor_reads_rows_of_the_table_and_widens_them(bundles: dict[str, Bundle]) -> None:
    outer, body = graphs(bundles["bfloat16"])
    gather = next(node for node in body.node if node.op_type == "Gather" and "embed_tokens" in node.name)
    assert gather.input[0] == "model.embed_tokens.weight"
    widened_once = [node.input[0] for node in outer.node if node.op_type == "Cast"]
    assert len(widened_once) == len(set(widened_once)) > 4
    assert not [node for node in body.node if node.op_type == "Cast" and node.input[0].endswith(("weight_t", "weight"))]


def test_what_onnx_runtime_loads_holds_no_cast_of_a_matrix(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """It folds them, or every pass would widen every matrix."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(bundles["bfloat16"].path("model.onnx")), options, providers=["CPUExecutionProvider"])
    outer = onnx.load(tmp_path / "seen.onnx", load_external_data=False).graph
    assert "Cast" not in {node.op_type for node in outer.node}


@EXPORTS
@given(st.data(), st.sampled_from(sorted(KINDS)))
def test_every_model_has_a_narrow_pass(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str
) -> None:
    """At depths that are forced, its logits are near those of float32 products with the same weights.

    Near for most tokens: where the largest logits are fed back, a near-tie makes another thought of one token, and of
    what reads it. A product that is left out, or an operand of the wrong place, moves all of them by about as much as
    they are.
    """
    model = data.draw(backbones())
    recurrence = data.draw(thinking(model.num_layers))
    folder = tmp_path_factory.mktemp("narrow")
    with in_memory(folder / "checkpoint", model, recurrence, data.draw(st.integers(0, 99))) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", target="ort", validate=False, dtype=dtype)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    tokens = [random.integers(0, model.vocab_size, 24) for _ in range(2)]
    depths = [random.integers(1, recurrence.max_steps + 1, 24) for _ in range(2)]
    wanted, found = (engine.read(tokens, depths) for engine in (PackedEngine(bundle), replayed(bundle)))
    far = np.concatenate(
        [distances(a.logits, b.logits.astype(np.float64)).logits for a, b in zip(found, wanted, strict=True)]
    )
    assert np.median(far) < (0.02 if dtype == "float16" else 0.12), far


@NARROW
def test_a_bundle_of_it_says_what_it_is(
    bundles: dict[str, Bundle], random_checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    bundle = open_bundle(bundles[dtype].folder)
    assert (bundle.manifest.dtype, bundle.manifest.quantize, bundle.manifest.target) == (dtype, "none", "ort")
    assert dtype in (bundle.folder / "README.md").read_text()
    wide = export(random_checkpoint, tmp_path / "wide", target="ort", validate=False)
    size, whole = (each.path("model.onnx.data").stat().st_size for each in (bundle, wide))
    assert 0.45 * whole < size < 0.56 * whole  # norms and routers are float32, the smallest lie in the graph


@NARROW
@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_weights_beside_narrow_rows(tmp_path: Path, tied: bool, quantize: str, dtype: str) -> None:
    """Scales are narrow, codes are stored once; the pass is right on a processor, and a fault in it is found."""
    model = dataclasses.replace(RANDOM_MODEL, tie_word_embeddings=tied)
    bundle = native_bundle(tmp_path, model, RANDOM_RECURRENCE, dtype=dtype, quantize=quantize)
    report = validate(bundle, against=tmp_path / "checkpoint", tokens=120)
    assert not failed(report) and {"weights", "pass_graph"} < {gate.name for gate in report.gates}
    assert bundle.manifest.cache.dtype == dtype
    one_pass = pass_graph(bundle)
    kinds = {each.name: each.data_type for each in one_pass.initializer}
    assert {kind for name, kind in kinds.items() if name.endswith("_scale")} == {KINDS[dtype]}
    assert {kind for name, kind in kinds.items() if name.endswith(("_q", "_zero"))} == {onnx.TensorProto.UINT8}
    for node in one_pass.node:
        if node.op_type == "MatMulNBits" and node.name.startswith("model.layers.1"):
            assert node.input[0].split("/")[-1] in ("mixed", "normed", "gated"), "nothing is cast between two products"
    places = [str(each.external_data) for each in one_pass.initializer if each.external_data]
    assert len(places) - len(set(places)) == tied, "a tied head is the table's bytes"

    def spoil(graph: onnx.ModelProto) -> None:
        nodes = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
        nodes[1].input[2] = nodes[5].input[2]  # the scales of another layer

    changed = rewritten(bundle.folder, tmp_path / "x", lambda folder: edit_graph(folder, spoil, "pass.onnx"))
    assert list(failed(validate(changed, tokens=60))) == ["pass_graph"]


def test_a_weight_that_float16_cannot_hold_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    shutil.copytree(random_checkpoint, checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = -70000.0
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"gate_up_proj.* has a number of size 70000, which float16 cannot hold"):
        export(checkpoint, tmp_path / "x", target="ort", dtype="float16")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = -3e7  # a step of a block's 255
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"gate_up_proj.* has a number of size 3e\+07, a step .* float16 cannot hold"):
        export(checkpoint, tmp_path / "x", target="ort", dtype="float16", quantize="int8")
    assert not (tmp_path / "x").exists()
    for quantize in ("none", "int8"):
        export(checkpoint, tmp_path / quantize, target="ort", dtype="bfloat16", quantize=quantize, validate=False)


@pytest.mark.parametrize("change", ["no dtype", "no such dtype", "a product as an output"])
def test_a_pass_that_cannot_be_widened_is_refused(bundles: dict[str, Bundle], tmp_path: Path, change: str) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        cast = next(node for node in model.graph.node if node.op_type == "Cast")
        if change == "no dtype":
            del cast.attribute[:]
        elif change == "no such dtype":
            cast.attribute[0].i = 999
        else:
            product = next(node for node in model.graph.node if node.op_type in PRODUCTS)
            model.graph.output.append(onnx.ValueInfoProto(name=product.output[0]))

    spoiled = rewritten(bundles["float16"].folder, tmp_path / "x", lambda each: edit_graph(each, spoil, "pass.onnx"))
    with pytest.raises(InputError, match=r"file pass.onnx of bundle .* is not a graph that can be read .*; export it"):
        validate(spoiled, tokens=60)


def test_the_cache_is_of_any_dtype_beside_any_product(random_checkpoint: Path, tmp_path: Path) -> None:
    for dtype, cache in (("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")):
        made = export(random_checkpoint, tmp_path / f"{dtype}-{cache}", target="ort", dtype=dtype, cache_dtype=cache)
        assert (made.manifest.dtype, made.manifest.cache.dtype) == (dtype, cache)
