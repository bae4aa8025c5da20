"""Result files: a report as json and as md, with what it was measured on; and the statistics that are printed."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentcot_export.bench.machine import machine
from latentcot_export.bundle import files
from latentcot_export.strict_json import finite
from latentcot_export.tables import render

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROOT = RESULTS.parents[1]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A measured quantity over its runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, least and most of one or more values."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __format__(self, form: str) -> str:
        """Median and range, each in `form`."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclasses.dataclass(frozen=True)
class Check:
    """What was asked for and what was found; `limit` is a least value unless `most`. `value` None: not measured."""

    name: str
    value: float | None
    limit: float
    most: bool = False

    @property
    def passed(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.most else self.value >= self.limit

    def row(self) -> dict[str, Any]:
        """One line of the table of checks."""
        word = {None: "not measured", True: "yes", False: "no"}[self.passed]
        limit = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        return {"check": self.name, "measured": self.value, "asked": limit, "holds": word}


def begin(threads: int) -> dict[str, Any]:
    """The head of a report: schema_version, command, date, load before the run and the machine. No path in it."""
    words = [Path(sys.argv[0]).name, *(_bare(word) for word in sys.argv[1:])]
    return {
        "schema_version": 1,
        "command": shlex.join(["python", f"benchmarks/{words[0]}", *words[1:]]),
        "date": datetime.date.today().isoformat(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "machine": machine(threads),
    }


def _bare(word: str) -> str:
    """An argument without the folders of this machine."""
    option, equals, value = word.partition("=")
    path = Path(value if equals else word)
    if not path.is_absolute():
        return word
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return f"{option}={name}" if equals else name


def head(title: str, report: dict[str, Any]) -> str:
    """The first lines of a page."""
    where = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return "\n\n".join(
        [
            f"# {title}",
            f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, {where['memory_gib']} GiB, "
            f"{where['os']}, Python {where['python']}, {versions}",
            f"`{report['command']}`",
            f"{report['date']}, load before the run {report['load']}.",
        ]
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table of a page; columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return render(rows, columns, "md").rstrip("\n")


def checks_table(checks: Sequence[Check]) -> str:
    """The checks as a section of a page."""
    return "## Asked and found\n\n" + table([check.row() for check in checks])


def publish(name: str, folder: Path, report: dict[str, Any], page: str) -> None:
    """Writes name.json and name.md to `folder` and prints the page."""
    print(write(name, folder, report, page), end="")


def write(name: str, folder: Path, report: dict[str, Any], page: str) -> str:
    """name.json and name.md in `folder`, each whole or as it was; the page as it was written. Errors: InputError."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(report, default=_plain))
    text = page.rstrip("\n") + "\n"
    files.replace_file(folder / f"{name}.json", (json.dumps(finite(plain), indent=2) + "\n").encode())
    files.replace_file(folder / f"{name}.md", text.encode())
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Check):
        return {**dataclasses.asdict(value), "passed": value.passed}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    # numpy's numbers; a stranger must not lose what was measured beside it
    return value.item() if hasattr(value, "item") else str(value)


def refuse(error: Exception) -> None:
    """Ends the script with one sentence and status 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
