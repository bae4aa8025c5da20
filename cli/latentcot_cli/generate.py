"""`latentcot generate`: text or token ids in, text, ids and depths out."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from latentcot_cli.terminal import byte_bar
from latentcot_export.errors import InputError
from latentcot_export.strict_json import shown

if TYPE_CHECKING:
    from latentcot_export.runtime import GenerateOutput, Generation, StreamEvent

EXAMPLE = """\
Examples:
  latentcot generate build/latentcot-tiny -p "A list is a mutable sequence" -n 64 --show-depth
  latentcot generate build/latentcot-tiny --ids 1,5,9 --temperature 0.8 --top-p 0.95 --seed 7 -o json
"""
_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
# xterm colours from cold to hot, readable on dark and on light ground
_SCALE = (33, 37, 71, 178, 208, 196)
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def generate(
    bundle: str = typer.Argument(..., metavar="BUNDLE", help="Folder that `latentcot export` wrote."),
    prompt: list[str] = typer.Option([], "-p", "--prompt", metavar="TEXT", help="Text to go on from; may be repeated."),
    ids: list[str] = typer.Option([], "--ids", metavar="1,5,9", help="Token ids instead, behind all texts of a batch."),
    new_tokens: int | None = typer.Option(
        None, "-n", "--max-new-tokens", metavar="N", help="Most new tokens of a sequence [default: 64 or what fits]."
    ),
    temperature: float = typer.Option(0.0, metavar="T", help="0 is greedy, about 1 samples."),
    top_k: int = typer.Option(0, metavar="K", help="Sample from the K most probable tokens; 0: from all."),
    top_p: float = typer.Option(1.0, metavar="P", help="Sample from the most probable tokens of mass P; 1: from all."),
    seed: int = typer.Option(0, metavar="S", help="Seed of each sequence: the same prompt gives the same tokens."),
    show_depth: bool = typer.Option(
        False, "--show-depth", help="Colour each token by the passes taken before it.", show_default=False
    ),
    stop: list[str] = typer.Option([], metavar="TEXT", help="Text that ends a sequence; may be repeated."),
    ignore_eos: bool = typer.Option(False, "--ignore-eos", help="Go on after the end of text.", show_default=False),
    threads: int = typer.Option(0, help="Of ONNX Runtime; 0: OMP_NUM_THREADS or all cores."),
    device: str = typer.Option(
        "cpu", metavar="cpu|cuda", help="What runs it; cuda: targets ort, tensorrt, tensorrt-rtx."
    ),
    cache_slots: int | None = typer.Option(
        None,
        "--cache-slots",
        metavar="N",
        help="(token, step) pairs the cache holds; target ort [default: the bundle's].",
    ),
    form: str = typer.Option("table", "-o", "--output", metavar="table|json", help="The text as it comes, or JSON."),
) -> None:
    """Continue texts or token ids; Ctrl-C ends it with what there is."""
    if form not in ("table", "json"):
        raise InputError(f"-o is {shown(form)}, generate writes table or json; give one of these")
    prompts: list[str | list[int]] = [*prompt, *map(_parse_ids, ids)]
    if not prompts:
        raise InputError("no prompt was given; give -p TEXT or --ids 1,5,9")
    from latentcot_export.bundle import open_bundle
    from latentcot_export.runtime import LatentCoTForCausalLM

    with byte_bar("verifying") as progress:
        opened = open_bundle(bundle, progress)
    model = LatentCoTForCausalLM(opened, threads, cache_slots=cache_slots, device=device)
    generation = model.stream(
        prompts,
        new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    if temperature == 0 and (top_k or top_p != 1 or seed):
        print("note: temperature 0 is greedy, so --top-k, --top-p and --seed change nothing", file=sys.stderr)
    recurrence = model.manifest.recurrence
    printer = _Printer(len(prompts), recurrence.max_steps, recurrence.runs_on, show_depth) if form == "table" else None
    started = time.perf_counter()
    interrupted = _drain(generation, printer)
    seconds = time.perf_counter() - started
    result = generation.output()
    if printer is None:
        print(json.dumps(result.to_json()))
    else:
        printer.finish()
        print(_summary(result, seconds), file=sys.stderr)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)


def _drain(generation: Generation, printer: _Printer | None) -> bool:
    """Runs to the end; True when Ctrl-C came before it."""
    try:
        for event in generation:
            if printer is not None:
                printer.take(event)
    except KeyboardInterrupt:
        return True
    return False


def _parse_ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.removeprefix("-").isdecimal() and part.isascii() and len(part) < 20 for part in parts):
        raise InputError(f"--ids is {shown(text)}; give token ids with commas between them, such as 1,5,9")
    return [int(part) for part in parts]


def _summary(result: GenerateOutput, seconds: float) -> str:
    """One line about a run: counts, speed, mean depth of what was run."""
    count = sum(map(len, result.ids))
    depths = [depth for each in result.depths for depth in each]
    mean = sum(depths) / len(depths) if depths else 0.0
    stops = ", ".join(sorted(set(result.stop)))
    return f"{count} tokens in {seconds:.2f} s, mean depth {mean:.2f} with the prompt, stopped by {stops}"


class _Printer:
    """Writes tokens to stdout: at once for one sequence, else each one when it and those before it are done."""

    def __init__(self, count: int, max_steps: int, runs_on: bool, show_depth: bool) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._colour = self._console.color_system is not None and not self._console.no_color
        self._max_steps, self._runs_on, self._show_depth = max_steps, runs_on, show_depth
        self._count, self._next = count, 0
        self._waiting: list[list[StreamEvent]] = [[] for _ in range(count)]
        self._begun = False
        if show_depth:
            self._legend()

    def take(self, event: StreamEvent) -> None:
        """One more token of any sequence."""
        self._waiting[event.sequence].append(event)
        if self._count == 1:
            self._write(self._waiting[0])
            return
        while self._next < self._count and self._waiting[self._next] and self._waiting[self._next][-1].stop:
            self._close(self._next)

    def finish(self) -> None:
        """Ends the line; writes what sequences that were interrupted have so far."""
        if self._count == 1:
            print()
        while self._count > 1 and self._next < self._count:
            self._close(self._next)

    def _close(self, index: int) -> None:
        print(f"--- sequence {index} ---")
        self._write(self._waiting[index])
        print()
        self._next, self._begun = index + 1, False

    def _write(self, events: list[StreamEvent]) -> None:
        for event in events:
            text = event.text
            if text is None:
                text = f",{event.token}" if self._begun else str(event.token)
            self._begun = True
            self._write_piece(_printable(text) if self._console.is_terminal else text, event.depth)
        events.clear()
        sys.stdout.flush()

    def _write_piece(self, text: str, depth: int) -> None:
        if not self._show_depth:
            print(text, end="")
        elif self._colour:
            self._console.print(Text(text, style=self._style(depth)), end="")
        else:
            # before a line break, where the eye looks for it
            body = text.rstrip("\n")
            print(f"{body}{str(depth).translate(_SUBSCRIPTS)}{text[len(body) :]}", end="")

    def _style(self, depth: int) -> str:
        hottest = max(1, self._max_steps - 1)
        return f"color({_SCALE[min(depth - 1, hottest) * (len(_SCALE) - 1) // hottest]})"

    def _legend(self) -> None:
        """On stderr, so that stdout holds the text alone."""
        legend = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        if not self._colour:
            passes = "the number of passes the model took before it"
            halted = f"the step, of {self._max_steps} that all run, after which the token before it had halted"
            legend.print(f"after each token: {halted if self._runs_on else passes}")
            return
        line = Text("halted before each token after step:" if self._runs_on else "passes before each token:")
        for depth in range(1, self._max_steps + 1):
            line.append(f" {depth}", self._style(depth))
        legend.print(line)


def _printable(text: str) -> str:
    """Without the control characters that would steer a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)
