"""Proves that a bundle computes what the model of this package computes: gates, invariants, a report."""

from __future__ import annotations

from .report import COLUMNS, Divergence, Gate, Report
from .run import LEVELS, Progress, validate
from .tolerances import TOLERANCES, Tolerances, tolerances_of
from .weights import bundle_tensors

__all__ = [
    "COLUMNS",
    "LEVELS",
    "TOLERANCES",
    "Divergence",
    "Gate",
    "Progress",
    "Report",
    "Tolerances",
    "bundle_tensors",
    "tolerances_of",
    "validate",
]
