"""The library that nvcc has built, in the plugin registry of TensorRT's lean runtime, which needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt.cases import CASES
from tests.tensorrt.harness import Harness

SCRIPT = Path(__file__).with_name("registry.py")


@pytest.fixture(scope="module")
def answer(plugins: Path, packages: Path) -> dict[str, Any]:
    asked = {key: {"name": case.name, "fields": case.fields} for key, case in CASES.items()}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(plugins)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(packages)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_registry_takes_every_creator_and_gives_them_back(answer: dict[str, Any]) -> None:
    assert answer["version"].startswith("11.")
    assert answer["before"] == [] and answer["after"] == []
    names = ("ChooseToken", "RaggedAdvance", "RaggedAttention", "RaggedHalt")
    assert answer["creators"] == [[name, "1", "PLUGIN CREATOR_V3ONE"] for name in names]
    assert answer["other version"]


@pytest.mark.parametrize("key", CASES)
def test_a_plugin_is_made_of_its_fields_in_both_phases(answer: dict[str, Any], harness: Harness, key: str) -> None:
    case, made = CASES[key], answer["cases"][key]["made"]
    assert made["core"] == [case.name, "1", "latentcot"]
    kinds = ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
    assert made["interfaces"] == [list(each) for each in zip(kinds, (1, 2, 1), strict=True)]
    assert made["outputs"] == len(case.outputs)
    # every field, to the bit, as the harness reads it out of a plugin that it has made itself
    mine = harness.create(case.name, case.fields)
    assert mine is not None and made["fields"] == [mine.describe[-1]] * 2
    assert answer["cases"][key]["again"] == made


def test_a_field_out_of_range_is_refused(answer: dict[str, Any]) -> None:
    assert answer["refused"]
