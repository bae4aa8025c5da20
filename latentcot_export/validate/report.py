"""What a validation found, as values, as JSON and as rows of a table.

In every gate `worst` and `limit` are in the unit that gates.py and invariants.py state for it. A divergence names the
sequence (index among those read, or among the prompts), the token position in it (0-based, prompt included) and the
step (1-based): the step after which a halting decision differs, or else the one whose logits differ.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from latentcot_export.bundle import Bundle, write_report
from latentcot_export.strict_json import finite
from latentcot_export.tables import render

SCHEMA_VERSION = 1
COLUMNS = ("gate", "result", "compared", "mismatched", "excused", "worst", "limit", "first_divergence", "detail")


@dataclasses.dataclass(frozen=True, order=True)
class Divergence:
    """Where two runs part; ordered as they are read."""

    sequence: int
    token: int
    step: int

    def __str__(self) -> str:
        return f"sequence {self.sequence}, token {self.token}, step {self.step}"


@dataclasses.dataclass(frozen=True)
class Gate:
    """One check. `compared` and `mismatched` count what it compares, tokens unless its name says otherwise.

    `excused` near-ties are not among the mismatched. A skipped gate compared nothing and does not fail.
    """

    name: str
    passed: bool
    compared: int
    mismatched: int
    worst: float
    limit: float
    first_divergence: Divergence | None = None
    excused: int = 0
    skipped: bool = False
    detail: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, non-finite floats as null."""
        return finite(dataclasses.asdict(self))

    def row(self) -> dict[str, Any]:
        """The cells of `COLUMNS`."""
        result = "skipped" if self.skipped else "passed" if self.passed else "FAILED"
        first = None if self.first_divergence is None else str(self.first_divergence)
        own = {"gate": self.name, "result": result, "first_divergence": first}
        return {name: own.get(name, getattr(self, name, None)) for name in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Report:
    """All gates of one validation. `tokens` were compared teacher-forced; depths are those of the graph for them.

    bundle and checkpoint are names of folders, not paths, which would tell of the machine; source says in a few words
    which text or ids were read. `prefill` is how the bundle runs a prompt, and how the oracle ran it too.
    """

    bundle: str
    checkpoint: str
    target: str
    dtype: str
    level: str
    source: str
    tokens: int
    gates: tuple[Gate, ...]
    depth_histogram: tuple[int, ...]
    device: str = "cpu"
    prefill: str = "exact"
    quantize: str = "none"

    @property
    def passed(self) -> bool:
        """True when no gate failed."""
        return all(gate.passed for gate in self.gates)

    @property
    def mean_depth(self) -> float:
        """Steps per token; NaN when none ran."""
        total = sum(self.depth_histogram)
        return sum(d * n for d, n in enumerate(self.depth_histogram, 1)) / total if total else float("nan")

    @property
    def max_depth(self) -> int:
        """Most steps that a token took."""
        return max((d for d, n in enumerate(self.depth_histogram, 1) if n), default=0)

    def to_json(self) -> dict[str, Any]:
        """The document of `latentcot validate -o json` and of validation.json."""
        return finite(
            {
                "schema_version": SCHEMA_VERSION,
                "bundle": self.bundle,
                "checkpoint": self.checkpoint,
                "target": self.target,
                "dtype": self.dtype,
                "quantize": self.quantize,
                "device": self.device,
                "prefill": self.prefill,
                "level": self.level,
                "text": self.source,
                "tokens": self.tokens,
                "passed": self.passed,
                "gates": [gate.to_json() for gate in self.gates],
                "mean_depth": self.mean_depth,
                "max_depth": self.max_depth,
                "depth_histogram": list(self.depth_histogram),
            }
        )

    def summary(self) -> str:
        """Two lines for people: the verdict, and how deep the tokens thought."""
        failed = [gate.name for gate in self.gates if not gate.passed]
        ran = sum(not gate.skipped for gate in self.gates)
        verdict = f"FAILED: {', '.join(failed)}" if failed else f"all {ran} gates passed"
        total = max(1, sum(self.depth_histogram))
        on = "" if self.device == "cpu" else f", {self.device}"
        prefill = "" if self.prefill == "exact" else f", prompts run as {self.prefill}"
        shares = " / ".join(f"{100 * n / total:.0f}" for n in self.depth_histogram)
        kind = self.dtype if self.quantize == "none" else f"{self.quantize} beside {self.dtype}"
        return (
            f"{self.bundle} ({self.target}, {kind}{on}) against {self.checkpoint}, {self.tokens} tokens of "
            f"{self.source}{prefill}: {verdict}\n"
            f"mean depth {self.mean_depth:.2f}, deepest {self.max_depth}; depth 1, 2, ...: {shares} % of tokens\n"
            + ("ONNX Runtime ran the graph; the engine was not run\n" if self.target == "tensorrt-rtx" else "")
        )

    def text(self, form: str = "table") -> str:
        """The report in a format of `tables.FORMATS`: one row a gate, and as `json` the whole document.

        Errors: InputError for another format.
        """
        if form == "json":
            return json.dumps(self.to_json(), indent=2) + "\n"
        if form == "jsonl":
            return render((gate.to_json() for gate in self.gates), COLUMNS, form)
        rows = render((gate.row() for gate in self.gates), COLUMNS, form)
        return f"{rows}\n{self.summary()}" if form in ("table", "md") else rows

    def failure(self) -> str | None:
        """One sentence about the first gate that failed, None when all passed."""
        gate = next((gate for gate in self.gates if not gate.passed), None)
        if gate is None:
            return None
        where = "" if gate.first_divergence is None else f", first at {gate.first_divergence}"
        why = "" if gate.detail is None else f" ({gate.detail})"
        excused = f" and {gate.excused} near-ties were excused" if gate.excused else ""
        return (
            f"bundle {self.bundle} failed gate {gate.name}: {gate.mismatched} of {gate.compared} differ{excused}, "
            f"worst {gate.worst:.3g} where {gate.limit:.3g} is allowed{where}{why}; export it again and, if that "
            "is no help, file an issue with this report and `latentcot env`"
        )

    def save(self, bundle: Bundle) -> None:
        """Keep the report in the bundle as validation.json, atomically. Errors: InputError when that cannot be."""
        write_report(bundle, "validation.json", self.to_json())
