"""What TensorRT and TensorRT for RTX say while they work."""

from __future__ import annotations

from typing import Any


def listener(library: Any, complaints: list[str]) -> Any:
    """A logger of the library that keeps what went wrong and is silent otherwise."""

    class Listener(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(message)

    return Listener()
