"""The graph of `--target ort`: its inputs, outputs, ops and names are the documented ones, its weights the checkpoint's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from latentcot_export.bundle import open_bundle
from latentcot_export.checkpoint import read_checkpoint, tensor_shapes
from latentcot_export.errors import InputError
from latentcot_export.export import export
from latentcot_export.export.native_layers import Weights
from latentcot_export.export.native_pass import Pass
from latentcot_export.export.native_sheet import Sheet
from latentcot_export.model.rope import rope_angles, rope_frequencies
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate import bundle_tensors
from tests.bundles import RANDOM_MODEL, RANDOM_RECURRENCE
from tests.export.native import bits_depend_on_batch, graphs, native_bundle, product, session
from tests.specs import ROPES

INPUTS = {
    "max_passes": ("INT64", []),
    "control": ("INT32", [4]),
    "order": ("INT32", ["places"]),
    "sequences": ("INT32", ["places", 8]),
    "sampling": ("FLOAT", ["places", 2]),
    "tokens": ("INT32", ["places", "length"]),
    "depths": ("INT32", ["places", "length"]),
    "forced_depth": ("INT32", ["places", "length"]),
    "uniform": ("FLOAT", ["places", "length"]),
    "stop_tokens": ("INT32", ["places", "stops"]),
    "slots": ("INT32", ["places", 5, "length"]),
    "free_slots": ("INT32", ["cache_slots"]),
    "counters": ("INT64", [8]),
    "cache": ("FLOAT", [2, 2, "cache_slots", 2, 16]),  # layers, keys and values, slots, kv heads, 12 of 16 lanes
    "logits": ("FLOAT", ["places", "logit_positions", 96]),
    "rows": ("INT32", ["rows", 4]),
    "fresh": ("INT32", ["fresh"]),
    "latent": ("FLOAT", ["going", 48]),
    "reach": ("FLOAT", ["going"]),
    "mix": ("FLOAT", ["going", 48]),
}
OUTPUTS = ["rows_out", "fresh_out", "latent_out", "reach_out", "mix_out"]


@pytest.fixture(scope="module")
def ort_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return export(random_checkpoint, tmp_path_factory.mktemp("ort") / "bundle", target="ort", validate=False)


def declared(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    kind = value.type.tensor_type
    return onnx.TensorProto.DataType.Name(kind.elem_type), [d.dim_param or d.dim_value for d in kind.shape.dim]


def test_inputs_and_outputs_are_the_documented_ones(ort_bundle: Any) -> None:
    outer, _ = graphs(ort_bundle)
    assert {each.name: declared(each) for each in outer.input} == INPUTS
    assert [each.name for each in outer.input] == list(INPUTS)
    assert [each.name for each in outer.output] == OUTPUTS
    half = dataclasses.replace(ort_bundle.manifest, cache=CacheSpec("float16", slots=9)).cache
    assert half.lanes(RANDOM_MODEL) == 16


def test_the_graph_is_what_it_says(ort_bundle: Any) -> None:
    """Three domains, one Loop, every op where it belongs, no metadata, readable names."""
    path = ort_bundle.path("model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {each.domain: each.version for each in model.opset_import} == {"": 24, "latentcot": 1, "com.microsoft": 1}
    assert not model.functions and not model.metadata_props and model.producer_name == "latentcot-export"
    outer, body = graphs(ort_bundle)
    assert [node.op_type for node in outer.node] == ["RaggedAdvance", "Transpose", "Loop"]
    own = [node for node in body.node if node.domain == "latentcot"]
    layer = ["RaggedAttention", "AddNorm", "GatedUnit"]  # the output product has a bias, which takes the place of x
    assert [node.op_type for node in own] == [*layer, *layer, "RaggedHalt", "ChooseToken", "RaggedAdvance"]
    assert [a.i for node in own for a in node.attribute if a.name == "layer"] == [0, 1]
    assert all(not node.metadata_props and not node.doc_string and node.name for node in body.node)
    assert any(node.name == "model.layers.1.self_attn.qkv_proj/Gemm" for node in body.node)
    names = [output for graph in (outer, body) for node in graph.node for output in node.output]
    assert len(names) == len(set(names))
    assert path.stat().st_size <= 1 << 16 and not body.initializer
    raw = path.read_bytes()
    assert b"site-packages" not in raw and b".py" not in raw


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_few_nodes_a_layer(tmp_path: Path, quantize: str) -> None:
    """Norm, qkv, attention, o, norm, gate and up, their unit, down; what is added is part of a product or of a norm."""
    model = dataclasses.replace(RANDOM_MODEL, attention_bias=False, num_layers=3)
    _, body = graphs(native_bundle(tmp_path, model, RANDOM_RECURRENCE, quantize=quantize))
    for index in range(3):
        assert len([node for node in body.node if node.name.startswith(f"model.layers.{index}.")]) == 8


def test_weights_come_back_to_the_bit_and_are_stored_once(ort_bundle: Any, random_checkpoint: Path) -> None:
    checkpoint, own = read_checkpoint(random_checkpoint), bundle_tensors(ort_bundle)
    assert list(own) == list(tensor_shapes(checkpoint.model, checkpoint.recurrence))
    assert all(torch.equal(own[name], tensor) for name, tensor in checkpoint.tensors.items())
    needed = sum(each.numel() * each.element_size() for each in own.values())
    assert ort_bundle.path("model.onnx.data").stat().st_size <= 1.03 * needed


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize(
    ("model", "recurrence"),
    [
        # per-step two-layer routers, no tied table, biases everywhere, a scaled embedding, widths that no block divides
        (
            ModelSpec(31, 24, 33, 2, 6, 3, 10, 1e-6, 64, attention_bias=True, mlp_bias=True),
            RecurrenceSpec(2, 0.3, "mlp", 7, False, 6.0),
        ),
        (ModelSpec(17, 16, 8, 1, 1, 1, 4, 1e-6, 64, tie_word_embeddings=True), RecurrenceSpec(0)),
        (ModelSpec(96, 64, 96, 1, 2, 2, 16, 1e-5, 64, ROPES[-1]), RecurrenceSpec(3, router_shared=False)),
    ],
)
def test_every_kind_of_model_can_be_written_and_read_back(
    tmp_path: Path, model: ModelSpec, recurrence: RecurrenceSpec, quantize: str
) -> None:
    bundle = native_bundle(tmp_path, model, recurrence, quantize=quantize)
    checkpoint, own = read_checkpoint(tmp_path / "checkpoint"), bundle_tensors(bundle)
    assert {name: each.shape for name, each in own.items()} == {n: t.shape for n, t in checkpoint.tensors.items()}
    for name, tensor in checkpoint.tensors.items():
        if quantize == "none" or tensor.dim() == 1 or name.startswith("router"):
            assert torch.equal(own[name], tensor), name
        else:
            assert (own[name] - tensor).norm() < {"int8": 0.008, "int4": 0.12}[quantize] * tensor.norm(), name
    halt = next(node for node in graphs(bundle)[1].node if node.op_type == "RaggedHalt")
    assert bool(halt.input[1]) == bool(recurrence.max_latents)
    scaled = any(node.name == "model.embed_tokens/scaled/Mul" for node in graphs(bundle)[1].node)
    assert scaled == (recurrence.embedding_scale != 1)


def test_export_is_repeatable(ort_bundle: Any, random_checkpoint: Path, tmp_path: Path) -> None:
    again = export(random_checkpoint, tmp_path / "bundle", target="ort", validate=False)
    for name in ("model.onnx", "model.onnx.data"):
        assert again.path(name).read_bytes() == ort_bundle.path(name).read_bytes(), name


def test_the_cache_is_what_was_asked_for(random_checkpoint: Path, tmp_path: Path) -> None:
    def cache(name: str, **options: Any) -> CacheSpec:
        bundle = export(random_checkpoint, tmp_path / name, target="ort", validate=False, **options)
        return open_bundle(bundle.folder).manifest.cache

    # 64 sequences of 512 at depth 1; one at full depth; as many as 1 GiB holds; what was asked for
    assert cache("a") == CacheSpec("float32", 512, 64, 64 * 512)
    assert cache("b", max_batch=2) == CacheSpec("float32", 512, 2, 5 * 512)
    slot_bytes = 2 * 2 * 2 * 16 * 4
    assert cache("c", max_seq_len=200000) == CacheSpec("float32", 200000, 64, (1 << 30) // slot_bytes)
    assert cache("d", cache_slots=77, cache_dtype="float16") == CacheSpec("float16", 512, 64, 77)
    outer, _ = graphs(open_bundle(tmp_path / "d"))
    assert declared(next(each for each in outer.input if each.name == "cache"))[0] == "FLOAT16"
    with pytest.raises(InputError, match=r"--cache-slots is 4 and one token of .* can take 5 steps"):
        cache("e", cache_slots=4)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [4, 10, 12, 64])
def test_rotation_is_that_of_the_model_and_of_the_row_alone(rope: Any, head_dim: int) -> None:
    """Sine and cosine of a row have the same bits in every batch; unpadded ones have not where 4 does not divide."""
    model = ModelSpec(17, 16, 8, 1, 1, 1, head_dim, 1e-6, 64, rope)
    x = np.random.default_rng(0).integers(0, 60, (70, 4)).astype(np.int32)
    frequencies, scale = rope_frequencies(model.rope, head_dim, 64)
    angles = rope_angles(torch.from_numpy(x[:, 1]), frequencies)
    for which, wanted in ((0, angles.cos() * scale), (1, angles.sin() * scale)):
        rows = ir.Value(name="x", shape=ir.Shape(["r", 4]), type=ir.TensorType(ir.DataType.INT32))
        sheet, weights = Sheet(), Weights({}, None)
        turned = Pass(model, RecurrenceSpec(), CacheSpec(slots=1), weights, sheet).rotation(sheet, rows)
        run = session(sheet, weights, turned[which])
        np.testing.assert_allclose(run.run(None, {"x": x})[0], wanted.numpy(), rtol=0, atol=2e-7)
        assert bits_depend_on_batch(run, x, [2, 3, 5, 8, 33, 64]) == []


@pytest.mark.parametrize(("wide", "out"), [(48, 1), (48, 96), (33, 24), (576, 960)])
def test_float32_products_of_a_row_do_not_depend_on_its_batch(wide: int, out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    run = product(torch.randn(out, wide, generator=generator), None, torch.randn(out, generator=generator))
    x = torch.randn(128, wide, generator=generator).numpy()
    assert bits_depend_on_batch(run, x, [*range(2, 34), 64, 100, 128]) == []
    assert run.run(None, {"x": x[:0]})[0].shape == (0, out)
