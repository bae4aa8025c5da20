"""Time on a device: by CUDA events, never by the host's clock; and bodies that are captured once and replayed."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable

import torch

Body = Callable[[], None]


class Clock:
    """Milliseconds of work of one device. Where it is the CPU of the emulation, by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def milliseconds(self, body: Body, runs: int, warm: int = 1, seconds: float = 0.0) -> list[float]:
        """One figure for each of `runs` calls; waits once, at the end.

        Before them come `warm` calls that do not count, and more until so many seconds have passed: clocks go up.
        """
        began = time.perf_counter()
        for _ in range(warm):
            body()
        while time.perf_counter() - began < seconds:
            body()
            self.wait()  # else the host would be many seconds ahead
        marks = [self.mark()]
        for _ in range(runs):
            body()
            marks.append(self.mark())
        return [self.between(one, other) for one, other in itertools.pairwise(marks)]

    def wait(self) -> None:
        """Waits for all that was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> torch.cuda.Event | float:
        """A moment of the device: when all that was launched so far has run."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, one: torch.cuda.Event | float, other: torch.cuda.Event | float) -> float:
        """Milliseconds from one mark to another; waits for the other."""
        if isinstance(one, float) or isinstance(other, float):
            return 1e3 * (other - one)  # type: ignore[operator]
        other.synchronize()
        return one.elapsed_time(other)


def captured(body: Body, device: torch.device) -> Body:
    """The body as one replayed CUDA graph; it runs twice before. On the CPU, the body itself."""
    if device.type != "cuda":
        return body
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        body()
        body()
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()  # what is collected within a capture would end it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay
