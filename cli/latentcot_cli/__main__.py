"""`python -m latentcot_cli` is `latentcot`."""

from __future__ import annotations

from latentcot_cli.main import run

run()
