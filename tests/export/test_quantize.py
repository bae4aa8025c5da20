"""int8 and int4: codes as ONNX Runtime's kernels want them, rows independent of their batch, and a gate that can fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from latentcot_export.bundle import Bundle, open_bundle
from latentcot_export.checkpoint import read_checkpoint
from latentcot_export.errors import InputError
from latentcot_export.export.native_layers import Weights
from latentcot_export.export.native_pass import Pass
from latentcot_export.export.native_sheet import Sheet
from latentcot_export.export.quantize import block_size, quantize
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate import bundle_tensors
from latentcot_export.validate.against import rounded, unlike, weights_gate
from latentcot_export.validate.quantized import in_blocks, nearest, pack, plain_steps, unpack
from latentcot_export.validate.weights import bundle_weights
from tests.export.native import _rows, bits_depend_on_batch, graphs, native_bundle, product, session
from tests.validate.tampering import edit_graph, initializer, rewritten

MODEL = ModelSpec(96, 64, 96, 2, 4, 2, 16, 1e-5, 128, tie_word_embeddings=True)
RECURRENCE = RecurrenceSpec(2, 0.3)
# shapes of SmolLM2-135M: queries, keys and values together, output, gate, down; and widths that no block divides
SHAPES = [(960, 576), (576, 576), (1536, 576), (576, 1536), (101, 160), (17, 33), (24, 40), (64, 96), (7, 16)]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Weights of very different sizes, some rows one-sided, one a constant, one all zeros."""
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, columns, generator=random) * torch.rand(rows, 1, generator=random).exp() * 0.05
    made[1], made[2], made[3] = made[1].abs(), 0.0, 0.25
    return made


@pytest.fixture(scope="module", params=["int8", "int4"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return native_bundle(tmp_path_factory.mktemp(request.param), MODEL, RECURRENCE, quantize=request.param)


@pytest.mark.parametrize("bits", [8, 4])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    codes = torch.arange(3 * 6 * 9).remainder(2**bits).reshape(3, 6, 9)
    assert torch.equal(unpack(pack(codes, bits), bits)[..., :9], codes.to(torch.uint8))
    assert pack(torch.tensor([[1, 2, 3]]), 4).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("bits", [8, 4])
def test_block_sizes_are_those_whose_rows_are_independent(bits: int) -> None:
    assert [block_size(n, bits) for n in (576, 1536, 96, 33, 16)] == ([64, 64, 32, 32, 32] if bits == 8 else [32] * 5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantised_weights_are_within_half_a_step_of_the_original(shape: tuple[int, int], bits: int) -> None:
    wanted = matrix(*shape)
    made = quantize(wanted, bits)
    assert unlike(made, wanted) == (0, 0.0)
    relative = (made.dequantized() - wanted).norm() / wanted.norm()
    assert relative < {8: 0.006, 4: 0.09}[bits]
    assert torch.equal(made.dequantized()[2], torch.zeros(shape[1]))


def test_the_search_for_four_bits_is_worth_it() -> None:
    """Normal numbers gain a twentieth of the plain error; the plain steps are what the gate allows at most."""
    wanted = torch.randn(256, 576, generator=torch.Generator().manual_seed(0))
    cut = in_blocks(wanted, 32)
    scale, zero = plain_steps(cut, 4)
    plain = ((nearest(cut, scale, zero, 4) - zero) * scale - cut).norm()
    assert (quantize(wanted, 4).dequantized() - wanted).norm() < 0.96 * plain


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_multiplies_by_these_weights_and_a_row_does_not_depend_on_its_batch(
    shape: tuple[int, int], bits: int
) -> None:
    wanted, bias = matrix(*shape), torch.linspace(-1, 1, shape[0])
    run = product(wanted, bits, bias)
    random = np.random.default_rng(0)
    x = (random.standard_normal((256, shape[1])) * random.lognormal(0, 1, (256, 1))).astype(np.float32)
    exact = x.astype(np.float64) @ quantize(wanted, bits).dequantized().double().numpy().T
    y = run.run(None, {"x": x})[0] - bias.numpy()
    # activations are int8 inside: half a step of a block's largest of 127 is about 0.5 % root mean square
    assert np.sqrt(((y - exact) ** 2).mean() / (exact**2).mean()) < 8e-3
    assert bits_depend_on_batch(run, x, [*range(2, 34), 64, 100, 256]) == []
    assert run.run(None, {"x": x[:0]})[0].shape == (0, shape[0])


def test_four_bits_in_blocks_of_64_would_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for blocks of 32; should a runtime change that, larger blocks are faster."""
    monkeypatch.setattr("latentcot_export.export.quantize._BLOCKS", {4: (64,)})
    x = np.random.default_rng(0).standard_normal((64, 576)).astype(np.float32)
    if not bits_depend_on_batch(product(matrix(960, 576), 4), x, [2, 3, 16, 33]):
        pytest.skip("this processor's kernels keep rows independent in blocks of 64 too")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("hidden", [64, 48, 33])
def test_the_embedding_table_is_read_back_row_by_row(bits: int, hidden: int) -> None:
    import onnx_ir as ir

    table = matrix(31, hidden)
    model = dataclasses.replace(MODEL, vocab_size=31, hidden_size=hidden)
    sheet, weights = Sheet(), Weights({"model.embed_tokens.weight": table}, bits)
    tokens = ir.Value(name="x", shape=ir.Shape(["r"]), type=ir.TensorType(ir.DataType.INT32))
    written = Pass(model, RECURRENCE, CacheSpec(slots=1), weights, sheet)
    run = session(sheet, weights, written.vocabulary.embedded(sheet, tokens))
    wanted = quantize(table, bits).dequantized().numpy()
    assert np.array_equal(run.run(None, {"x": np.arange(31, dtype=np.int32)})[0], wanted)
    assert run.run(None, {"x": np.zeros(0, np.int32)})[0].shape == (0, hidden)


def test_a_bundle_holds_each_code_once_and_the_rest_in_float32(small: Bundle) -> None:
    outer, body = graphs(small)
    stored = {each.name: each for each in outer.initializer}

    def place(name: str) -> dict[str, str]:
        return {each.key: each.value for each in stored[name].external_data}

    assert place("lm_head.weight_q") == place("model.embed_tokens.weight_q") != {}
    assert list(stored["lm_head.weight_q"].dims)[:2] == [96, stored["model.embed_tokens.weight_scale"].dims[1]]
    products = [node for node in body.node if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * MODEL.num_layers + 1
    assert {a.i for node in products for a in node.attribute if a.name == "accuracy_level"} == {4}
    kinds = {each.name: each.data_type for each in outer.initializer}
    assert kinds["router.weight_t"] == kinds["model.norm.weight"] == onnx.TensorProto.FLOAT
    onnx.checker.check_model(str(small.path("model.onnx")), full_check=True)
    own = bundle_tensors(small)
    weights = sum(each.numel() for name, each in own.items() if each.dim() == 2 and "router" not in name)
    bits = 8 if small.manifest.quantize == "int8" else 4
    # codes, a float32 and a code for each block, and a little for the rest
    block = 32
    assert small.path("model.onnx.data").stat().st_size < weights * (bits / 8 + 5 / block) * 1.05 + 4096
    assert "**Activations are int8 inside these products**" in small.path("README.md").read_text()


def test_the_weights_gate_holds_a_quantised_bundle_against_its_checkpoint(small: Bundle) -> None:
    checkpoint = rounded(read_checkpoint(small.folder.parent / "checkpoint"), small.manifest)
    gate = weights_gate(bundle_weights(small), checkpoint)
    assert gate.passed and gate.compared == len(checkpoint) and gate.worst == 0
    name = "model.layers.1.self_attn.k_proj.weight"
    moved = {**checkpoint, name: checkpoint[name].clone()}
    step = float(bundle_weights(small)[name].scale[5, 0])  # type: ignore[union-attr]
    moved[name][5, 7] += step
    gate = weights_gate(bundle_weights(small), moved)
    assert not gate.passed and gate.mismatched == 1 and gate.worst > 0.5 * step
    assert gate.detail is not None and name in gate.detail and "in 1 of its blocks" in gate.detail


@pytest.mark.parametrize("bits", [8, 4])
def test_steps_that_are_too_wide_or_too_narrow_are_no_quantisation_of_the_matrix(bits: int) -> None:
    wanted = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    made = quantize(wanted, bits)
    for factor in (0.4, 2.0):
        scale = made.scale * factor
        cut = in_blocks(wanted, made.block)
        zero = made.codes_and_zeros()[1]
        codes = pack(nearest(cut, scale.unsqueeze(-1), zero, bits), bits)
        faults, _ = unlike(dataclasses.replace(made, scale=scale, codes=codes), wanted)
        assert faults == made.scale.numel()
    flipped = made.codes.clone()
    flipped[3, 0, 0] ^= 1
    assert unlike(dataclasses.replace(made, codes=flipped), wanted)[0] == 1


def _no_scale(model: onnx.ModelProto) -> None:
    initializer(model, "model.layers.0.mlp.down_proj.weight_scale").name = "elsewhere"


def _float_codes(model: onnx.ModelProto) -> None:
    initializer(model, "model.layers.0.mlp.down_proj.weight_q").data_type = onnx.TensorProto.FLOAT


def _other_blocks(model: onnx.ModelProto) -> None:
    dims = initializer(model, "model.layers.0.mlp.down_proj.weight_scale").dims
    dims[0], dims[1] = dims[0] * dims[1], 1


def _short(model: onnx.ModelProto) -> None:
    initializer(model, "model.layers.0.mlp.down_proj.weight_q").dims[0] = 63


def _negative_scales(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "model.layers.0.mlp.down_proj.weight_scale")
    negative = onnx.numpy_helper.from_array(-np.ones(tuple(tensor.dims), np.float32), tensor.name)
    tensor.CopyFrom(negative)


@pytest.mark.parametrize("edit", [_no_scale, _float_codes, _other_blocks, _short, _negative_scales])
def test_codes_that_are_not_what_they_should_be_are_refused(small: Bundle, tmp_path: Path, edit: object) -> None:
    copy = rewritten(small.folder, tmp_path / "x", lambda folder: edit_graph(folder, edit))  # type: ignore[arg-type]
    with pytest.raises(InputError) as error:
        bundle_tensors(open_bundle(copy))
    assert "mlp.down_proj" in str(error.value) and "export it again" in str(error.value)


def test_rows_of_the_helper_are_named() -> None:
    """The helper's graph has one input, or the tests above would feed it something else."""
    sheet, weights = Sheet(), Weights({"w.weight": matrix(8, 32)}, 8)
    run = session(sheet, weights, weights.product(sheet, _rows(32), "w"))
    assert [each.name for each in run.get_inputs()] == ["x"]
