"""What the host did during a burst, and which kernels ran, of the profiler's trace."""

from __future__ import annotations

import dataclasses
import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gpu.decoding import Decoding
from latentcot_export.errors import LatentCoTError

BURST = "latentcot burst"
RUNTIME = ("cuda_runtime", "cuda_driver")
MOST_KERNELS = 15


@dataclasses.dataclass(frozen=True)
class Traced:
    """A burst: the host's calls by name, and the kernels with most time: `name`, `us` in all, `calls`."""

    calls: Counter[str]
    kernels: list[dict[str, Any]]


def calls_within(events: list[dict[str, Any]], name: str = BURST) -> Counter[str]:
    """Calls of the CUDA runtime and driver that began within the span `name`. Errors: LatentCoTError without one."""
    spans = [each for each in events if each.get("name") == name and each.get("cat") == "user_annotation"]
    if not spans:
        raise LatentCoTError(f"the profiler's trace has no span {name!r}; run it with a PyTorch that has Kineto")
    begin, end = float(spans[0]["ts"]), float(spans[0]["ts"]) + float(spans[0]["dur"])
    return Counter(each["name"] for each in events if each.get("cat") in RUNTIME and begin <= float(each["ts"]) <= end)


def waits(calls: Counter[str]) -> int:
    """How many of them wait for the device or copy between it and the host."""
    return sum(count for name, count in calls.items() if "Synchronize" in name or "Memcpy" in name)


def kernels_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels that took most of the device's time, all calls of a name together."""
    time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for each in events:
        if each.get("cat") == "kernel":
            time[each["name"]] += float(each["dur"])  # type: ignore[assignment]
            calls[each["name"]] += 1
    most = time.most_common(MOST_KERNELS)
    return [{"name": name[:300], "us": round(us, 1), "calls": calls[name]} for name, us in most]


def traced_burst(decoding: Decoding, passes: int, out: Path | None = None) -> Traced:
    """A burst of so many passes; its whole trace goes to `out`, gzipped."""
    decoding.burst(passes)  # what happens once has happened
    decoding.rewind()
    cuda = decoding.state.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        with torch.profiler.record_function(BURST):
            decoding.passes.burst(passes)
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        told = json.loads(path.read_text("utf-8"))
    told.pop("traceName", None)  # a path of this machine
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(gzip.compress(json.dumps(told).encode()))
    return Traced(calls_within(told["traceEvents"]), kernels_of(told["traceEvents"]))
