"""What the plugins answer a builder: interfaces, fields, shapes, types, formats, aliases, memory. No TensorRT is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from latentcot_export.runtime.tensorrt_library import copied_tables
from tests.tensorrt.cases import CASES, B, Case, D, N, P, R, S, T
from tests.tensorrt.harness import (
    BF16,
    BUILD,
    FLOAT,
    FLOAT32_FIELD,
    HALF,
    INT32,
    INT32_FIELD,
    INT64,
    RUNTIME,
    TYPES,
    Harness,
    Plugin,
    field,
)

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
NUMPY = {number: dtype for dtype, number in TYPES.items()}
CHW32 = 4  # a TensorFormat that is not linear


def made(harness: Harness, case: Case, phase: int = BUILD) -> Plugin:
    plugin = harness.create(case.name, case.fields, phase)
    assert plugin is not None, harness.refusal
    return plugin


def test_every_op_has_a_creator(harness: Harness) -> None:
    assert {creator.name for creator in harness.creators} == {case.name for case in CASES.values()}
    for creator in harness.creators:
        assert (creator.interface, creator.version, creator.namespace) == ("PLUGIN CREATOR_V3ONE 1.0", "1", "latentcot")
        (wanted, *_) = [case.fields for case in CASES.values() if case.name == creator.name]
        kinds = {name: INT32_FIELD if isinstance(value, int) else FLOAT32_FIELD for name, value in wanted.items()}
        assert creator.fields == kinds


@ALL
def test_a_plugin_has_the_newest_interfaces_and_no_older(harness: Harness, case: Case) -> None:
    name, version, namespace, core, build, runtime, _ = made(harness, case).describe
    assert (name, version, namespace) == (case.name, "1", "latentcot")
    assert (core, build, runtime) == ("PLUGIN_V3ONE_CORE 1.0", "PLUGIN_V3ONE_BUILD 2.0", "PLUGIN_V3ONE_RUNTIME 1.0")


@ALL
def test_shapes_are_inferred_of_dimensions_nobody_knows(harness: Harness, case: Case) -> None:
    assert made(harness, case).shapes(case.shapes) == [shape for shape, _, _ in case.outputs]


@ALL
def test_types_and_aliases_are_inferred(harness: Harness, case: Case) -> None:
    plugin = made(harness, case)
    assert plugin.types(case.types) == [kind for _, kind, _ in case.outputs]
    assert plugin.aliases == [alias for _, _, alias in case.outputs]


@ALL
def test_only_linear_tensors_of_the_right_types_are_taken(harness: Harness, case: Case) -> None:
    plugin, count = made(harness, case), len(case.inputs)
    types = case.types + [kind for _, kind, _ in case.outputs]
    wide = {"qkv", "cache"} if case.name == "RaggedAttention" else set()
    for at in range(len(types)):
        assert plugin.supports(at, types, count)
        assert not plugin.supports(at, types, count, layout=CHW32)
        name = list(case.inputs)[at] if at < count else ""
        for kind in {FLOAT, HALF, BF16, INT32, INT64} - {types[at]}:
            other = [*types[:at], kind, *types[at + 1 :]]
            assert plugin.supports(at, other, count) == (name in wide and kind in (FLOAT, HALF, BF16))


@ALL
@pytest.mark.parametrize("phase", [BUILD, RUNTIME])
def test_clones_and_what_an_engine_keeps_make_the_same_plugin(harness: Harness, case: Case, phase: int) -> None:
    plugin = made(harness, case, phase)
    assert plugin.fields == pytest.approx(case.fields, rel=1e-7)
    reborn = harness.create(case.name, plugin.fields, RUNTIME)
    assert reborn is not None
    for other in [reborn, *plugin.again()]:
        assert (other.describe, other.fields, other.aliases) == (plugin.describe, plugin.fields, plugin.aliases)


@ALL
def test_other_fields_have_other_timings(harness: Harness, case: Case) -> None:
    timings = {made(harness, case).describe[-1]}
    for name, value in case.fields.items():
        if name in ("tau", "epsilon"):
            changed = harness.create(case.name, {**case.fields, name: value * 1.0000002})
            assert changed is not None
            timings.add(changed.describe[-1])
    assert len(timings) == 1 + len({"tau", "epsilon"} & set(case.fields))


@ALL
def test_memory_is_asked_for_the_largest_call(harness: Harness, case: Case) -> None:
    plugin = made(harness, case)
    sizes = {-2: 512, -3: 64, -4: 256, -5: 1024, -6: 4, -7: 0}

    def asked(rows: int) -> int:
        known = {**sizes, -2: rows}
        return plugin.workspace([tuple(known.get(n, n) for n in shape) for shape in case.shapes], case.types)

    assert asked(512) >= asked(4) >= asked(1) >= 0
    if case.name == "RaggedAttention":
        assert asked(1) > 0


@pytest.mark.parametrize("rows", [4, 64, 512])
def test_memory_for_a_long_table_is_enough_for_a_shorter_one(harness: Harness, rows: int) -> None:
    """A table of 8192 positions has 128 chunks, one of 8193 has 65."""
    case = CASES["attention"]
    plugin = made(harness, case)

    def asked(length: int) -> int:
        known = {R: rows, B: 64, T: length, S: 1, N: 64, P: 0}
        return plugin.workspace([tuple(known.get(n, n) for n in shape) for shape in case.shapes], case.types)

    lengths = (64, 1000, 8192, 8193, 10000, 16384, 20000, 32768, 40000)
    sizes = [asked(length) for length in lengths]
    assert sizes == sorted(sizes) and sizes[0] > 0


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("halt", {"fixed": 0}, "RaggedHalt: field fixed is 0, but must be from 1 to 1."),
        ("halt", {"tau": -1.0}, "field tau is -1.000000, but must be at least 0.000000 and finite."),
        ("halt", {"tau": float("nan")}, "field tau is not a number"),
        ("halt", {"max_steps": 0}, "field max_steps is 0, but must be from 1 to 1024."),
        ("halt", {"stop": 4}, "field stop is 4"),
        ("halt", {"tau": 1}, "field tau must be there once, as one float32."),
        ("halt", {"max_steps": 1.0}, "field max_steps must be there once, as one int32."),
        ("halt", {"inputs": 0}, "field inputs is 0"),
        ("halt", {"inputs": 1 << 13}, "a bit for each of the 13 inputs"),
        ("halt", {"speed": 1}, "field speed is none of this plugin's"),
        ("attention", {"num_kv_heads": 3}, "num_heads is 4, but must be a multiple of num_kv_heads, 3."),
        ("attention", {"head_dim": 7}, "head_dim is 7, but must be even."),
        ("attention", {"head_dim": 4096}, "field head_dim is 4096, but must be from 2 to 1024."),
    ],
)
def test_a_wrong_field_is_refused_with_a_sentence(
    harness: Harness, key: str, change: dict[str, float], said: str
) -> None:
    case = CASES[key]
    assert harness.create(case.name, {**case.fields, **change}) is None
    assert said in harness.refusal


@ALL
def test_every_field_is_needed_and_no_field_twice(harness: Harness, case: Case) -> None:
    for name in case.fields:
        fewer = {key: value for key, value in case.fields.items() if key != name}
        assert harness.create(case.name, fewer) is None
        assert harness.refusal == f"{case.name}: field {name} is missing; export the bundle again."
        twice = [field(*each) for each in [*case.fields.items(), (name, case.fields[name])]]
        assert harness.create(case.name, twice) is None
        for odd in (field(name, None), field(name, case.fields[name], length=2)):
            rest = [field(*each) for each in fewer.items()]
            assert harness.create(case.name, [*rest, odd]) is None
            assert f"field {name} must be there once" in harness.refusal


@ALL
def test_a_node_of_other_inputs_than_its_field_says_is_refused(harness: Harness, case: Case) -> None:
    plugin = made(harness, case)
    assert plugin.types(case.types[:-1]) is None
    assert f"{case.name}: node has {len(case.types) - 1} inputs" in harness.refusal
    assert plugin.shapes(case.shapes[:-1]) is None
    wrong = [(*case.shapes[0], D), *case.shapes[1:]]
    assert plugin.shapes(wrong) is None
    assert "dimensions, but must have" in harness.refusal


def test_the_library_brings_its_cuda_along(plugins: Path) -> None:
    needed = subprocess.run(["readelf", "-d", str(plugins)], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed and "libnvinfer" not in needed
    exported = subprocess.run(["nm", "-D", "--defined-only", str(plugins)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in exported.stdout.splitlines()}
    assert {"getCreators", "setLoggerFinder"} <= names
    assert not [name for name in names if name.startswith("cuda")]


def test_a_table_that_is_given_another_place_is_copied_and_counted(
    harness_on_cpu: Harness, plugins_found: Path
) -> None:
    case = CASES["advance"]
    plugin = made(harness_on_cpu, case)
    sizes = {R: 4, B: 2, T: 8, N: 12}
    inputs = [np.zeros([sizes.get(n, n) for n in shape], NUMPY[kind]) for shape, kind in case.inputs.values()]
    outputs = [
        inputs[alias] if alias >= 0 else np.zeros([sizes.get(n, n) for n in shape], NUMPY[kind])
        for shape, kind, alias in case.outputs
    ]
    inputs[0][:] = -1
    inputs[4][:] = -1
    before = copied_tables()
    assert plugin.enqueue(inputs, outputs) == 0 and copied_tables() == before
    counters = outputs[-1].copy()
    for _ in range(3):  # an idle pass counts nothing, but writes
        outputs[-1] = np.full_like(counters, 77)
        assert plugin.enqueue(inputs, outputs) == 0
        np.testing.assert_array_equal(outputs[-1], counters)
    assert copied_tables() == before + 3


def test_shapes_that_do_not_fit_are_refused_before_anything_runs(harness_on_cpu: Harness) -> None:
    case = CASES["choose"]
    plugin = made(harness_on_cpu, case)
    sizes = {R: 4, B: 2, T: 8, S: 1, P: 0}
    inputs = [np.zeros([sizes.get(n, n) for n in shape], NUMPY[kind]) for shape, kind in case.inputs.values()]
    inputs[3] = np.zeros((3, 2), np.float32)
    outputs = [inputs[alias] if alias >= 0 else np.zeros(4, np.int32) for _, _, alias in case.outputs]
    assert plugin.enqueue(inputs, outputs) == 1
    assert "ChooseToken: sampling has size 3 along axis 0, but must have 2" in harness_on_cpu.refusal
