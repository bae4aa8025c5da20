"""What the host did during a burst, of the profiler's trace."""

from __future__ import annotations

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


def traced_burst(decoding: Decoding, passes: int) -> Counter[str]:
    """The host's calls during a burst of so many passes."""
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
        return calls_within(json.loads(path.read_text("utf-8"))["traceEvents"])
