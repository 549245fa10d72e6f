"""``calotype check``: whether a model's files are whole, sound and what they say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calotype.cli import console

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@console.plainly
def check(
    model: Annotated[str, typer.Argument(help="A folder, a Hub repository, or 'pocket'.")] = "pocket",
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not read every weight for NaN and infinity.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a model's files: configurations, classes, links, the weights' headers, names, shapes and values.

    Everything is checked, also after the first error. The exit status is 1 if there is an error.
    """
    from calotype.pipelines import checking

    folder = checking.folder_of(model)
    findings = list(checking.check(folder, numbers=not fast))
    errors = sum(finding.level == checking.ERROR for finding in findings)
    if as_json:
        content = {"model": model, "folder": str(folder), "errors": errors}
        console.print_json({**content, "findings": [asdict(finding) for finding in findings]})
    else:
        table = Table(title=f"{model}: {folder}", title_justify="left")
        for column in ("part", "", "what was found"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            table.add_row(
                finding.where, f"[{_STYLES[finding.level]}]{finding.level}[/]", _plain(finding.text)
            )
        Console().print(table)
        console.say(f"Errors: {errors}." if errors else "No errors.")
    if errors:
        raise typer.Exit(console.FAILURE)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
