"""The lines of results/gpu.md: what is checked and what is measured, with what is asked of it, measured or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from common import results
from common.results import Check, Spread

NOT = "not measured"


@dataclasses.dataclass(frozen=True)
class Group:
    """Some comparisons that belong together."""

    key: str
    words: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A quantity; `limit` is a least value unless `most`, None: nothing is asked of it."""

    key: str
    words: str
    unit: str
    limit: float | None = None
    most: bool = False
    form: str = ".2f"


GROUPS = (
    Group("states", "state ops and attention, every rule, on random requests"),
    Group("contexts", "attention over long ragged contexts; decoding and prompts the same bits, a row alone too"),
    Group("rows", "AddNorm and GatedUnit"),
    Group("tokens", "tokens and depths of whole float32 passes against the float64 oracle"),
    Group("baselines", "the baselines choose the same tokens"),
    Group("memcheck", "compute-sanitizer memcheck, faults"),
    Group("racecheck", "compute-sanitizer racecheck, hazards"),
)
LATENTS = {3: "mean 3.4 of 4 steps", 5: "mean 5 of 6 steps"}


def _figures() -> tuple[Figure, ...]:
    found = [Figure("copy", "copy on the device, read and written", "GB/s", form=".0f")]
    for head in (64, 128):
        words = f"RaggedAttention decoding, batch 64, context 4096, 16 heads of {head}, bfloat16"
        found.append(Figure(f"attention/{head}", f"{words}, over the copy's bandwidth", "share", 0.7))
        found.append(Figure(f"attention/{head}/steps", "the same, 4 steps a position", "share"))
    for size in ("1.4B", "410M"):
        for batch in (1, 16):
            words = f"{size} bfloat16, batch {batch}, context 512: "
            limit = 1.6 if size == "1.4B" else None
            found.append(Figure(f"pass/{size}/{batch}/ms", f"{words}a pass", "ms", form=".3f"))
            found.append(
                Figure(f"pass/{size}/{batch}", f"{words}over its bytes at that bandwidth", "x", limit, most=True)
            )
        if size == "1.4B":
            found.append(
                Figure("waits", "1.4B, burst of 64 passes: host calls that wait or copy", "calls", 0, True, ".0f")
            )
        for latents, depths in LATENTS.items():
            at, words = f"versus/{size}/{latents}", f"{size}, batch 16, {depths}: tokens/s"
            found.append(Figure(f"{at}/ours", words, "t/s", form=".0f"))
            found.append(Figure(f"{at}/compiled", f"{words} over torch.compile, CUDA graphs", "x", 1.2))
            found.append(Figure(f"{at}/oracle", f"{words} over eager, step-major", "x", 5.0))
            found.append(Figure(f"{at}/static", f"{words} over eager, static cache", "x"))
    words = "410M, batch 64, backlog 512, mean 3.4 of 4 steps: "
    found.append(Figure("continuous/ideal", f"{words}share of the ideal", "share", 0.97, form=".3f"))
    found.append(Figure("continuous/lockstep", f"{words}tokens/s over lockstep", "x"))
    found.append(Figure("continuous/tokens", f"{words}tokens/s", "t/s", form=".0f"))
    return tuple(found)


FIGURES = _figures()
Measured = Mapping[str, Spread | float]
Lines = Mapping[str, Sequence[Mapping[str, Any]]]


def value_of(measured: Measured, key: str) -> float | None:
    """What is held against a limit: the median."""
    value = measured.get(key)
    return value.median if isinstance(value, Spread) else value


def failures(lines: Lines, key: str) -> int | None:
    """How many of a group did not pass; None: it did not run."""
    return sum(not each["passed"] for each in lines[key]) if lines.get(key) else None


def checks(lines: Lines, measured: Measured) -> list[Check]:
    """What the project asks of itself."""
    found: list[Check] = []
    for group in GROUPS:
        count = failures(lines, group.key)
        found.append(Check(f"{group.words}: failed", None if count is None else float(count), 0, most=True))
    for figure in FIGURES:
        if figure.limit is not None:
            found.append(Check(figure.words, value_of(measured, figure.key), figure.limit, figure.most))
    return found


def page(report: Mapping[str, Any], lines: Lines, measured: Measured) -> str:
    """gpu.md; `report` of common.results.begin, or without a machine where nothing has run.

    Of the emulation's figures it says only that they ran.
    """
    emulated = bool(report.get("emulated"))
    if "machine" in report:
        parts = [results.head("On a GPU", dict(report)), f"{report['gpu']}."]
    else:
        parts = [
            "# On a GPU",
            "`python benchmarks/gpu/run.py --table-only`",
            "No GPU was at hand: nothing here was measured.",
        ]
    parts += [
        "## Against the references",
        results.table([_group(group, lines) for group in GROUPS]),
        *[f"- {each['check']}: {each['why']}" for group in lines.values() for each in group if not each["passed"]],
        "## Figures",
        results.table([_figure(figure, measured, emulated) for figure in FIGURES]),
        "Median, and in brackets least and most. What each means: benchmarks/gpu/README.md.",
        *_missing(report.get("details", {})),
        results.checks_table(checks(lines, {} if emulated else measured)),
    ]
    return "\n\n".join(parts)


def _missing(details: Mapping[str, Any]) -> list[str]:
    """What was not measured, or not to its end, and why."""
    told = [f"- {part}: failed, {words}" for part, words in details.get("errors", {}).items()]
    told += [f"- {part}: {words}" for part, words in details.get("left_out", {}).items()]
    return ["\n".join(told)] if told else []


def _group(group: Group, lines: Lines) -> dict[str, Any]:
    failed, found = failures(lines, group.key), lines.get(group.key, ())
    if failed is None:
        return {"compared": group.words, "passed": NOT, "largest distance": NOT}
    distances = [each["distance"] for each in found if each["distance"]]
    far = f"{max(distances):.1e}" if distances else "none"
    return {"compared": group.words, "passed": f"{len(found) - failed} of {len(found)}", "largest distance": far}


def _figure(figure: Figure, measured: Measured, emulated: bool) -> dict[str, Any]:
    value = measured.get(figure.key)
    asked = "" if figure.limit is None else f"{'at most' if figure.most else 'at least'} {figure.limit:g}"
    shown = NOT if value is None else "ran, emulated" if emulated else f"{value:{figure.form}}"
    return {"figure": figure.words, "unit": figure.unit, "measured": shown, "asked": asked}
