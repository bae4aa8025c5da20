"""The ONNX Runtime adapters of the CUDA kernels, over an imitated ONNX Runtime and kernels on the CPU.

Both forms give what the CPU ops give: outputs of the same shapes and bits, the same tables; the fixed form never waits.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from latentcot_export.ops.packed_tables import OPS
from latentcot_export.runtime.library import library_path
from tests.cuda.kernels import Kernels
from tests.plugins import sample

KINDS = {np.float32: 1, np.int32: 6, np.int64: 7, np.bool_: 9, np.float16: 10, ml_dtypes.bfloat16: 16}
NUMBERS = {np.dtype(kind): number for kind, number in KINDS.items()}
DTYPES = {number: dtype for dtype, number in NUMBERS.items()}
ORDER = {op.name: op.inputs for op in OPS}
Values = dict[str, np.ndarray]


class Array(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 8),
    )


def run_adapter(kernels: Kernels, op: str, values: Values, **more: Any) -> tuple[Values, int]:
    """Outputs by name, and how often the host waited. Errors: ValueError with the sentence."""
    order = ORDER[op]
    inputs = (Array * len(order))()
    for array, name in zip(inputs, order, strict=True):
        if name in values:
            value = values[name]
            array.data, array.type, array.rank = value.ctypes.data, NUMBERS[value.dtype], value.ndim
            array.shape[: value.ndim] = value.shape
    given = {**sample.ATTRIBUTES[op], **more}
    names = (ctypes.c_char_p * len(given))(*(name.encode() for name in given))
    numbers = (ctypes.c_double * len(given))(*given.values())
    outputs, message = (Array * len(sample.OUTPUTS[op]))(), ctypes.create_string_buffer(480)
    call = kernels._library.latentcot_ort_run
    waits = call(op.encode(), names, numbers, len(given), inputs, len(inputs), outputs, message)
    if waits < 0:
        raise ValueError(message.value.decode())
    found = {}
    for array, name in zip(outputs, sample.OUTPUTS[op], strict=True):
        dtype, shape = DTYPES[array.type], tuple(array.shape[: array.rank])
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        found[name] = np.frombuffer(ctypes.string_at(array.data, size), dtype).reshape(shape).copy()
    return found, waits


def run_cpu(op: str, values: Values, **more: Any) -> Values:
    names = [name for name in sample.INPUTS[op] if name not in values]
    data = sample.model(op, {**sample.feeds(op), **values}, left_out=tuple(names), **more)
    made = sample.session(data, library_path()).run(None, values)
    return dict(zip(sample.OUTPUTS[op], made, strict=True))


def check(kernels: Kernels, op: str, values: Values, waits: int, **more: Any) -> Values:
    """Runs both on states of their own and compares all they give and leave."""
    mine, theirs = ({name: value.copy() for name, value in values.items()} for _ in range(2))
    wanted = run_cpu(op, theirs, **more)
    found, waited = run_adapter(kernels, op, mine, **more)
    assert waited == waits
    for name, value in {**theirs, **wanted}.items():
        got = {**mine, **found}[name]
        assert got.shape == value.shape and got.dtype == value.dtype, name
        if value.dtype == np.float32:  # another order of sums
            np.testing.assert_allclose(got, value, rtol=2e-5, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(got, value, err_msg=name)
    return found


# RaggedHalt waits for its counts, RaggedAdvance for max_rows, then for its rows.
WAITS = {"RaggedHalt": 1, "RaggedAdvance": 2}


@pytest.mark.parametrize("op", sample.INPUTS)
def test_the_dynamic_form(kernels: Kernels, op: str) -> None:
    for seed in range(3):
        check(kernels, op, sample.feeds(op, seed), WAITS.get(op, 0))


@pytest.mark.parametrize("op", sample.INPUTS)
def test_the_dynamic_form_of_no_rows(kernels: Kernels, op: str) -> None:
    values = sample.feeds(op)
    for name in {"qkv", "cos", "sin", "rows", "z", "gate_logits", "reach", "mix", "x", "residual", "gate_up"} & set(
        values
    ):
        values[name] = values[name][:0]
    if op == "ChooseToken":
        values["logits"] = values["logits"][:0]
    if "sequences" in values:
        values["sequences"][0, 5] = 0
    check(kernels, op, values, WAITS.get(op, 0))


def halted() -> Values:
    """Position 0 goes on, position 1 halts, position 2 halts where a token is to be chosen."""
    values = sample.feeds("RaggedHalt")
    values["rows"] = np.array([[0, 0, 2, 7], [0, 1, 1, 6], [0, 2, 1, 4]], np.int32)
    values["gate_logits"] = np.array([[3], [-3], [-3]], np.float32)
    values["z"] = np.random.default_rng(5).standard_normal((3, sample.HIDDEN)).astype(np.float32)
    values["sequences"][0, 5] = 3
    return values


def test_halt_gives_rows_of_both_kinds(kernels: Kernels) -> None:
    found = check(kernels, "RaggedHalt", halted(), 1)
    assert found["next_rows"].shape == (1, 4) and found["head_rows"].shape == (1, 4) and found["head_index"] == [2]


@pytest.mark.parametrize("most", [1, 2, 16])
def test_advance_with_rows_that_were_started_before(kernels: Kernels, most: int) -> None:
    values = sample.feeds("RaggedAdvance")
    values["rows"] = np.array([[0, 0, 2, 7], [0, 1, 1, 6]], np.int32)
    values["fresh"] = np.array([1], np.int32)
    values["sequences"][0, 5] = 2
    values["control"][0] = most
    values["forced_depth"][0, 2] = 1  # so that slots last for it
    found = check(kernels, "RaggedAdvance", values, 2)
    assert found["fresh_out"].tolist() == [1, 4]


def padded(op: str, values: Values, rows: int) -> Values:
    """Those of the fixed form: dead rows behind the live ones, and whatever else has rows as long."""
    made = dict(values)
    for name in {"z", "gate_logits", "rows", "reach", "mix", "qkv", "cos", "sin", "logits", "head_rows"} & set(values):
        if (op, name) == ("RaggedHalt", "logits"):
            continue
        value = values[name]
        filler = -1 if name == "rows" else np.nan
        if name in ("reach", "mix"):
            value = np.concatenate([value, np.zeros((len(values["rows"]) - len(value), *value.shape[1:]), value.dtype)])
        made[name] = np.concatenate([value, np.full((rows - len(value), *value.shape[1:]), filler, value.dtype)])
    return made


@pytest.mark.parametrize("op", ["RaggedHalt", "RaggedAdvance", "ChooseToken", "RaggedAttention"])
def test_the_fixed_form_waits_for_nothing(kernels: Kernels, op: str) -> None:
    values = halted() if op == "RaggedHalt" else sample.feeds(op)
    check(kernels, op, padded(op, values, 5), 0, fixed=1)


def test_a_fault_is_told_where_the_host_waits(kernels: Kernels) -> None:
    values = sample.feeds("RaggedHalt")
    values["gate_logits"][0] = np.nan
    with pytest.raises(ValueError, match=r"counters\[5\] is -1: a value given to RaggedHalt was at fault"):
        run_adapter(kernels, "RaggedHalt", values)
    values = sample.feeds("RaggedAdvance")
    values["counters"][5] = -4
    with pytest.raises(ValueError, match="given to RaggedAttention"):
        run_adapter(kernels, "RaggedAdvance", values)


@pytest.mark.parametrize(("op", "fault"), [("ChooseToken", -3), ("RaggedAttention", -4)])
@pytest.mark.parametrize("fixed", [0, 1])
def test_ops_whose_output_is_as_long_as_their_input_only_leave_a_fault(
    kernels: Kernels, op: str, fault: int, fixed: int
) -> None:
    values = {**sample.feeds(op), "counters": sample.tables()["counters"]}
    if op == "ChooseToken":
        values["logits"][0] = np.nan
    else:
        values["rows"][0, 3] = 3
    _, waits = run_adapter(kernels, op, values, fixed=fixed)
    assert waits == 0 and values["counters"][5] == fault
    values["counters"] = values["counters"][:7].copy()
    with pytest.raises(ValueError, match="counters has size 7"):
        run_adapter(kernels, op, values)


@pytest.mark.parametrize(
    ("op", "narrow"),
    [("AddNorm", ["x"]), ("GatedUnit", ["gate_up"]), ("RaggedAttention", ["qkv", "cache"])],
)
@pytest.mark.parametrize(("dtype", "limit"), [(np.float16, 4e-3), (ml_dtypes.bfloat16, 3.2e-2)])
def test_narrow_rows_give_what_float32_gives(
    kernels: Kernels, op: str, narrow: list[str], dtype: type, limit: float
) -> None:
    values = sample.feeds(op)
    fewer = {name: value.astype(dtype) if name in narrow else value.copy() for name, value in values.items()}
    wanted, (found, _) = run_cpu(op, values), run_adapter(kernels, op, fewer)
    for name, value in found.items():
        assert value.dtype == (np.float32 if name == "total" else dtype)
        np.testing.assert_allclose(value.astype(np.float32), wanted[name], rtol=limit, atol=limit)


@pytest.mark.parametrize("op", sample.INPUTS)
def test_shapes_are_checked_as_on_the_cpu(kernels: Kernels, op: str) -> None:
    for name in sample.INPUTS[op]:
        values = sample.feeds(op)
        values[name] = values[name][np.newaxis]
        with pytest.raises(ValueError, match=f"{op}: {name}"):
            run_adapter(kernels, op, values)
