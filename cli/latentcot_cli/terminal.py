"""What the verbs say on stderr while they work: bars only on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Tell the stages of a long work: a spinner with the present one on a terminal, one line each elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: print(f"{stage} ...", file=sys.stderr, flush=True)
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(Text(stage))


@contextlib.contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of (bytes done, bytes in all) on a terminal, None elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
