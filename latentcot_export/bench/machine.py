"""What the figures were measured on, without names of hosts, users or folders; and the memory of this process."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from ..environment import cpu_name, memory_gib, usable_cores

_PACKAGES = ("latentcot-export", "onnxruntime", "onnxruntime-gpu", "numpy", "torch", "transformers")


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """`cpu`, usable logical `cores`, `threads` of each engine, the bundle's `device`, `memory_gib`, `os` and versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "device": device,
        "memory_gib": memory_gib(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def reset_peak() -> bool:
    """Starts the peak of resident memory anew; False where the system cannot, and the peak is the process's so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: the peak, see proc(5)
    except OSError:
        return False
    return True


def peak_rss_mib() -> float:
    """Most resident memory, MiB, of the whole process since `reset_peak`, or since it began where that is refused."""
    found = _status("VmHWM")
    if found is None:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there and KiB elsewhere
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found / 2**20


def rss_bytes() -> dict[str, int]:
    """Resident memory now, bytes: `all`, and of it `anonymous` and `file` (pages of mapped files). Linux only."""
    parts = {"all": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: _status(key) or 0 for name, key in parts.items()}


def _status(key: str) -> int | None:
    """A line of this process's status in bytes, None where there is no such thing."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
