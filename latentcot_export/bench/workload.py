"""What a benchmark runs: prompts, depths and the settings of `latentcot bench`, checked before anything is timed."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

import numpy as np

from ..bundle import Bundle, Manifest
from ..environment import usable_cores
from ..errors import InputError
from ..runtime import Tokenizer
from ..strict_json import parse, shown

SCHEDULES = ("continuous", "lockstep")
# torch-lockstep: whatever the bundle's schedule, a batch runs step 1 of a token, then step 2 of those that go on, and so on
BASELINES = ("torch", "torch-lockstep", "transformers")
HELDOUT = "heldout.txt"
SEED = 20260208  # of the random prompts; any number would do, it only has to stay the same
# A trace is read whole: 64 MiB hold some twenty million depths, more than any bench can run.
MAX_TRACE_BYTES = 64 << 20
# Held-out text is cut before the tokenizer sees it; 1 MiB is at least 60,000 tokens of any vocabulary in use.
MAX_TEXT_BYTES = 1 << 20
MAX_THREADS = 1024  # more stacks than that need gigabytes of address space, and no machine has the cores
_SETTLING_PROMPT, _SETTLING_TOKENS = 16, 2


@dataclasses.dataclass(frozen=True)
class Depths:
    """Depths to replay; `lines` empty: learned. Line s is for sequence s, entry t for position t, prompt first."""

    text: str = "learned"
    lines: tuple[tuple[int, ...], ...] = ()

    def table(self, batch: int, length: int) -> np.ndarray:
        """forced_depth int64 `[batch, length]`, 0 = learned; lines and entries repeat when there are too few."""
        if not self.lines:
            return np.zeros((batch, length), np.int64)
        lines = [self.lines[s % len(self.lines)] for s in range(batch)]
        return np.stack([np.resize(np.asarray(line, np.int64), length) for line in lines])


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts int64 `[B, P]` of one length, and forced_depth int64 `[B, T]`, T - 1 the most tokens that are run."""

    prompts: np.ndarray
    forced_depth: np.ndarray

    def tokens(self) -> np.ndarray:
        """int64 `[B, T]`: the prompts, then -1 for every token that is still to be chosen."""
        tokens = np.full(self.forced_depth.shape, -1, np.int64)
        tokens[:, : self.prompts.shape[1]] = self.prompts
        return tokens

    @property
    def new(self) -> int:
        """Most tokens that can be run after the prompts."""
        return self.forced_depth.shape[1] - 1 - self.prompts.shape[1]

    def short(self) -> Batch:
        """A cheap run of the same kind, to be discarded after a switch between engines."""
        prompts = self.prompts[:, :_SETTLING_PROMPT]
        return Batch(prompts, self.forced_depth[:, : prompts.shape[1] + _SETTLING_TOKENS + 1])


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of `latentcot bench`. Lengths are tokens, `threads` 0 means OMP_NUM_THREADS or every usable core."""

    prompt: int = 128
    new: int = 64
    batches: tuple[int, ...] = (1, 8, 16)
    depth: str = "learned"
    schedule: str = "continuous"
    baselines: tuple[str, ...] = ()
    runs: int = 5
    warmup: int = 1
    threads: int = 0
    device: str = "cpu"

    def command(self, bundle: str) -> str:
        """The command line that repeats this, with names of files in place of their paths."""
        words = [
            "latentcot bench",
            shlex.quote(bundle),
            f"-p {self.prompt} -n {self.new}",
            f"-b {','.join(map(str, self.batches))}",
        ]
        words += [f"--depth {shlex.quote(self.depth_name())} --schedule {self.schedule}"]
        words += [f"--baseline {','.join(self.baselines)}"] if self.baselines else []
        words += [f"--device {self.device}"] if self.device != "cpu" else []
        return " ".join([*words, f"-r {self.runs} -w {self.warmup} --threads {self.thread_count()}"])

    def depth_name(self) -> str:
        """`depth`, a trace by the name of its file."""
        kind, colon, path = self.depth.partition(":")
        return f"{kind}:{Path(path).name}" if colon and kind == "trace" else self.depth

    def thread_count(self) -> int:
        """Threads that every engine gets."""
        told = os.environ.get("OMP_NUM_THREADS", "")
        return self.threads or (int(told) if told.isdecimal() and int(told) > 0 else usable_cores())


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,16` as numbers. Errors: InputError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 9 and int(word) > 0 for word in words):
        raise InputError(f"-b is {shown(text)}, it must be batch sizes with commas between; give for example -b 1,8")
    return tuple(map(int, words))


def parse_baselines(text: str) -> tuple[str, ...]:
    """`torch,transformers` as names, each once; an empty text means none. Errors: InputError."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in BASELINES:
            known = ", ".join(BASELINES)
            raise InputError(f"--baseline {shown(name)} is unknown; give some of {known}, with commas between")
    return names


def check(settings: Settings, manifest: Manifest) -> None:
    """Errors: InputError for settings that cannot be run with this bundle."""
    for option, value, least in (
        ("-p", settings.prompt, 0),
        ("-n", settings.new, 0),
        ("-r", settings.runs, 1),
        ("-w", settings.warmup, 0),
        ("--threads", settings.threads, 0),
    ):
        if value < least:
            raise InputError(f"{option} is {value}, it must be at least {least}; give a larger number")
    if settings.threads > MAX_THREADS:
        raise InputError(f"--threads is {settings.threads}, the limit is {MAX_THREADS}; give the number of cores")
    if not settings.prompt and not settings.new:
        raise InputError("-p 0 skips the prompt test and -n 0 the generation test, so nothing is left; raise one")
    if settings.schedule not in SCHEDULES:
        raise InputError(f"--schedule is {shown(settings.schedule)}; give {' or '.join(SCHEDULES)}")
    cache = manifest.cache
    length = max(settings.prompt, 1) + settings.new
    if length > cache.max_seq_len:
        raise InputError(
            f"-p {settings.prompt} and -n {settings.new} need {length} positions and this bundle was exported for "
            f"{cache.max_seq_len}; lower them, or export with a larger --max-seq-len"
        )
    listed = ",".join(map(str, settings.batches))
    if not settings.batches or min(settings.batches) < 1:
        raise InputError(f"-b is {shown(listed)}, it must be batch sizes from 1; give for example -b 1,8")
    if max(settings.batches) > cache.max_batch:
        raise InputError(
            f"-b {listed} exceeds the {cache.max_batch} sequences this bundle was exported for; "
            "lower it, or export with a larger --max-batch"
        )


def parse_depth(text: str, max_steps: int) -> Depths:
    """`learned`, `fixed:K` or `trace:FILE` with depths from 1 to `max_steps`. Errors: InputError."""
    kind, _, rest = text.partition(":")
    if text == "learned":
        return Depths()
    if kind == "fixed":
        if not rest.isascii() or not rest.isdecimal() or len(rest) > 9 or not 1 <= int(rest) <= max_steps:
            raise InputError(
                f"--depth {shown(text)} must be fixed:K with K from 1 to {max_steps}, the most steps of this model; "
                f"give for example fixed:{max_steps}"
            )
        return Depths(text, ((int(rest),),))
    if kind == "trace" and rest:
        return Depths(text, read_trace(Path(rest), max_steps))
    raise InputError(f"--depth is {shown(text)}; give learned, fixed:K or trace:FILE")


def read_trace(path: Path, max_steps: int) -> tuple[tuple[int, ...], ...]:
    """A trace file: one JSON list of depths per line, one line a sequence. Errors: InputError that names the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TRACE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"the depth trace {shown(str(path))} cannot be read ({reason}); check its name") from None
    if len(raw) > MAX_TRACE_BYTES:
        raise InputError(f"the depth trace {path} is larger than {MAX_TRACE_BYTES >> 20} MiB; give a shorter one")
    remedy = f"write one list of depths from 1 to {max_steps} per line"
    lines = []
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n"), 1):
        where = f"the depth trace {path}, line {number},"
        depths = parse(line, where, None, remedy)
        if not isinstance(depths, list) or not depths:
            raise InputError(f"{where} is {shown(depths)} and not a list of depths; {remedy}")
        for depth in depths:
            if type(depth) is not int or not 1 <= depth <= max_steps:
                raise InputError(f"{where} holds {shown(depth)} and not a depth of this model; {remedy}")
        lines.append(tuple(depths))
    return tuple(lines)


def heldout_ids(bundle: Bundle) -> np.ndarray | None:
    """Token ids int64 `[N]` of the bundle's held-out text; None without it or a tokenizer. Errors: InputError."""
    tokenizer = Tokenizer.of(bundle)
    if tokenizer is None or HELDOUT not in bundle.manifest.files:
        return None
    text = bundle.read_bytes(HELDOUT)[:MAX_TEXT_BYTES].decode("utf-8", errors="ignore")
    ids = np.asarray(tokenizer.encode(text), np.int64)
    return ids[ids < bundle.manifest.model.vocab_size]


class Workload:
    """The prompts of one bench: windows of held-out text, evenly spread; without text, seeded random ids.

    Sequence s of a batch is the same in every run and for every engine, so that all of them do the same work.
    """

    def __init__(self, bundle: Bundle, depths: Depths) -> None:
        text = heldout_ids(bundle)
        self.depths, self.vocab_size = depths, bundle.manifest.model.vocab_size
        self.ids = text if text is not None and len(text) else None

    @property
    def source(self) -> str:
        """Where the prompts come from: HELDOUT or `random ids`."""
        return "random ids" if self.ids is None else HELDOUT

    def batch(self, size: int, prompt: int, new: int) -> Batch:
        """`size` prompts of `prompt` tokens (at least 1), with room to run and choose `new` tokens more."""
        length = max(prompt, 1)
        if self.ids is None:
            prompts = np.random.default_rng(SEED).integers(0, self.vocab_size, (size, length), dtype=np.int64)
        else:
            starts = np.arange(size) * len(self.ids) // size
            prompts = self.ids[(starts[:, None] + np.arange(length)) % len(self.ids)]
        return Batch(prompts, self.depths.table(size, length + new + 1))
