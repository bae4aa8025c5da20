"""`latentcot bench` as a function: measures a bundle, and gives the result in every format."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..bundle import Bundle
from ..bundle.manifest import POOLED
from ..errors import InputError
from ..runtime.device import check_device
from ..strict_json import finite
from ..tables import render
from .engines import BundleEngine, Engine
from .machine import machine
from .measure import measure
from .packed import PackedEngine
from .workload import Settings, Workload, check, parse_depth

SCHEMA_VERSION = 1
FORMATS = ("table", "md", "csv", "json", "jsonl")


def bench(bundle: Bundle, settings: Settings, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """The report of `bench -o json`: schema_version, machine, rows; and beside them `command` and `workload`.

    `workload` says where prompts and depths came from. Non-finite floats are None. Baselines need the `export` extra.
    Errors: InputError for settings that this bundle cannot run.
    """
    check(settings, bundle.manifest)
    check_device(bundle, settings.device)
    _check_installed(settings.baselines)
    workload = Workload(bundle, parse_depth(settings.depth, bundle.manifest.recurrence.max_steps))
    threads = settings.thread_count()
    engine = engine_of(bundle, settings.schedule, threads, settings.device)
    with contextlib.ExitStack() as stack:

        def build_baselines() -> list[Engine]:
            return stack.enter_context(_baselines(bundle, settings, threads)) if settings.baselines else []

        rows = measure(engine, build_baselines, workload, settings, progress)
    return finite(
        {
            "schema_version": SCHEMA_VERSION,
            "machine": machine(threads, settings.device),
            "rows": rows,
            "command": settings.command(bundle.folder.resolve().name),
            "workload": {"prompts": workload.source, "depth": settings.depth_name()},
        }
    )


def engine_of(bundle: Bundle, schedule: str, threads: int, device: str = "cpu") -> Engine:
    """The engine of the bundle's target on a device that `check_device` has passed."""
    if bundle.manifest.target in POOLED:
        return PackedEngine(bundle, schedule, threads, device)
    return BundleEngine(bundle, schedule, threads, device)


def _check_installed(baselines: Sequence[str]) -> None:
    """Errors: InputError for a missing package, told before minutes were spent on measuring."""
    engines = [name.partition("-")[0] for name in baselines]
    for name in ("torch", "onnx", "onnx_ir", "safetensors", *engines) if baselines else ():
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--baseline {','.join(baselines)} needs {name}, which is not installed; "
                "install it with `pip install '.[export]'` in a checkout of latentcot-export"
            )


@contextlib.contextmanager
def _baselines(bundle: Bundle, settings: Settings, threads: int) -> Iterator[list[Engine]]:
    """The baselines asked for, with torch at `threads` threads while they are in use."""
    import torch

    from .eager import TorchEngine

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engines: list[Engine] = []
        for name in settings.baselines:
            if name.startswith("torch"):
                schedule = settings.schedule if name == "torch" else "lockstep"
                engines.append(TorchEngine.of(bundle, schedule))
            else:
                from .stock import TransformersEngine

                engines.append(TransformersEngine.of(bundle))
        yield engines
    finally:
        torch.set_num_threads(before)


def text_of(report: dict[str, Any], style: str) -> str:
    """The report as text that ends in a newline, in one of FORMATS. csv has one column per number of a row."""
    rows: Sequence[dict[str, Any]] = report["rows"]
    if style == "json":
        return json.dumps({key: report[key] for key in ("schema_version", "machine", "rows")}, indent=2) + "\n"
    if style == "jsonl":
        return "".join(json.dumps({"schema_version": report["schema_version"], **row}) + "\n" for row in rows)
    lines = [_flat(row) if style == "csv" else _shown(row) for row in rows]
    return render(lines, list(lines[0]), style)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= {f"{key}_{part}": each for part, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: rounded, with units in the heading, as llama-bench prints it."""
    speed, mib = row["tokens_per_s"], 2**20
    return {
        "engine": row["engine"],
        "schedule": row["schedule"],
        "batch": row["batch"],
        "test": row["test"],
        "t/s": f"{_number(speed['mean'])} ± {_number(speed['std'])}",
        "passes/s": round(row["passes_per_s"]),
        "TTFT p50 / p99 ms": _pair(row["ttft_ms"]),
        "TPOT p50 / p99 ms": _pair(row["tpot_ms"]),
        "mean depth": row["mean_depth"],
        "occupancy": row["occupancy"],
        "KV / ideal MiB": f"{_number(row['kv_bytes_in_use'] / mib)} / {_number(row['kv_bytes_ideal'] / mib)}",
        "peak MiB": None if row["peak_rss_mib"] is None else round(row["peak_rss_mib"]),
    }


def _pair(values: dict[str, float | None]) -> str:
    return "-" if values["p50"] is None else f"{_number(values['p50'])} / {_number(values['p99'])}"


def _number(value: float | None) -> str:
    """Three decimals below 1, two below 100, one above; `-` for what is not known."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def summary(report: dict[str, Any]) -> list[str]:
    """Two lines on what the figures were measured with, for a terminal's standard error or below a table."""
    where, what = report["machine"], report["workload"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return [
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, {where['memory_gib']} GiB, "
        f"{where['os']}, Python {where['python']}, {versions}",
        f"{report['command']} (prompts: {what['prompts']}, depth: {what['depth']})",
    ]
