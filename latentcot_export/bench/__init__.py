"""Benchmarks of a bundle: llama-bench's rows, beside the eager oracle and `transformers`, at any depth distribution."""

from __future__ import annotations

from .report import FORMATS, bench, summary, text_of
from .workload import BASELINES, SCHEDULES, Settings, parse_baselines, parse_batches

__all__ = [
    "BASELINES",
    "FORMATS",
    "SCHEDULES",
    "Settings",
    "bench",
    "parse_baselines",
    "parse_batches",
    "summary",
    "text_of",
]
