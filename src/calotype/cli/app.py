"""The commands in one place."""

from __future__ import annotations

from typing import Annotated

import typer

from calotype.cli.check import check
from calotype.cli.generate import generate
from calotype.cli.info import info
from calotype.cli.schedulers import schedulers
from calotype.cli.show import show
from calotype.cli.train import train
from calotype.core.version import __version__

app = typer.Typer(
    name="calotype",
    help="Make pictures with diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(info)
app.command()(check)
app.command()(show)
app.command()(schedulers)
app.add_typer(train)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make pictures with diffusion models."""
