"""A report of `inspect` as text: sections for eyes and for a README, one fact a line for a table program, or JSON."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from latentcot_export.tables import check_format, render

_Section = tuple[str, list[str], list[dict[str, Any]]]  # title, columns, rows
_WIDTH = 100


def text_of(report: dict[str, Any], form: str) -> str:
    """The report as text that ends in a newline, `form` one of the formats of `tables.render`.

    `csv` has the columns section, name, value. Errors: InputError for another format.
    """
    check_format(form)
    if form == "json":
        return json.dumps(report, indent=2, allow_nan=False) + "\n"
    if form == "jsonl":
        return json.dumps(report, allow_nan=False) + "\n"
    if form == "csv":
        return render(_flat(report), ["section", "name", "value"], "csv")
    words = filter(None, (report["recurrence_words"], report.get("prefill_words"), report["backbone_words"]))
    told = "\n\n".join(each if form == "md" else textwrap.fill(each, _WIDTH) for each in words)
    parts = [f"{'# ' if form == 'md' else ''}{_heading(report)}\n\n{told}\n"]
    for title, columns, rows in _sections(report):
        heading = f"## {title}\n" if form == "md" else title
        parts.append(f"{heading}\n{_indented(render(rows, columns, form), form)}")
    if report.get("graph_note"):
        parts.append(f"{report['graph_note']}\n")
    return "\n".join(parts)


def _heading(report: dict[str, Any]) -> str:
    name = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in report["name"])
    return f"{report['kind']} {name}"


def _indented(text: str, form: str) -> str:
    return text if form == "md" else "".join(f"  {line}\n" for line in text.splitlines()[1:])


def _facts(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name.replace("_", " "), "value": _plain(value)} for name, value in facts.items()]


def _plain(value: Any) -> Any:
    """Numbers with separators, lists and maps in one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    return value


def _sections(report: dict[str, Any]) -> Iterator[_Section]:
    pair = ["name", "value"]
    single = ("family", "target", "dtype", "quantize", "opset", "prefill", "digest")
    yield "Identity", pair, _facts({name: report[name] for name in single if name in report})
    for title, key in (
        ("Recurrence", "recurrence"),
        ("Model", "model"),
        ("Parameters", "parameters"),
        ("Elements by dtype", "elements_by_dtype"),
        ("Weights", "weights"),
        ("Cache", "cache"),
        ("Special tokens", "tokens"),
        ("Keys of config.json", "config_keys"),
    ):
        if key in report:
            yield title, pair, _facts(report[key])
    graph = report.get("graph")
    if graph:
        facts = ("ir_version", "producer", "opsets", "initializers")
        yield "Graph", pair, _facts({name: graph[name] for name in facts})
        columns = ["name", "dtype", "axes"]
        yield "Inputs", columns, _grouped(graph["inputs"])
        yield "Carried from call to call (each comes back as NAME_out)", columns, _grouped(graph["carried"])
        carried = {f"{each['name']}_out" for each in graph["carried"]}
        others = [each for each in graph["outputs"] if each["name"] not in carried]
        if others:
            yield "Other outputs", columns, _grouped(others)
        yield "Operators", ["count", "names"], _by_count(graph["operators"])
    if "tensors" in report:
        rows = [_tensor(each) | {"used": each["used"]} for each in report["tensors"]]
        yield "Tensors", ["name", "dtype", "axes", "bytes", "used"], rows
    files = [{"name": name, **entry} for name, entry in report["files"].items()]
    yield "Files", ["name", "size", "sha256"], files
    for title, key in (("Reports", "reports"), ("Source", "source"), ("Built with", "built_with")):
        if key in report:
            yield title, pair, _facts(report[key])


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    return tensor | {"axes": f"[{', '.join(map(str, tensor['axes']))}]"}


def _grouped(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for tensors that differ in the number at the end of their name only: the caches of all layers."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for each in map(_tensor, tensors):
        groups.setdefault((re.sub(r"\d+$", "", each["name"]), each["dtype"], each["axes"]), []).append(each["name"])
    return [
        {"name": names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", "dtype": dtype, "axes": axes}
        for (_, dtype, axes), names in groups.items()
    ]


def _by_count(operators: dict[str, int]) -> list[dict[str, Any]]:
    names: dict[int, list[str]] = {}
    for name, count in operators.items():
        names.setdefault(count, []).append(name)
    return [{"count": count, "names": ", ".join(some)} for count, some in names.items()]


def _flat(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for section, content in report.items():
        facts = content if isinstance(content, dict) else {"": content}
        for name, value in facts.items():
            where = f"{section}.{name}".rstrip(".")
            if isinstance(value, list) and value and isinstance(value[0], dict):
                tensors = map(_tensor, value)
                rows += [{"section": where, "name": t["name"], "value": f"{t['dtype']} {t['axes']}"} for t in tensors]
            else:
                rows.append({"section": section if name else "", "name": name or section, "value": value})
    return rows
