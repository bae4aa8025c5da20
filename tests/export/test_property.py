"""Random checkpoints, exported for real: tokens and depths of the oracle, prefill == decode, neighbours, order.

Every example traces and loads a graph, which takes seconds, so few are drawn here; LATENTCOT_EXAMPLES draws more. The
same pass is run eagerly on many more shapes in tests/ops.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from latentcot_export.bundle import open_bundle
from latentcot_export.checkpoint import random_tensors, write_random_checkpoint
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.runtime.session import CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from tests.specs import decided, models, recurrences

NEW = 7
EXAMPLES = int(os.environ.get("LATENTCOT_EXAMPLES", "8"))


def generate(session: GraphSession, spec: ModelSpec, prompts: list[list[int]], rows: int) -> tuple[list, list]:
    """Greedy tokens (prompt + new) and depths of every sequence."""
    lengths = np.array([len(p) for p in prompts])
    tokens = np.full((len(prompts), int(lengths.max()) + NEW), -1)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    state = BatchState.new(spec, "float32", tokens, 1)
    inputs = CallInputs.greedy(*tokens.shape)
    session.feed(state, inputs, lengths, rows)
    session.run(state, inputs, lengths + NEW - 1)
    made, depths = state.arrays["tokens"], state.arrays["depths"]
    return (
        [made[row, : n + NEW].tolist() for row, n in enumerate(lengths)],
        [depths[row, : n + NEW - 1].tolist() for row, n in enumerate(lengths)],
    )


# no shrinking: a smaller example of a failed export would take minutes to find
@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
@given(models(), recurrences(), st.integers(0, 1000), st.sampled_from((24, 24, 20)))
def test_exported_graph_equals_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, opset: int
) -> None:
    folder = tmp_path_factory.mktemp("property")
    write_random_checkpoint(folder / "checkpoint", spec, recurrence, seed, "float32")
    bundle = export(folder / "checkpoint", folder / "bundle", opset=opset, validate=False)
    session = GraphSession(open_bundle(bundle.folder))
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, spec.vocab_size, n).tolist() for n in (1, 5, 14)]
    tokens, depths = generate(session, spec, prompts, rows=4)

    oracle = LatentCoT.from_tensors(spec, recurrence, random_tensors(spec, recurrence, seed), torch.float64)
    for prompt, made, depth in zip(prompts, tokens, depths, strict=True):
        truth = step_major(oracle, torch.tensor([made[:-1]]))
        assume(decided(truth, recurrence.halt_threshold))
        assert depth == truth.depths[0].tolist()
        assert made[len(prompt) :] == oracle.head(truth.mix)[0, len(prompt) - 1 :].argmax(-1).tolist()

    # one row at a time is decoding, many are prefill; alone there are no neighbours; reversed the order is another
    assert generate(session, spec, prompts, rows=1) == (tokens, depths)
    alone = [generate(session, spec, [prompt], rows=64) for prompt in prompts]
    assert [t[0] for t, _ in alone] == tokens and [d[0] for _, d in alone] == depths
    reversed_tokens, reversed_depths = generate(session, spec, prompts[::-1], rows=64)
    assert reversed_tokens[::-1] == tokens and reversed_depths[::-1] == depths


def test_graph_is_what_it_says(random_bundle: Path) -> None:
    """Standard operators only, one Loop around the pass, no exporter traces, readable names, small graph file."""
    import onnx

    bundle = open_bundle(random_bundle)
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False)
    onnx.checker.check_model(str(bundle.path("model.onnx")), full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 24)]
    assert not graph.functions
    assert [node.op_type for node in graph.graph.node] == ["Transpose", "Loop"]
    body = graph.graph.node[1].attribute[0].g
    assert all(node.domain == "" and not node.metadata_props and not node.doc_string for node in body.node)
    assert "Attention" in {node.op_type for node in body.node}
    assert any(node.name.startswith("model.layers.1.self_attn.q_proj/") for node in body.node)
    assert bundle.path("model.onnx").stat().st_size <= 2 << 20
    raw = bundle.path("model.onnx").read_bytes()
    assert b"site-packages" not in raw and b".py" not in raw


def test_weights_are_stored_once(random_bundle: Path) -> None:
    from latentcot_export.validate.weights import bundle_tensors

    bundle = open_bundle(random_bundle)
    needed = sum(each.numel() * each.element_size() for each in bundle_tensors(bundle).values())
    assert bundle.path("model.onnx.data").stat().st_size <= 1.03 * needed


def test_opset_20_is_decomposed(random_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    bundle = export(random_checkpoint, tmp_path / "bundle", opset=20, validate=False)
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 20)]
    body = next(node for node in graph.graph.node if node.op_type == "Loop").attribute[0].g
    used = {node.op_type for node in body.node}
    # what older parsers refuse: fused attention and norms, data-dependent shapes, bit operations, a full sort
    assert not used & {"Attention", "RMSNormalization", "NonZero", "Compress", "TopK", "BitwiseAnd", "BitShift"}


def test_export_is_repeatable(random_checkpoint: Path, random_bundle: Path, tmp_path: Path) -> None:
    """The same checkpoint gives the same bytes: a bundle can be checked by exporting again."""
    again = export(random_checkpoint, tmp_path / "bundle", validate=False)
    for name in ("model.onnx", "model.onnx.data", "config.json"):
        assert again.path(name).read_bytes() == (random_bundle / name).read_bytes(), name


def test_float16_runs_and_keeps_the_gate_in_float32(random_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    bundle = export(random_checkpoint, tmp_path / "bundle", dtype="float16", validate=False)
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    kinds = {each.name: each.data_type for each in graph.initializer}
    assert kinds["router.weight_t"] == onnx.TensorProto.FLOAT
    assert kinds["model.layers.0.mlp.up_proj.weight_t"] == onnx.TensorProto.FLOAT16
    session = GraphSession(open_bundle(bundle.folder))
    manifest = bundle.manifest
    tokens = np.arange(40).reshape(2, 20) % manifest.model.vocab_size
    state = BatchState.new(manifest.model, "float16", tokens, 1, 20)
    session.feed(state, CallInputs.greedy(2, 20), np.array([20, 20]))
    assert (state.arrays["depths"] > 0).all() and np.isfinite(state.arrays["logits"]).all()
