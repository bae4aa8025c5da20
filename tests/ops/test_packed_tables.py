"""The columns and inputs that Python, the engine and the kernels' headers each name are the same ones."""

from __future__ import annotations

import enum
import re
from pathlib import Path

import pytest

from latentcot_export.ops import packed_tables
from latentcot_export.ops.packed_tables import CHOOSE_TOKEN, OPS, RAGGED_ADVANCE, RAGGED_ATTENTION, RAGGED_HALT
from latentcot_export.runtime import native_state

PLUGINS = Path(__file__).parents[2] / "plugins"
TABLES = (PLUGINS / "kernels/tables.hpp").read_text()


def entries(header: str) -> list[str]:
    """Names of a C++ enum in order, kNextPosition as NEXT_POSITION; the last one counts them and is left out."""
    found = re.search(rf"enum {header} : [\w:]+ {{(.*?)}};", TABLES, re.S)
    assert found, header
    names = re.findall(r"\bk(\w+)\b", re.sub(r"//.*", "", found.group(1)))
    names = [re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() for name in names]
    return names if header == "Status" else names[:-1]


@pytest.mark.parametrize(
    ("header", "kind", "prefix"),
    [
        ("SequenceColumn", "Column", ""),
        ("Status", "Status", ""),
        ("RowColumn", "Row", "ROW_"),
        ("ControlEntry", "Control", ""),
        ("CounterEntry", "Counter", ""),
    ],
)
def test_columns(header: str, kind: str, prefix: str) -> None:
    ours: type[enum.IntEnum] = getattr(packed_tables, kind)
    assert [entry.value for entry in ours] == list(range(len(ours)))
    assert entries(header) == [prefix + entry.name for entry in ours]
    engine = getattr(native_state, kind, None)
    if engine is not None:
        assert {e.name: e.value for e in engine} == {e.name: e.value for e in ours}


@pytest.mark.parametrize(
    ("op", "source"),
    [
        (RAGGED_ATTENTION, "kernels/attention_bind.hpp"),
        (RAGGED_HALT, "kernels/ragged_halt.hpp"),
        (CHOOSE_TOKEN, "kernels/choose_token.hpp"),
        (RAGGED_ADVANCE, "kernels/ragged_advance.hpp"),
    ],
)
def test_inputs(op: packed_tables.OpSignature, source: str) -> None:
    specs = re.findall(r'{"(\w+)", Type::k\w+, \d, (true|false)', (PLUGINS / source).read_text())
    assert tuple(name for name, _ in specs) == op.inputs
    assert {name for name, written in specs if written == "true"} == set(op.written)
    assert op in OPS and set(op.written) <= set(op.inputs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_attributes(op: packed_tables.OpSignature) -> None:
    """An adapter reads them itself, or by functions of attributes.hpp, which those of a GPU share."""
    adapter = re.sub(r"(?<!^)(?=[A-Z])", "_", op.name).lower()
    shared = (PLUGINS / "onnxruntime/attributes.hpp").read_text()
    functions = dict(re.findall(r"^inline \w+ (\w+)\(const NodeInfo& info.*?\) {(.*?)}\n\n", shared, re.M | re.S))
    source = (PLUGINS / f"onnxruntime/{adapter}.cpp").read_text()
    for _ in range(2):  # one of them calls another
        source += "".join(body for name, body in functions.items() if f"{name}(info" in source)
    assert sorted(set(re.findall(r'info\.(?:integer|real)\("(\w+)"', source))) == sorted(op.attributes)


def test_faults() -> None:
    found = re.search(r"enum Fault : int {(.*?)};", TABLES)
    assert found
    assert dict(re.findall(r"k(\w+)Fault = (-\d)", found.group(1))) == {
        fault.name.capitalize(): str(fault.value) for fault in packed_tables.Fault
    }
