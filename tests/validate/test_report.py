"""The report says what was found: as the documented JSON, as a table, as one sentence."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import pytest

from latentcot_export.bundle import read_report
from latentcot_export.errors import InputError
from latentcot_export.tables import FORMATS, render
from latentcot_export.validate import COLUMNS, Divergence, Gate, Report
from latentcot_export.validate.tally import skipped
from tests.bundle.sample import write_bundle

GOOD = Gate("depth", True, 512, 0, 0.0, 1e-5)
BAD = Gate("tokens", False, 72, 3, math.inf, 5e-5, Divergence(2, 9, 4), excused=1, detail="a | b")
REPORT = Report(
    bundle="tiny",
    checkpoint="latentcot-tiny",
    target="onnx",
    dtype="float32",
    level="quick",
    source="heldout.txt",
    tokens=512,
    gates=(GOOD, skipped("perplexity", 1e-5, "random ids, no text")),
    depth_histogram=(256, 128, 128, 0),
)
FAILED = dataclasses.replace(REPORT, gates=(GOOD, BAD))


def test_the_document_has_the_documented_keys() -> None:
    document = REPORT.to_json()
    promised = {"schema_version", "bundle", "checkpoint", "target", "dtype", "device", "tokens", "passed", "gates"}
    assert set(document) == promised | {
        *("mean_depth", "max_depth", "depth_histogram", "level", "text", "prefill", "quantize")
    }
    assert (document["schema_version"], document["passed"], document["tokens"]) == (1, True, 512)
    assert (document["mean_depth"], document["max_depth"]) == (1.75, 3)
    assert document["depth_histogram"] == [256, 128, 128, 0]
    gate = {"name", "passed", "compared", "mismatched", "worst", "limit", "first_divergence"}
    assert all(set(each) == gate | {"excused", "skipped", "detail"} for each in document["gates"])
    assert document["gates"][1]["skipped"] and document["gates"][1]["passed"]


def test_numbers_that_are_not_finite_are_null() -> None:
    gate = FAILED.to_json()["gates"][1]
    assert gate["worst"] is None
    assert gate["first_divergence"] == {"sequence": 2, "token": 9, "step": 4}
    nothing = dataclasses.replace(REPORT, depth_histogram=(0, 0))
    assert nothing.to_json()["mean_depth"] is None and nothing.max_depth == 0
    json.dumps(FAILED.to_json(), allow_nan=False)


def test_the_verdict_and_its_sentence() -> None:
    assert REPORT.passed and REPORT.failure() is None
    assert not FAILED.passed
    sentence = str(FAILED.failure())
    for part in ("tiny", "gate tokens", "3 of 72", "1 near-ties", "sequence 2, token 9, step 4", "a | b"):
        assert part in sentence
    assert "\n" not in sentence
    assert "1 gates passed" in REPORT.summary() and "FAILED: tokens" in FAILED.summary()
    assert "50 / 25 / 25 / 0 %" in REPORT.summary()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_holds_every_gate(form: str) -> None:
    text = FAILED.text(form)
    assert text.endswith("\n") and "depth" in text and "tokens" in text
    if form == "json":
        assert json.loads(text) == FAILED.to_json()
    if form == "jsonl":
        assert [json.loads(line) for line in text.splitlines()] == FAILED.to_json()["gates"]
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert tuple(rows[0]) == COLUMNS
        assert (rows[1]["result"], rows[1]["worst"], rows[1]["detail"]) == ("FAILED", "", "a | b")
        assert float(rows[0]["limit"]) == 1e-5
    if form == "md":
        lines = text.splitlines()
        assert lines[0].startswith("| gate | result |") and "a \\| b" in text
        assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"


def test_another_format_is_refused() -> None:
    with pytest.raises(InputError, match="table, md, csv, json, jsonl"):
        REPORT.text("yaml")


def test_the_bundle_keeps_the_report(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "x")
    FAILED.save(bundle)
    kept = read_report(bundle, "validation.json")
    assert kept is not None
    assert kept.pop("manifest_digest") == bundle.manifest.digest()
    assert kept == FAILED.to_json()


def test_cells_cannot_steer_a_terminal_or_break_a_line() -> None:
    rows = [{"a": "x\x1b[31m\ny", "b": "[bold]z[/bold]"}, {"a": None, "b": math.nan}]
    table = render(rows, ("a", "b"), "table")
    assert "\x1b" not in table and "[bold]z[/bold]" in table and len(table.splitlines()) == 3
    assert table.splitlines()[2].split() == ["-", "-"]
    assert len(render(rows, ("a", "b"), "md").splitlines()) == 4
    assert len(list(csv.reader(io.StringIO(render(rows, ("a", "b"), "csv"))))) == 3
    assert [json.loads(line) for line in render(rows, ("a", "b"), "jsonl").splitlines()][1] == {"a": None, "b": None}


def test_numbers_stand_right_and_a_long_cell_is_not_cut() -> None:
    long = "word " * 60
    table = render([{"n": 1.23456789, "s": long.strip()}, {"n": 12000, "s": "x"}], ("n", "s"), "table")
    assert table.splitlines()[1].startswith("1.235  word") and table.splitlines()[2].startswith("12000  x")
    assert long.strip() in table
    assert render([], ("n",), "csv") == "n\n"
    assert render([], ("n",), "json") == "[]\n"
    assert render([{"n": True}], ("n",), "csv") == "n\ntrue\n"
