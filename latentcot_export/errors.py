"""Errors whose message is one sentence for the user: what is wrong, where, and what to do next."""

from __future__ import annotations


class LatentCoTError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it without a traceback."""


class InputError(LatentCoTError):
    """Wrong usage or an unusable input file (exit status 2)."""


class CheckFailed(LatentCoTError):
    """A check ran and did not hold (exit status 1)."""
