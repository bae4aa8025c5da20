"""pass.onnx with every own op run by its CUDA adapter and kernels, on the CPU: its tokens, and what becomes of a fault.

Standard operators are ONNX's reference. What is looked for here is whether each node is given what its kernel needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentcot_export.bundle import Bundle
from latentcot_export.errors import LatentCoTError
from latentcot_export.export import export
from latentcot_export.ops.packed_tables import OPS, OpSignature
from latentcot_export.runtime.device import PASS
from latentcot_export.runtime.native_state import NativeState
from latentcot_export.runtime.native_tables import PASS_CARRIED, Column, Counter, Status
from latentcot_export.runtime.pass_rows import RowSets
from latentcot_export.runtime.pass_session import PassSession
from latentcot_export.validate.widened import widened
from tests.cuda.kernels import Kernels
from tests.cuda.test_adapters import run_adapter

SAYS = (
    "{} found values that do not fit together on device cuda (fault {}) and their rows were dropped; run the same on "
    "device cpu, where the operator says which value"
)


@pytest.fixture(scope="module")
def bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(random_checkpoint, tmp_path_factory.mktemp("pass") / "b", target="ort", validate=False)


def on_cpu(bundle: Bundle) -> PassSession:
    """The session of a processor, which widens a dtype below float32."""
    narrow = bundle.manifest.dtype != "float32"
    return PassSession(bundle, 1, "cpu", content=widened(bundle) if narrow else None)


def on_kernels(op: OpSignature, kernels: Kernels) -> type[OpRun]:
    """An op of the graph, done by its adapter; tables change where they lie."""

    def _run(self: Any, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        given = {name: x for name, x in zip(op.inputs, inputs, strict=False) if x is not None}
        assert all(given[name].flags.c_contiguous for name in op.written if name in given)
        values = {name: np.asarray(x, order="C") for name, x in given.items()}
        outputs, waits = run_adapter(kernels, op.name, values, **attributes)
        assert not waits, "the fixed form waits for nothing"
        return tuple(outputs.values())

    return type(op.name, (OpRun,), {"op_domain": "latentcot", "_run": _run})


class OnKernels(PassSession):
    """The session of a GPU, whose passes are done here."""

    def __init__(self, bundle: Bundle, kernels: Kernels, leave_out: str = "") -> None:
        super().__init__(bundle, 1, "cpu", content=widened(bundle))  # of which no node is run
        self.device = "cuda"
        model = onnx.load(bundle.path(PASS))
        for node in model.graph.node:
            if node.op_type == leave_out:
                node.input.remove("counters")
        self.graph = ReferenceEvaluator(model, new_ops=[on_kernels(op, kernels) for op in OPS])

    def _take(self, sets: RowSets, options: ort.RunOptions) -> None:
        tables = {name: array for name, array in sets.tables.arrays.items() if name != "max_passes"}
        if tables["cache"].dtype == np.uint16:
            tables["cache"] = tables["cache"].view(ml_dtypes.bfloat16)
        carried = {name: value.numpy() for name, value in sets.sets[sets.at].items()}
        names = [f"{name}_out" for name in PASS_CARRIED]
        *made, again = self.graph.run([*names, "again"], {**tables, **carried})
        for name, value in zip(PASS_CARRIED, made, strict=True):
            sets.sets[1 - sets.at][name].update_inplace(np.ascontiguousarray(value))
        sets.again.update_inplace(np.array(bool(again)))


def state_for(bundle: Bundle) -> NativeState:
    manifest = bundle.manifest
    state = NativeState(
        manifest.model,
        manifest.recurrence,
        places=2,
        length=16,
        slots=80,
        dtype=manifest.cache.dtype,
        logit_positions=8,
    )
    state.add([1, 2, 3], 9)
    state.add([7], 5)
    return state


def test_tokens_and_depths_are_those_of_the_processor(bundle: Bundle, kernels: Kernels) -> None:
    found = []
    for session in (PassSession(bundle, 1, "cpu"), OnKernels(bundle, kernels)):
        state = state_for(bundle)
        session.run(state, 200)
        assert (state.sequences[:, Column.STATUS] == Status.DONE).all() and not state.counters[Counter.STALLED]
        found.append([state.arrays[name].tolist() for name in ("tokens", "depths", "sequences")])
    assert found[0] == found[1]


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_a_narrow_pass_is_the_widened_one(
    random_checkpoint: Path, tmp_path: Path, kernels: Kernels, dtype: str, limit: float
) -> None:
    """Depths are forced, since a near-tie may flip: a GPU adds up in another order, and rounds weights of keys too."""
    bundle = export(random_checkpoint, tmp_path / dtype, target="ort", dtype=dtype, validate=False)
    found = []
    for session in (on_cpu(bundle), OnKernels(bundle, kernels)):
        state = state_for(bundle)
        state.arrays["forced_depth"][:] = np.arange(1, 17) % bundle.manifest.recurrence.max_steps + 1
        session.run(state, 200)
        assert (state.sequences[:, Column.STATUS] == Status.DONE).all() and not state.counters[Counter.STALLED]
        found.append(state.arrays)
    np.testing.assert_array_equal(found[0]["depths"], found[1]["depths"])
    first, second = (each["logits"][0, :3] for each in found)  # of the first prompt, whatever is chosen
    apart = np.abs(first - second).max()
    assert np.abs(found[0]["logits"]).max() > 0 and apart < limit


def no_slot_of_the_cache(state: NativeState) -> None:
    state.arrays["slots"][0, 0, 0] = 80


def no_temperature(state: NativeState) -> None:
    state.arrays["sampling"][:, 0] = np.nan


FAULTS = pytest.mark.parametrize(
    ("op", "fault", "spoil"),
    [("RaggedAttention", -4, no_slot_of_the_cache), ("ChooseToken", -3, no_temperature)],
)


def begun(session: PassSession, bundle: Bundle, spoil: Any) -> NativeState:
    """Sequences that think of their first new tokens, and then something is wrong in the tables."""
    state = state_for(bundle)
    session.run(state, 3)
    spoil(state)
    return state


@FAULTS
def test_a_fault_ends_the_run_with_one_sentence(
    bundle: Bundle, kernels: Kernels, op: str, fault: int, spoil: Any
) -> None:
    session = OnKernels(bundle, kernels)
    state = begun(session, bundle, spoil)
    with pytest.raises(LatentCoTError) as told:
        session.run(state, 40)
    assert str(told.value) == SAYS.format(op, fault)


@FAULTS
def test_the_processor_says_which_value(bundle: Bundle, op: str, fault: int, spoil: Any) -> None:
    session = PassSession(bundle, 1, "cpu")
    state = begun(session, bundle, spoil)
    words = {-4: r"slots entry is 80,", -3: r"sampling\[\d, 0\] \(temperature\) is not a number,"}
    with pytest.raises(LatentCoTError, match=rf"{op}: {words[fault]} but must be "):
        session.run(state, 40)


@FAULTS
def test_without_the_input_a_node_still_runs_and_says_nothing(
    bundle: Bundle, kernels: Kernels, op: str, fault: int, spoil: Any
) -> None:
    """As in bundles of older versions."""
    session = OnKernels(bundle, kernels, leave_out=op)
    state = begun(session, bundle, spoil)
    session.run(state, 4)
    assert state.counters[Counter.STALLED] == 0
