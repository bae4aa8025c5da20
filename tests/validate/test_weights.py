"""The weights that a bundle really holds come back by checkpoint name, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from latentcot_export.bundle import Bundle, BundleWriter, open_bundle
from latentcot_export.checkpoint import random_tensors, read_checkpoint, tensor_shapes
from latentcot_export.errors import InputError
from latentcot_export.spec import CacheSpec, ModelSpec, RecurrenceSpec
from latentcot_export.validate import bundle_tensors
from latentcot_export.validate.weights import ALIASES
from tests.bundle.sample import manifest
from tests.validate.tampering import edit_graph, initializer, rewritten

MODEL = ModelSpec(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=32,
    mlp_bias=True,
)
PER_STEP = RecurrenceSpec(max_latents=2, router_type="mlp", router_hidden_size=5, router_shared=False)


def hand_made(
    out: Path,
    tensors: dict[str, torch.Tensor],
    recurrence: RecurrenceSpec,
    dtype: str = "float32",
    aliases: dict[str, str] | None = None,
) -> Bundle:
    """A bundle whose graph has initializers only: matrices of linear layers transposed, as an exporter stores them."""
    values = []
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dim() == 2 and "embed" not in name:
            name, tensor = f"{name}_t", tensor.t().contiguous()
        value = ir.Value(name=name, const_value=ir.tensor(tensor.numpy(), name=name))
        value.shape, value.dtype = ir.Shape(tensor.shape), ir.DataType.from_numpy(tensor.numpy().dtype)
        values.append(value)
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 24}, name="weights")
    model = ir.Model(graph, ir_version=11)
    model.metadata_props[ALIASES] = json.dumps(aliases or {})
    cache = CacheSpec(dtype=dtype, max_seq_len=32)
    with BundleWriter(out) as writer:
        ir.save(model, writer.folder / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=256)
        (writer.folder / "config.json").write_bytes(b"{}\n")
        return writer.commit(manifest(model=MODEL, recurrence=recurrence, dtype=dtype, cache=cache))


def test_every_tensor_of_an_export_equals_the_checkpoint(random_bundle: Path, random_checkpoint: Path) -> None:
    bundle, checkpoint = open_bundle(random_bundle), read_checkpoint(random_checkpoint)
    own = bundle_tensors(bundle)
    assert list(own) == list(tensor_shapes(checkpoint.model, checkpoint.recurrence))
    for name, tensor in checkpoint.tensors.items():
        assert own[name].dtype == torch.float32 and torch.equal(own[name], tensor), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transposed_untied_and_per_step_tensors(tmp_path: Path, dtype: str) -> None:
    tensors = {
        name: tensor.float() if name.startswith("router.") else tensor
        for name, tensor in random_tensors(MODEL, PER_STEP, 1, dtype).items()
    }
    own = bundle_tensors(hand_made(tmp_path / "x", tensors, PER_STEP, dtype))
    assert list(own) == list(tensors)
    assert all(torch.equal(own[name], tensor) and own[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert "lm_head.weight" in own and "router.1.in.weight" in own


@pytest.mark.parametrize(("stored", "said"), [("float32", "float16"), ("float16", "float32")])
def test_weights_of_another_dtype_than_the_manifest_says(tmp_path: Path, stored: str, said: str) -> None:
    tensors = random_tensors(MODEL, PER_STEP, 1, stored)
    name = "model.embed_tokens.weight"
    with pytest.raises(
        InputError, match=rf"weight {name} in .* is {stored} where its manifest's dtype makes it {said}"
    ):
        bundle_tensors(hand_made(tmp_path / "x", tensors, PER_STEP, said))


def test_equal_tensors_that_are_stored_once(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL, PER_STEP, 1)
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    tensors[second] = tensors[first]
    tensors["router.1.out.bias"] = tensors["router.0.out.bias"]
    aliases = {f"{second}_t": f"{first}_t", "router.1.out.bias": "router.0.out.bias"}
    kept = {name: tensor for name, tensor in tensors.items() if name not in (second, "router.1.out.bias")}
    own = bundle_tensors(hand_made(tmp_path / "x", kept, PER_STEP, aliases=aliases))
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL, PER_STEP, 1)
    del tensors["model.norm.weight"]
    with pytest.raises(InputError, match=r"holds no weight model\.norm\.weight"):
        bundle_tensors(hand_made(tmp_path / "x", tensors, PER_STEP))


def _elsewhere(model: onnx.ModelProto) -> None:
    initializer(model, "model.embed_tokens.weight").external_data[0].value = "../outside"


def _beyond_the_end(model: onnx.ModelProto) -> None:
    for each in initializer(model, "model.embed_tokens.weight").external_data:
        if each.key == "offset":
            each.value = str(1 << 40)


def _negative(model: onnx.ModelProto) -> None:
    for each in initializer(model, "model.embed_tokens.weight").external_data:
        if each.key == "offset":
            each.value = "-4"


def _misshapen(model: onnx.ModelProto) -> None:
    initializer(model, "model.embed_tokens.weight").dims[0] = 95


def _transposed(model: onnx.ModelProto) -> None:
    dims = initializer(model, "model.layers.0.mlp.up_proj.weight_t").dims
    dims[0], dims[1] = dims[1], dims[0]


def _integers(model: onnx.ModelProto) -> None:
    initializer(model, "model.norm.weight").data_type = onnx.TensorProto.INT32


def _cut(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "model.norm.weight")
    tensor.raw_data = tensor.raw_data[:-4]


def _renamed(model: onnx.ModelProto) -> None:
    initializer(model, "router.bias").name = "router.prejudice"


def _no_aliases(model: onnx.ModelProto) -> None:
    next(each for each in model.metadata_props if each.key == ALIASES).value = "[1, 2]"


@pytest.mark.parametrize(
    "edit",
    [
        _elsewhere,
        _beyond_the_end,
        _negative,
        _misshapen,
        _transposed,
        _integers,
        _cut,
        _renamed,
        _no_aliases,
    ],
)
def test_a_graph_whose_weights_are_not_what_they_should_be_is_refused(
    random_bundle: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], None]
) -> None:
    bundle = open_bundle(rewritten(random_bundle, tmp_path / "x", lambda folder: edit_graph(folder, edit)))
    with pytest.raises(InputError) as error:
        bundle_tensors(bundle)
    assert "model.onnx" in str(error.value) and "export it again" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a graph at all", b"\xff" * 4096])
def test_a_graph_that_is_none_is_refused(random_bundle: Path, tmp_path: Path, content: bytes) -> None:
    bundle = open_bundle(
        rewritten(random_bundle, tmp_path / "x", lambda folder: (folder / "model.onnx").write_bytes(content))
    )
    with pytest.raises(InputError):
        bundle_tensors(bundle)


def test_weights_that_are_gone_are_refused(random_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(
        rewritten(random_bundle, tmp_path / "x", lambda folder: (folder / "model.onnx.data").write_bytes(b""))
    )
    with pytest.raises(InputError, match=r"model\.onnx\.data"):
        bundle_tensors(bundle)
