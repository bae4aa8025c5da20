"""One exported graph of every kind of backbone through the gates of `validate`, and in half precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from latentcot_export.checkpoint import random_tensors
from latentcot_export.export import export
from latentcot_export.spec import ModelSpec, RecurrenceSpec, RopeSpec
from latentcot_export.validate import bundle_tensors, validate
from tests.checkpoints import in_memory

RULE = RecurrenceSpec(max_latents=3, halt_threshold=0.3)
PARALLEL = ModelSpec(
    *(64, 24, 40, 2, 3, 3, 8, 1e-5, 64),
    attention_bias=True,
    mlp_bias=True,
    norm="layer",
    block="parallel",
    mlp="plain",
    activation="gelu",
    rotary_dim=2,
)
HEAD_NORMS = ModelSpec(64, 24, 40, 2, 4, 2, 10, 1e-6, 64, RopeSpec(theta=1e6), qk_norm=True)
SANDWICH = ModelSpec(64, 24, 40, 2, 4, 4, 6, 1e-6, 64, block="sandwich", activation="gelu_tanh")
GATED_GELU = dataclasses.replace(HEAD_NORMS, activation="gelu", mlp_bias=True, rotary_dim=4, norm="layer")


def graph_of(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


@pytest.mark.parametrize(
    ("spec", "options", "skipped"),
    [
        (PARALLEL, {}, ["perplexity"]),
        (PARALLEL, {"opset": 20}, ["perplexity"]),
        (PARALLEL, {"dtype": "float16"}, ["perplexity"]),
        (HEAD_NORMS, {}, ["perplexity"]),
        # transformers has no such model
        (SANDWICH, {"opset": 20}, ["perplexity", "stock_depth_1"]),
    ],
    ids=["parallel", "parallel-20", "parallel-half", "head-norms", "sandwich-20"],
)
def test_every_gate_passes(tmp_path: Path, spec: ModelSpec, options: dict[str, object], skipped: list[str]) -> None:
    with in_memory(tmp_path / "checkpoint", spec, RULE, 3) as checkpoint:
        bundle = export(checkpoint, tmp_path / "bundle", validate=False, **options)  # type: ignore[arg-type]
        report = validate(bundle, against=checkpoint)
    assert report.passed, report.text()
    assert [gate.name for gate in report.gates if gate.skipped] == skipped
    assert report.max_depth > 1


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize(
    "spec", [PARALLEL, HEAD_NORMS, SANDWICH, GATED_GELU], ids=["parallel", "head-norms", "sandwich", "gated-gelu"]
)
def test_every_gate_passes_for_target_ort(tmp_path: Path, spec: ModelSpec, quantize: str) -> None:
    with in_memory(tmp_path / "checkpoint", spec, RULE, 3) as checkpoint:
        bundle = export(checkpoint, tmp_path / "bundle", target="ort", quantize=quantize, validate=False)
        reports = [validate(bundle, against=checkpoint), validate(bundle)]
        own = bundle_tensors(bundle)
    for report in reports:
        assert report.passed, report.text()
    wanted = random_tensors(spec, RULE, 3)
    assert {name: each.shape for name, each in own.items()} == {name: each.shape for name, each in wanted.items()}
    exact = [name for name, each in wanted.items() if quantize == "none" or each.dim() == 1 or "router" in name]
    assert all(torch.equal(own[name], wanted[name]) for name in exact)


def test_native_ops_of_the_backbone(tmp_path: Path) -> None:
    """One op for what one op can do: layer norm, gelu, and a block whose sums a product takes along where it can."""

    def ops(spec: ModelSpec) -> list[str]:
        with in_memory(tmp_path / "checkpoint", spec, RULE, 3) as checkpoint:
            bundle = export(checkpoint, tmp_path / "bundle", target="ort", validate=False, force=True)
        loop = next(node for node in graph_of(bundle.path("model.onnx")).node if node.op_type == "Loop")
        body = next(each.g for each in loop.attribute if each.name == "body")
        return [node.op_type for node in body.node if node.name.startswith("model.layers.1.")]

    norm, attend = "LayerNormalization", "RaggedAttention"
    # the sum before it belongs to this layer's first norm: Gemm's C holds a bias already
    assert ops(PARALLEL) == ["Add", norm, "Gemm", attend, norm, "Gemm", "Gemm", "Gelu", "Add", "Gemm"]
    assert ops(HEAD_NORMS) == [
        *("RMSNormalization", "MatMul", attend, "Gemm"),
        *("RMSNormalization", "MatMul", "GatedUnit", "Gemm"),
    ]
    assert ops(SANDWICH) == [
        *("AddNorm", "MatMul", attend, "MatMul", "RMSNormalization"),
        *("AddNorm", "MatMul", "Gelu", "MatMul", "Mul", "MatMul", "RMSNormalization"),
    ]


def test_ops_of_the_backbone(tmp_path: Path) -> None:
    """Gelu and LayerNormalization stay whole, so that a runtime's own kernels compute them."""
    with in_memory(tmp_path / "checkpoint", PARALLEL, RULE, 3) as checkpoint:
        bundle = export(checkpoint, tmp_path / "bundle", opset=20, validate=False)
    graph = graph_of(bundle.path("model.onnx"))
    body = next(node for node in graph.node if node.op_type == "Loop").attribute[0].g
    count = {op: sum(node.op_type == op for node in body.node) for op in ("Gelu", "LayerNormalization", "Erf")}
    assert count == {"Gelu": 2, "LayerNormalization": 5, "Erf": 0}
    stored = {each.name for each in graph.initializer}
    assert {"model.norm.bias", "model.layers.1.input_layernorm.bias", "model.layers.0.mlp.down_proj.bias"} <= stored
