"""RaggedHalt, RaggedAdvance and ChooseToken as CUDA kernels, behind the inputs and outputs that the ops have."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import numpy as np

from latentcot_export.ops.packed_tables import CHOOSE_TOKEN, RAGGED_ADVANCE, RAGGED_HALT, OpSignature
from tests.cuda.kernels import Kernels, guarded, poisoned
from tests.ops.fixed import poisoned as with_dead_rows
from tests.ops.fixed import strip_outputs

TYPES = {
    np.dtype(np.float32): 1,
    np.dtype(np.int32): 3,
    np.dtype(np.int64): 4,
}  # enum Type of plugins/kernels/tables.hpp
DEFAULTS: dict[str, dict[str, float]] = {  # in the order of the entry points
    "RaggedHalt": {"tau": 0, "max_steps": 1, "stop": 0, "readout": 0, "skip_halted": 1, "fixed": 1},
    "RaggedAdvance": {"max_steps": 1, "runs_on": 0, "token_major": 0, "jacobi": 0},
    "ChooseToken": {"fixed": 1},
}


class Tensor(ctypes.Structure):
    """`latentcot::Tensor`: an address of 0 and type 0 stand for an absent input."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
    )

    @classmethod
    def of(cls, value: np.ndarray | None) -> Tensor:
        if value is None:
            return cls()
        assert value.flags.c_contiguous
        return cls(value.ctypes.data, TYPES[value.dtype], value.ndim, (ctypes.c_int64 * 4)(*value.shape))


def made_outputs(op: OpSignature, capacity: int, hidden: int) -> dict[str, np.ndarray]:
    """Outputs of the fixed form before they are written."""
    rows = poisoned((capacity, 4), np.int32)
    if op is CHOOSE_TOKEN:
        return {"chosen": poisoned(capacity, np.int32)}
    if op is RAGGED_ADVANCE:
        return {"next_rows": rows, "next_fresh": poisoned(capacity, np.int32), "again": np.ones(1, bool)}
    wide, narrow = poisoned((capacity, hidden), np.float32), poisoned(capacity, np.float32)
    made = (rows, wide, narrow, wide.copy(), rows.copy(), wide.copy(), poisoned(capacity, np.int64))
    return dict(zip(op.outputs, made, strict=True))


def run(
    kernels: Kernels,
    op: OpSignature,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, float] | None = None,
    seed: int = 0,
    offset: int = 0,
    counts: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The kernel on inputs of R rows; arrays of the inputs change in place where the op writes. `offset`: bytes that every
    array lies behind a multiple of 256. `counts` int64 [2]: what RaggedHalt says of its outputs.
    """
    found = made_outputs(op, len(inputs["rows"]), inputs["z"].shape[1] if op is RAGGED_HALT else 0)
    names = [name for name in op.inputs if name in inputs]
    arrays = {name: inputs[name] for name in names} | {f"out {n}": x for n, x in found.items()}
    given = [(attributes or {}).get(name, default) for name, default in DEFAULTS[op.name].items()]
    untouched = {name: inputs[name].copy() for name in names if name not in op.written}
    counts = np.zeros(2, np.int64) if counts is None else counts
    with guarded(arrays, offset) as held:
        tensors = (Tensor * len(op.inputs))(*(Tensor.of(held[n] if n in names else None) for n in op.inputs))
        outputs = (ctypes.c_void_p * len(found))(*(held[f"out {name}"].ctypes.data for name in found))
        kernels.run(op.name, tensors, (ctypes.c_double * len(given))(*given), outputs, counts, seed=seed)
    for name, value in untouched.items():
        np.testing.assert_array_equal(inputs[name], value, err_msg=name)
    return list(found.values())


def run_stripped(
    kernels: Kernels,
    op: OpSignature,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, float] | None,
    capacity: int,
    seed: int = 0,
    offset: int = 0,
) -> list[np.ndarray]:
    """As the op's dynamic form, by way of `capacity` rows; it is checked that dead rows come out as they must."""
    fed = with_dead_rows(op, inputs, capacity)
    return strip_outputs(op, fed, run(kernels, op, fed, attributes, seed, offset))


def stand_in(kernels: Kernels, random: np.random.Generator, spare: int) -> Callable[..., list[np.ndarray]]:
    """What takes the place of `tests.ops.native.run` in the tests of the CPU op: the same by way of the fixed form, with up
    to `spare` dead rows, another order of threads and another alignment each time.
    """

    def run_op(
        op: OpSignature,
        inputs: Mapping[str, np.ndarray],
        attributes: Mapping[str, float] | None = None,
        threads: int = 1,
    ) -> list[np.ndarray]:
        capacity = len(inputs["rows"]) + (spare if op is RAGGED_ADVANCE else int(random.integers(0, spare + 1)))
        order, offset = int(random.integers(0, 7)), int(random.choice((0, 4, 16)))
        return run_stripped(kernels, op, inputs, attributes, capacity, order, offset)

    return run_op
