"""Ops are run eagerly here, many times."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def _plain_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of an export, torch.while_loop compiles its body; a Python loop is the same and takes no seconds."""

    def run(condition: Callable[..., torch.Tensor], body: Callable[..., tuple], carried: tuple) -> tuple:
        while condition(*carried):
            carried = body(*carried)
        return carried

    monkeypatch.setattr(torch, "while_loop", run)
