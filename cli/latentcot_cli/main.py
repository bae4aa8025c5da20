"""The app: finds verbs, imports the one that is asked for, and turns every end into an exit status and one sentence.

0 good, 1 a check failed, 2 wrong usage or unusable input. stdout is data; sentences go to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from latentcot_export.errors import CheckFailed, InputError, LatentCoTError
from latentcot_export.strict_json import shortened, shown

NAME = "latentcot"
# One line each, so that `latentcot --help` imports none of them.
VERBS = {
    "export": "Write a bundle of a checkpoint, ending with a quick validation.",
    "init": "Make an adaptive checkpoint of a stock Llama one, halting at once.",
    "validate": "Hold a bundle against the PyTorch oracle, depths first.",
    "bench": "Measure tokens per second, latencies, occupancy and cache bytes.",
    "generate": "Run a bundle on prompts, showing the depth of every token.",
    "inspect": "Show what a bundle or checkpoint is and holds.",
    "convert": "Turn a decider published as a pickle into safetensors.",
    "env": "Show what a bug report needs to know of this machine.",
}
# What the `export` extra installs; running a bundle needs none of it.
EXTRA = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "transformers")
_LONGEST_SENTENCE = 2000
# What a shell reports for a program that SIGINT or SIGPIPE ended.
_INTERRUPTED, _BROKEN_PIPE = 130, 141

DEBUG_HELP = "Show the traceback of an error (also: LATENTCOT_DEBUG=1)."
_debug = False


def _wants_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


def _takes_debug(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the option --debug, which may thus stand before or behind the verb's name."""
    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(False, "--debug", help=DEBUG_HELP, show_default=False),
        annotation=bool,
    )

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        _wants_debug(values.pop("debug"))
        verb(**values)

    wrapped: Any = command
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])
    wrapped.__annotations__ = {name: each.annotation for name, each in wrapped.__signature__.parameters.items()}
    del wrapped.__wrapped__  # else typer would read the signature of the verb itself
    return command


class Verbs(TyperGroup):
    """The group of verbs, each imported from the module of its name when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, in the order in which one meets them."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a verb. Errors: InputError for a name that is none."""
        if cmd_name not in VERBS:
            raise InputError(f"{shown(cmd_name)} is no verb of {NAME}; the verbs are {', '.join(VERBS)}")
        module = importlib.import_module(f"latentcot_cli.{cmd_name}")
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        # Click leaves lines behind \b as they are.
        epilog = f"\b\n{module.EXAMPLE}" if hasattr(module, "EXAMPLE") else None
        one.command(cmd_name, epilog=epilog)(_takes_debug(getattr(module, cmd_name)))
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of verbs in `latentcot --help`."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **settings: Any) -> Any:
        """Run the command line `args` (default: that of the process) and exit with its status."""
        sys.exit(self._status(sys.argv[1:] if args is None else list(args)))

    def _status(self, args: list[str]) -> int:
        """The exit status of `args`; every error has been told on stderr."""
        global _debug
        _debug = os.environ.get("LATENTCOT_DEBUG", "") not in ("", "0")
        try:
            try:
                with self.make_context(NAME, args) as context:
                    self.invoke(context)
                status = 0
            except typer.Exit as end:
                status = end.exit_code
            # What is still in the buffer may not fit on the disk, and a reader may have gone.
            sys.stdout.flush()
            return status
        except (KeyboardInterrupt, typer.Abort):
            return _INTERRUPTED
        except BrokenPipeError:
            _silence(sys.stdout)
            return _BROKEN_PIPE
        except Exception as error:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()  # what was said before the error comes before it
            _tell(error, args)
            return 1 if isinstance(error, CheckFailed) else 2


def _tell(error: Exception, args: list[str]) -> None:
    """One line on stderr, behind the traceback when it is wanted."""
    try:
        if _debug:
            traceback.print_exception(error)
        print(f"error: {_one_line(_sentence(error, args))}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)
    if isinstance(error, OSError):  # perhaps stdout's own; what it could not write must not fail again at exit
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            return
        _silence(sys.stdout)


def _sentence(error: Exception, args: list[str]) -> str:
    if isinstance(error, LatentCoTError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's and click's own, whose classes moved between versions
        return _usage(error, args)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRA:
        return (
            f"this needs {error.name}, which is not installed; install it with `pip install '.[export]'` in a checkout of "
            "latentcot-export"
        )
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; use a smaller model, batch or length"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return f"{place}{error.strerror}; correct that and run it again"
    said = f": {shortened(str(error), 300)}" if str(error) else ""
    return f"unexpected {type(error).__name__}{said}; run it again with --debug and file an issue with what that prints"


def _usage(error: Any, args: list[str]) -> str:
    """A usage error of typer, which names the option, as the first half of a sentence of ours."""
    text = error.format_message().strip().rstrip(".")
    verb = next((arg for arg in args if arg in VERBS), None)
    return f"{text[:1].lower()}{text[1:]}; see `{NAME}{f' {verb}' if verb else ''} --help`"


def _one_line(text: str) -> str:
    """One line without anything that could steer a terminal; of a very long one the begin and the advice at the end."""
    line = " ".join(text.split())
    safe = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    half = _LONGEST_SENTENCE // 2 - 2
    return safe if len(safe) <= _LONGEST_SENTENCE else f"{safe[:half]}...{safe[-half:]}"


def _silence(stream: Any) -> None:
    """Let nothing more reach a stream that cannot be written, so that Python's own flush at exit is quiet."""
    with contextlib.suppress(OSError, ValueError):  # a test's stream has no file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _version(value: bool) -> None:
    if value:
        try:
            version = importlib.metadata.version("latentcot-export")
        except importlib.metadata.PackageNotFoundError:
            version = "(source tree)"
        print(f"{NAME} {version}")
        raise typer.Exit


app = typer.Typer(name=NAME, cls=Verbs, add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True, epilog=f"\b\nExample:\n  {NAME} VERB --help")
def _app(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", show_default=False, is_eager=True, callback=_version
    ),
    debug: bool = typer.Option(False, "--debug", help=DEBUG_HELP, show_default=False),
) -> None:
    """Export adaptive latent chain-of-thought models to ONNX bundles, prove them equal to PyTorch, run them."""
    _wants_debug(debug)
    if context.invoked_subcommand is None:
        print(context.get_help())


def run() -> None:
    """The entry point of the `latentcot` command."""
    for stream in (sys.stdout, sys.stderr):
        # Text that a terminal's encoding lacks is shown escaped instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name=NAME)
