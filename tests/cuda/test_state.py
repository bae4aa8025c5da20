"""The CUDA kernels of the three state ops in turn, pass after pass, as tests/ops/test_fixed_state.py does the CPU's."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcot_export.ops.packed_tables import OpSignature
from tests.cuda.kernels import Kernels
from tests.cuda.state_ops import run_stripped
from tests.ops.test_fixed_state import CASES, FixedSimulation, simulate
from tests.ops.test_native_state import Rules


@settings(max_examples=15)
@given(*CASES, st.sampled_from((1, 3, 9, 24)), st.integers(0, 5))
def test_every_pass_leaves_what_the_references_leave(
    kernels: Kernels,
    seed: int,
    max_steps: int,
    tau: float,
    places: int,
    rules: Rules,
    capacity: int,
    order: int,
) -> None:
    class CudaSimulation(FixedSimulation):
        def native(
            self, op: OpSignature, inputs: dict[str, np.ndarray], attributes: dict[str, float] | None = None
        ) -> list[np.ndarray]:
            return run_stripped(kernels, op, inputs, attributes, self.capacity, order)

    simulate(seed, max_steps, tau, places, rules, capacity, CudaSimulation)
