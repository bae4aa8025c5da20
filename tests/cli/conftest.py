"""One exported bundle for all tests of the command line: an export takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.sample import adaptive
from tests.cli.terminal import latentcot


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of 4 steps; not to be changed."""
    return adaptive(tmp_path_factory.mktemp("checkpoint") / "random").folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, made by `latentcot export`; not to be changed."""
    out = tmp_path_factory.mktemp("bundle") / "random"
    result = latentcot("export", checkpoint, out, "--no-validate", "--max-seq-len", 48, "--max-batch", 8)
    assert result.exit_code == 0, result.output
    return out
