"""What a run has found so far: begun, read back, added to by part, and published whole at any time."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from common import results
from common.results import Spread

from gpu import library, table
from latentcot_export.errors import InputError

NAME = "gpu.json"
HEAD = ("schema_version", "command", "date", "load", "machine", "gpu", "seed", "emulated", "library")


@dataclasses.dataclass
class Report:
    """`head` as in HEAD; lines and figures by part, details, and the `parts` that have come to their end."""

    head: dict[str, Any]
    lines: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    measured: dict[str, Spread | float] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def new(cls, seed: int, emulated: bool) -> Report:
        """One with nothing in it."""
        head = results.begin(os.cpu_count() or 1)
        head["command"] = head["command"].replace("benchmarks/run.py", "benchmarks/gpu/run.py")
        name = library.library_path(emulated).name
        return cls(head | {"gpu": gpu_words(emulated), "seed": seed, "emulated": emulated, "library": name})

    @classmethod
    def read(cls, path: Path) -> Report:
        """A published one. Errors: InputError."""
        try:
            told = json.loads(path.read_text("utf-8"))
            head = {name: told[name] for name in HEAD}
            figures = told["figures"]
            if isinstance(figures, list):  # of the emulation, whose figures have no values
                figures = dict.fromkeys(figures, 0.0)
            measured = {
                key: Spread(**each) if isinstance(each, dict) else each
                for key, each in figures.items()
                if each is not None
                and (not isinstance(each, dict) or None not in each.values())  # no number: no figure
            }
            return cls(head, told["lines"], measured, told["details"], told["parts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no report of a run ({error}); give the gpu.json of one") from None

    def other(self, new: Report) -> str:
        """What keeps results of `new` out of this report, as words; empty: nothing, they are of the same run."""
        keys = ("seed", "gpu", "emulated", "library")
        pairs = [(key, self.head[key], new.head[key]) for key in keys]
        machines = self.head["machine"], new.head["machine"]
        pairs += [(key, *(each[key] for each in machines)) for key in ("cpu", "python", "versions")]
        return "; ".join(f"its {key} is {one}, here it is {two}" for key, one, two in pairs if one != two)

    def begin(self, part: str) -> None:
        """Forgets what an earlier run of the part has left."""
        self.lines.pop(part, None)
        for key in [key for key in self.measured if key == part or key.startswith(f"{part}/")]:
            del self.measured[key]
        for kind in ("errors", "left_out"):
            told = self.details.get(kind, {})
            for key in [key for key in told if key == part or key.startswith(f"{part}/")]:
                del told[key]
            if not told:
                self.details.pop(kind, None)
        if part in self.parts:
            self.parts.remove(part)

    def end(self, part: str, seconds: float) -> None:
        """The part has come to its end, whether it failed or not."""
        self.parts.append(part)
        self.details.setdefault("seconds", {})[part] = round(seconds, 1)

    def fail(self, part: str, words: str) -> None:
        """The part, or some of it, could not be done; of one that compares, that is a comparison that failed."""
        self.details.setdefault("errors", {})[part] = words
        if part in {group.key for group in table.GROUPS}:
            failed = {"check": part, "compared": "", "distance": None, "passed": False, "why": words}
            self.lines.setdefault(part, []).append(failed)

    def leave_out(self, part: str, words: str) -> None:
        """The part was not begun."""
        self.details.setdefault("left_out", {})[part] = words

    @property
    def status(self) -> int:
        """1: something failed or did not agree."""
        failed = sum(table.failures(self.lines, group.key) or 0 for group in table.GROUPS)
        return 1 if failed or self.details.get("errors") else 0

    def page(self) -> str:
        """gpu.md."""
        return table.page({**self.head, "details": self.details}, self.lines, self.measured)

    def publish(self, folder: Path | None) -> None:
        """Writes gpu.json and gpu.md to the folder; None: nothing."""
        if folder is None:
            return
        emulated = self.head["emulated"]
        told = {name: self.details[name] for name in ("errors", "left_out") if name in self.details}
        report = {
            **self.head,
            "parts": self.parts,
            "lines": self.lines,
            "figures": sorted(self.measured) if emulated else self.measured,
            "details": told if emulated else self.details,
            "checks": table.checks(self.lines, {} if emulated else self.measured),
        }
        results.write("gpu", folder, report, self.page())


def gpu_words(emulate: bool) -> str:
    """What the figures are of."""
    import torch

    if emulate:
        return "The emulation of CUDA on the CPU, tiny sizes; the times of this page mean nothing"
    told: Any = torch.cuda.get_device_properties(0)
    memory = told.total_memory / 2**30
    return f"{told.name}, {told.multi_processor_count} multiprocessors, {memory:.0f} GiB, CUDA {torch.version.cuda}"
