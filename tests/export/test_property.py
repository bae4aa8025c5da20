"""Random checkpoints, exported for real: tokens and depths of the oracle, prefill == decode, neighbours, order.

Every example of target onnx traces and loads a graph, which takes seconds, so few are drawn here; LATENTCOT_EXAMPLES draws
more. The same pass is run eagerly on many more shapes in tests/ops. A graph of target ort is written in an instant, so that
each of many shapes goes through every gate of `validate --level full`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, event, example, given, settings
from hypothesis import strategies as st

from latentcot_export.bundle import open_bundle
from latentcot_export.checkpoint import random_tensors
from latentcot_export.export import export
from latentcot_export.model import LatentCoT, step_major
from latentcot_export.runtime.session import CallInputs, GraphSession
from latentcot_export.runtime.state import BatchState
from latentcot_export.spec import ModelSpec, RecurrenceSpec
from latentcot_export.validate import validate
from tests.checkpoints import in_memory
from tests.specs import ROPES, backbones, decided, recurrences

NEW = 7
EXAMPLES = int(os.environ.get("LATENTCOT_EXAMPLES", "6"))
NATIVE_EXAMPLES = int(os.environ.get("LATENTCOT_EXAMPLES", "25"))
TOKENS = 120
# A plain model, and everything else at once: grouped heads of 20 lanes, biases, yarn, a head of its own.
PLAIN = ModelSpec(64, 16, 33, 1, 1, 1, 16, 1e-6, 64, tie_word_embeddings=True)
RICH = ModelSpec(101, 40, 64, 2, 6, 2, 20, 1e-5, 64, ROPES[-1], attention_bias=True, mlp_bias=True)

PARALLEL = dataclasses.replace(RICH, norm="layer", block="parallel", mlp="plain", activation="gelu", rotary_dim=4)
SANDWICH = dataclasses.replace(RICH, block="sandwich", activation="gelu_tanh", qk_norm=True, tie_word_embeddings=True)


def generate(session: GraphSession, spec: ModelSpec, prompts: list[list[int]], rows: int) -> tuple[list, list]:
    """Greedy tokens (prompt + new) and depths of every sequence."""
    lengths = np.array([len(p) for p in prompts])
    tokens = np.full((len(prompts), int(lengths.max()) + NEW), -1)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    state = BatchState.new(spec, session.manifest.recurrence, "float32", tokens, 1)
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
@given(backbones(), recurrences(), st.integers(0, 1000), st.sampled_from((24, 24, 20)))
def test_exported_graph_equals_oracle(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, opset: int
) -> None:
    folder = tmp_path_factory.mktemp("property")
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", opset=opset, validate=False)
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


@settings(
    max_examples=NATIVE_EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
@given(
    spec=backbones(),
    # with tau = 0 a product of gates may be nothing to float32 alone; `full_depth` and test_native_property have that
    recurrence=recurrences().filter(lambda rule: rule.halt_threshold > 0),
    head_dim=st.sampled_from((4, 10, 16, 20, 32, 66)),
    hidden=st.sampled_from((16, 24, 40, 96)),
    seed=st.integers(0, 1000),
    cache=st.sampled_from(("float32", "float32", "float16")),
)
@example(PLAIN, RecurrenceSpec(0), 16, 16, 1, "float32")
@example(RICH, RecurrenceSpec(4, 0.3, "mlp", 7, False, 6.0), 20, 40, 2, "float32")
@example(RICH, RecurrenceSpec(4, 0.3, "mlp", 7, True, 0.5), 20, 40, 3, "float16")
@example(PARALLEL, RecurrenceSpec(3, 0.3), 16, 40, 5, "float32")
@example(SANDWICH, RecurrenceSpec(3, 0.3), 20, 24, 6, "float32")
@example(PLAIN, RecurrenceSpec(6, 0.3, router_shared=False), 66, 96, 4, "float16")
def test_every_gate_passes_for_target_ort(
    tmp_path_factory: pytest.TempPathFactory,
    spec: ModelSpec,
    recurrence: RecurrenceSpec,
    head_dim: int,
    hidden: int,
    seed: int,
    cache: str,
) -> None:
    turned = None if spec.rotary_dim is None else min(spec.rotary_dim, head_dim)
    spec = dataclasses.replace(spec, head_dim=head_dim, hidden_size=hidden, rotary_dim=turned)
    folder = tmp_path_factory.mktemp("property")
    with in_memory(folder / "checkpoint", spec, recurrence, seed) as checkpoint:
        bundle = export(checkpoint, folder / "bundle", target="ort", validate=False, cache_dtype=cache)
        report = validate(bundle, against=checkpoint, tokens=TOKENS, level="full")
    gates = {gate.name: gate for gate in report.gates}
    # no share of so few tokens is one, so that a near-tie would fail its gate
    assume(not any(gate.excused for gate in gates.values()))
    assert report.passed, report.text()
    assert all(gate.mismatched == 0 and (gate.compared > 0 or gate.skipped) for gate in gates.values())
    assert len(gates) == 16 and gates["depth"].compared == TOKENS and gates["tokens"].compared > TOKENS
    event(f"deepest {report.max_depth} of {recurrence.max_steps}")


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
    state = BatchState.new(manifest.model, manifest.recurrence, "float16", tokens, 1, 20)
    session.feed(state, CallInputs.greedy(2, 20), np.array([20, 20]))
    assert (state.arrays["depths"] > 0).all() and np.isfinite(state.arrays["logits"]).all()
