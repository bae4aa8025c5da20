"""A command in a session of its own, which ends together with everything that it has started there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


def finished(command: list[str], seconds: float, patience: float = 5.0, **given: Any) -> int | None:
    """Its status, negative for a signal; None: it was ended after so many seconds. `given`: see subprocess.Popen.

    `patience`: seconds that it has for its own end before it is killed.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **given)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also where this process is told to end
        if process.poll() is None:
            _end(process, patience)


def _end(process: subprocess.Popen[Any], patience: float) -> None:
    # terminated first: it may have sessions of its own to end
    for number, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # what hangs in a driver outlives even a kill, and is not waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
