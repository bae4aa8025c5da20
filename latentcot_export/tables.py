"""One set of rows, five spellings: what every verb that reports prints on stdout."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentcot_export.errors import InputError
from latentcot_export.strict_json import finite

FORMATS = ("table", "md", "csv", "json", "jsonl")
# Wider than any report of ours: a table that is cut to a terminal's width would lose data in a pipe.
_WIDTH = 400


def render(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], form: str = "table") -> str:
    """The rows as text that ends in a newline; a column that a row lacks is empty.

    `table` is for eyes and `md` for a README: numbers with four significant digits, `-` for what is missing. `csv` has
    a header line and full precision; `json` is one list and `jsonl` one object a line, both of whole rows whatever the
    `columns`. Non-finite floats are missing values everywhere (null). Errors: InputError for another format.
    """
    check_format(form)
    plain = [finite(dict(row)) for row in rows]
    if form == "json":
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in plain)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_exact(row.get(name)) for name in columns] for row in plain)
        return text.getvalue()
    cells = [[_short(row.get(name)) for name in columns] for row in plain]
    right = [_is_numeric([row.get(name) for row in plain]) for name in columns]
    return _markdown(columns, cells, right) if form == "md" else _table(columns, cells, right)


def check_format(form: str) -> None:
    """Refuse a format that `render` does not have. Errors: InputError that lists those it has."""
    if form not in FORMATS:
        raise InputError(f"-o is {form!r}, it must be one of {', '.join(FORMATS)}; choose one of these")


def _table(columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> str:
    table = Table(box=None, pad_edge=False, header_style="")
    for name, numeric in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a cell are no markup
    text = io.StringIO()
    Console(file=text, width=_WIDTH, color_system=None, force_terminal=False).print(table)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _markdown(columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> str:
    marks = ["---:" if numeric else "---" for numeric in right]
    lines = [list(columns), marks, *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _is_numeric(values: list[Any]) -> bool:
    there = [value for value in values if value is not None]
    return bool(there) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _exact(value)


def _exact(value: Any) -> str:
    """A value as text on one line without control characters, which could steer a terminal."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, allow_nan=False)
    return "".join(sign if sign.isprintable() else " " for sign in str(value))
