"""The parts of a run, in their order; each puts its lines or figures into the Run and may be left out."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.results import Spread
from common.traces import Trace

from gpu import bandwidth, continuous, kernel_checks, sanitizer, sizes, token_checks, trace, versus
from gpu.compare import said
from gpu.decoding import Decoding
from gpu.kernels import Kernels
from gpu.library import Build
from gpu.report import Report
from gpu.sizes import Weights, latents
from gpu.timing import Clock
from latentcot_export.checkpoint.random import random_tensors

CONTEXT, PASSES, ROUNDS = 512, 64, 5
DEPTHS = {3: Trace(3.4, 4), 5: Trace(5.0, 6)}  # mean depths of arXiv 2602.08220, from its FLOPs


class Run:
    """What the parts share. `tiny`: sizes for the emulation; `small`: few comparisons; `ends`: of time.monotonic.

    What they find goes into the report, which is published to the folder; None: nowhere.
    """

    def __init__(self, report: Report, emulate: bool, small: bool, ends: float, folder: Path | None) -> None:
        self.report, self.folder, self.ends = report, folder, ends
        self.lines, self.measured, self.details = report.lines, report.measured, report.details
        self.tiny, self.small, self.seed = emulate, small or emulate, int(report.head["seed"])
        self.device = torch.device("cpu" if emulate else "cuda")
        if emulate:
            torch.set_num_threads(1)  # the emulation is one thread, and a second one would only spin
        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("highest")  # 10 bits of a mantissa would move depths
        self.build = Build(emulate)
        self.clock = Clock(self.device)
        self._copy: Spread | None = None
        self._ops: Kernels | None = None
        self._layer: Any = None
        self._size: tuple[str, dict[str, torch.Tensor], Weights] | None = None

    @property
    def ops(self) -> Kernels:
        """The kernels; waits for their compilation."""
        if self._ops is None:
            self._ops = Kernels(self.build.library(), self.device)
            if self.build.seconds:
                self.details["build_seconds"] = self.build.seconds
        return self._ops

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    @property
    def copy(self) -> Spread:
        """GB/s of a copy, measured at the first use in this process."""
        if self._copy is None:
            given = (1 << 14, 3, 0.0) if self.tiny else (1 << 30, 100, 0.5)
            self._copy = Spread.of([each / 1e9 for each in bandwidth.copy_bandwidth(self.clock, *given)])
        return self._copy

    def size(self, name: str) -> tuple[Any, dict[str, torch.Tensor], Weights]:
        """The model of a size with its tensors, of which one is kept at a time; the router serves any depth."""
        model = (sizes.TINY if self.tiny else sizes.SIZES)[name]
        if self._size is None or self._size[0] != name:
            self._size = None
            self.free()
            tensors = sizes.random_on_device(model, latents(3), self.device, self.seed)
            weights = Weights.of(model, latents(3), tensors, self.device, torch.bfloat16)
            self._size = (name, _views(model, tensors, weights), weights)
        return model, self._size[1], self._size[2]

    def layer(self) -> Any:
        """The compiled layer of the baseline."""
        if self._layer is None:
            self._layer = versus.compiled_layer(self.device)
        return self._layer

    def publish(self) -> None:
        """Shows what has been found so far."""
        self.report.publish(self.folder)

    def free(self) -> None:
        """Gives back what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _views(model: Any, tensors: dict[str, torch.Tensor], weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors by name, matrices as views of the joined ones, so that nothing is there twice."""
    made = dict(tensors)
    for index, layer in enumerate(weights.layers):
        at = f"model.layers.{index}."
        for name, part in zip("qkv", layer.qkv.chunk(3), strict=True):
            made[f"{at}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
            made[f"{at}mlp.{name}_proj.weight"] = part
    return made


def check(key: str) -> Callable[[Run], None]:
    """A part that compares."""
    made: dict[str, Callable[[Run], Any]] = {
        "states": lambda run: kernel_checks.check_states(run.ops, run.small, run.seed),
        "contexts": lambda run: kernel_checks.check_contexts(run.ops, run.small, run.seed),
        "rows": lambda run: kernel_checks.check_rows(run.ops, run.small, run.seed),
        "tokens": lambda run: token_checks.check_tokens(run.ops, run.small, run.seed),
        "baselines": _baselines,
        "memcheck": lambda run: _sanitized(run, "memcheck"),
        "racecheck": lambda run: _sanitized(run, "racecheck"),
    }

    def part(run: Run) -> None:
        run.lines[key] = []
        for each in made[key](run):
            run.lines[key].append(each)
            print(f"{'ok  ' if each['passed'] else 'FAIL'} {each['check']} {each['why']}", file=sys.stderr)

    return part


def _baselines(run: Run) -> list[dict[str, Any]]:
    model, recurrence = sizes.TINY["1.4B"], latents(3)
    tensors = random_tensors(model, recurrence, run.seed)
    tokens = 3 if run.tiny else 24
    same = lambda: versus.check_same_tokens(model, recurrence, tensors, run.ops, tokens)  # noqa: E731
    return [kernel_checks.line("baselines, float32, one token on", same)]


def _sanitized(run: Run, tool: str) -> list[dict[str, Any]]:
    return [] if run.tiny else sanitizer.check(tool, run.left - 5, run.seed)


def attention(run: Run) -> None:
    """Copies, and attention beside them."""
    run.measured["copy"] = run.copy
    wanted = 1e9 * run.copy.median
    for head in (64, 128):
        for depth, key in ((1, f"attention/{head}"), (4, f"attention/{head}/steps")):
            shape = (2, 3, 70) if run.tiny else (16, 64, 4096)
            if run.tiny and depth > 1:
                depth = 2
            runs, warm = (2, 0.0) if run.tiny else (100, 0.2)
            time_of = bandwidth.attention(run.clock, run.ops, head, *shape, depth, runs, warm)
            rate = time_of.rate
            run.measured[key] = Spread(*(each / wanted for each in (rate.median, rate.low, rate.high)), rate.runs)
            run.free()


def passes(size: str) -> Callable[[Run], None]:
    """Time of a pass, batch 1 and 16."""

    def part(run: Run) -> None:
        run.details[f"pass/{size}/copy"] = run.copy
        for batch in (1, 16):
            decoding, count = _decoding(run, size, batch)
            times = [decoding.burst(count)[0] / count for _ in range(2 if run.tiny else 12)][1:]
            held, seen = decoding.weights.pass_bytes, decoding.cache_bytes(count)
            floor = (held + seen) / (1e6 * run.copy.median)
            key = f"pass/{size}/{batch}"
            run.measured[f"{key}/ms"] = Spread.of(times)
            run.measured[key] = Spread.of([each / floor for each in times])
            run.details[f"{key}/bytes"] = {"weights": held, "cache": seen}
            del decoding
            run.free()

    return part


def _decoding(run: Run, size: str, batch: int) -> tuple[Decoding, int]:
    """Sequences that decode, and the passes of a burst; the emulation has 2 sequences for 16."""
    model, _, weights = run.size(size)
    context, count = (9, 3) if run.tiny else (CONTEXT, PASSES)
    depths = DEPTHS[3].depths(min(batch, 2) if run.tiny else batch, context + count + 2)
    return Decoding(model, latents(3), weights, run.ops, context, depths), count


def waits(run: Run) -> None:
    """What the host does during a burst of 1.4B, and which kernels run, in the profiler's trace, which is kept."""
    found: list[trace.Traced] = []
    for batch in (16, 1):
        decoding, count = _decoding(run, "1.4B", batch)
        path = None if run.folder is None else run.folder / f"trace-1.4B-{batch}.json.gz"
        found.append(trace.traced_burst(decoding, count, path))
        run.details[f"waits/{batch}"] = {"calls": dict(found[-1].calls), "kernels": found[-1].kernels}
        del decoding
        run.free()
    if run.tiny or all(each.calls for each in found):  # of a trace without a single launch nothing is known
        run.measured["waits"] = float(max(trace.waits(each.calls) for each in found))


def against(size: str, count: int) -> Callable[[Run], None]:
    """Tokens a second beside the baselines, for so many latents."""

    def part(run: Run) -> None:
        model, tensors, weights = run.size(size)
        recurrence = latents(count)
        shape = (2, 6, 3) if run.tiny else (16, CONTEXT, 32)
        contest = versus.Contest(model, recurrence, tensors, weights, run.ops, DEPTHS[count], *shape)
        _rounds(run, contest, f"versus/{size}/{count}")
        run.publish()  # a compilation may fail, or take all the time that there is
        try:
            contest.add_compiled(run.layer())
        except Exception as error:
            failed(run, f"versus/{size}/{count}/compiled", error)
        else:
            _rounds(run, contest, f"versus/{size}/{count}")
        del contest
        run.free()

    return part


def _rounds(run: Run, contest: versus.Contest, key: str) -> None:
    told = contest.rounds(1 if run.tiny else ROUNDS)
    run.measured[f"{key}/ours"] = told["tokens_per_s"]["ours"]
    for name, short in (("compiled", "compiled"), ("oracle", "oracle"), ("static eager", "static")):
        if name in contest.others:
            run.measured[f"{key}/{short}"] = told[f"over {name}"]
    run.details[key] = told


def schedule(run: Run) -> None:
    """Depth-continuous batching against its ideal and lockstep."""
    model, _, weights = run.size("410M")
    tiny = continuous.Shape(2, 6, (2, 4), 2, spare=2, burst=3, full=3)
    shape = tiny if run.tiny else continuous.Shape(64, 512, (16, 112), 16)
    told = continuous.compare(model, latents(3), weights, run.ops, DEPTHS[3], shape)
    run.measured["continuous/ideal"] = float(told["efficiency"])
    run.measured["continuous/lockstep"] = float(told["over_lockstep"])
    run.measured["continuous/tokens"] = float(told["tokens_per_s"]["continuous"])
    run.details["continuous"] = told
    run.free()


# name, seconds that it may take on an H200 (a guess, to leave it out in time; what it took is in the report), what it does
PARTS: tuple[tuple[str, float, Callable[[Run], None]], ...] = (
    *((key, 25.0, check(key)) for key in ("states", "contexts", "rows", "tokens", "baselines")),
    ("attention", 15.0, attention),
    ("pass/1.4B", 15.0, passes("1.4B")),
    ("waits", 10.0, waits),
    ("versus/1.4B/3", 50.0, against("1.4B", 3)),
    ("continuous", 30.0, schedule),
    *((key, 40.0, check(key)) for key in sanitizer.TOOLS),
    ("versus/1.4B/5", 40.0, against("1.4B", 5)),
    ("pass/410M", 15.0, passes("410M")),
    ("versus/410M/3", 45.0, against("410M", 3)),
    ("versus/410M/5", 40.0, against("410M", 5)),
)


def failed(run: Run, part: str, error: Exception) -> None:
    """Tells what a part, or some of it, failed with."""
    traceback.print_exception(error)
    run.report.fail(part, said(error))
    print(f"{part}: {said(error)}", file=sys.stderr)


def take(run: Run, only: set[str]) -> None:
    """The parts named, as long as there is time; what a part fails with is told, and the next one begins."""
    for name, needs, part in PARTS:
        if name not in only:
            continue
        run.report.begin(name)
        if run.left < needs:
            told = f"left out, {max(0.0, run.left):.0f} s were left"
            run.report.leave_out(name, told)
            run.publish()
            print(f"{name}: {told}", file=sys.stderr)
            continue
        began = time.perf_counter()
        try:
            part(run)
        except Exception as error:  # whatever it is, other parts may still be measured
            failed(run, name, error)
        with contextlib.suppress(Exception):  # a device with a fault refuses this, too
            run.free()
        run.report.end(name, time.perf_counter() - began)
        run.publish()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
