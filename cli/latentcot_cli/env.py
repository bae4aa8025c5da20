"""`latentcot env`: what a bug report needs to know."""

from __future__ import annotations

import typer

EXAMPLE = """\
Example:
  latentcot env -o md          # to paste into an issue
"""


def env(
    form: str = typer.Option("table", "-o", "--output", metavar="table|md|csv|json|jsonl", help="Format on stdout."),
    json: bool = typer.Option(False, "--json", help="The same as -o json.", show_default=False),
) -> None:
    """Show versions, processor, memory and thread settings; no name of host, user or folder is among them."""
    from latentcot_export.environment import environment, text_of

    print(text_of(environment(), "json" if json else form), end="")
