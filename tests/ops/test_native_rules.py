"""Inputs and attributes that only some stop rules and readouts of RaggedHalt need."""

from __future__ import annotations

import numpy as np
import pytest

from latentcot_export.ops.packed_tables import RAGGED_HALT
from latentcot_export.spec import READOUTS, STOPS
from tests.ops.native import assert_same, copied, run
from tests.ops.test_native_errors import ATTRIBUTES, valid

TAIL, FINAL = STOPS.index("tail"), READOUTS.index("final")
STEPS = ATTRIBUTES["RaggedHalt"]["max_steps"]


def refused(changes: dict[str, np.ndarray], attributes: dict[str, float], words: str) -> None:
    arrays = valid(RAGGED_HALT) | changes
    before = copied(arrays)
    with pytest.raises(Exception, match=words):
        run(RAGGED_HALT, arrays, ATTRIBUTES["RaggedHalt"] | attributes)
    assert_same(arrays, before)


def weights(places: int = 0, positions: int = 0, steps: int = 0) -> np.ndarray:
    sizes = (*valid(RAGGED_HALT)["depths"].shape, STEPS)
    return np.zeros([given or size for given, size in zip((places, positions, steps), sizes, strict=True)], np.float32)


@pytest.mark.parametrize(("attribute", "value"), [("stop", 4), ("stop", -1), ("readout", 5), ("skip_halted", 2)])
def test_attributes(attribute: str, value: int) -> None:
    refused({}, {attribute: value}, f"attribute.*{attribute}")


def test_what_is_absent() -> None:
    tail = {"gate_logits": np.zeros((2, STEPS), np.float32)}
    refused(tail, {"stop": TAIL}, "weights is absent, but the stop rule tail needs it")
    refused({}, {"readout": FINAL}, "x is absent, but the readout final needs it")
    arrays = valid(RAGGED_HALT)
    del arrays["gate_logits"]
    with pytest.raises(Exception, match="gate_logits has 0 columns, but must have 1"):
        run(RAGGED_HALT, arrays, ATTRIBUTES["RaggedHalt"])
    run(RAGGED_HALT, arrays, ATTRIBUTES["RaggedHalt"] | {"stop": STOPS.index("count")})


@pytest.mark.parametrize("name", ["next_input", "x"])
def test_shapes(name: str) -> None:
    refused({name: np.zeros((3, 8), np.float32)}, {}, f"{name} has size 3 along axis 0, but must have 2")
    refused({name: np.zeros((2, 9), np.float32)}, {}, f"{name} has size 9 along axis 1, but must have 8")


def test_tail() -> None:
    attributes = {"stop": TAIL}
    logits = np.zeros((2, STEPS), np.float32)
    refused({"weights": weights()}, attributes, f"gate_logits has .* columns, but must have max_steps = {STEPS}")
    for axis in range(3):
        sizes = [0, 0, 0]
        sizes[axis] = 7
        refused(
            {"gate_logits": logits, "weights": weights(*sizes)}, attributes, f"weights has size 7 along axis {axis}"
        )
    logits[1, 1] = np.nan  # row 1 is fresh
    refused({"gate_logits": logits, "weights": weights()}, attributes, r"gate_logits\[1\] times reach is not a number")
