from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentcot_export.bundle import Bundle, open_bundle
from tests.bench.commands import ROOT

PARTS = ("gpu", "common")


@pytest.fixture(scope="session")
def bundle(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of the shared random bundle, because `latentcot bench` leaves its report in it."""
    return open_bundle(shutil.copytree(random_bundle, tmp_path_factory.mktemp("bench") / "bundle"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread, for seconds where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of benchmarks/ can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in {name for name in sys.modules if name.partition(".")[0] in PARTS} - before:
        del sys.modules[name]
