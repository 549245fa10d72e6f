"""What the command says: results on standard output, all else on standard error, errors as one sentence."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console

from calotype.core import progress
from calotype.core.errors import CalotypeError, InputError

P = ParamSpec("P")
R = TypeVar("R")

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def stderr() -> Console:
    """The console for everything that is not a result; without colours where they are not wanted."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def redraws(console: Console) -> bool:
    """Whether a line on this console can be drawn again, as progress bars do."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Within the block the library's own progress bars are drawn only where a line can be drawn again."""
    before = progress.shown()
    progress.show(before and redraws(stderr()))
    try:
        yield
    finally:
        progress.show(before)


def say(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def fail(message: str, code: int) -> NoReturn:
    """End the command with a sentence on standard error."""
    console = stderr()
    console.print("Error: ", style="bold red", end="")
    console.print(message)
    raise typer.Exit(code)


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Errors of a command become one sentence and an exit code: 2 for bad input, 1 otherwise, 130 for Ctrl-C.

    With ``CALOTYPE_DEBUG=1`` in the environment the traceback is shown instead.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            say("Stopped. What was finished is kept; nothing is half-written.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if os.environ.get("CALOTYPE_DEBUG", "0") not in ("", "0"):
                raise
            fail(_sentence(error), USAGE if isinstance(error, InputError) else FAILURE)

    return run


def _sentence(error: Exception) -> str:
    """What to tell a user about an exception."""
    if isinstance(error, CalotypeError | OSError):
        return str(error)
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return "the memory is not enough: try a smaller --width and --height, or --dtype float16."
    return f"{name}: {error} (CALOTYPE_DEBUG=1 shows where it happened)"
