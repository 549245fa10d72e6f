"""``calotype schedulers``: the samplers by the names that people know, and when to choose each."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from calotype.cli import console
from calotype.schedulers.samplers import SAMPLERS, SPACINGS, Sampler

HEADINGS = ("name", "class", "order", "evaluations", "noise", "spacings", "when")


@console.plainly
def schedulers(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the schedulers by name, with when to choose each.

    A name may be followed by a spacing of the noise levels, as in `--scheduler "DPM++ 2M Karras"`. Names of other
    programs (k_euler_a, dpmpp_2m_sde_gpu, kdpm_2_k) and of classes (DDIMScheduler) are understood too.
    """
    if as_json:
        console.print_json({"samplers": [_entry(row) for row in SAMPLERS], "spacings": _spacings()})
    elif sys.stdout.isatty():
        _print_table()
    else:
        _print_plain()


def rows() -> list[tuple[str, ...]]:
    """The table as text: ``HEADINGS`` for every sampler."""
    return [
        (
            row.name,
            row.scheduler,
            "–" if row.order is None else str(row.order),
            str(row.evaluations),
            "fresh" if row.stochastic else "none",
            ", ".join(row.spacings) or "–",
            row.when,
        )
        for row in SAMPLERS
    ]


def _entry(row: Sampler) -> dict[str, Any]:
    return {
        "name": row.name,
        "class": row.scheduler,
        "options": dict(row.options),
        "order": row.order,
        "evaluations_per_step": row.evaluations,
        "stochastic": row.stochastic,
        "spacings": list(row.spacings),
        "when": row.when,
        "aliases": list(row.aliases),
        "for_flow_models": row.flow and row.flow[0],
        "for_edm_models": row.edm and row.edm[0],
    }


def _spacings() -> dict[str, Any]:
    return {
        name: {"options": dict(spacing.options), "aliases": list(spacing.aliases)}
        for name, spacing in SPACINGS.items()
    }


def _print_plain() -> None:
    """Columns of text, one line a sampler, for files and pipes."""
    table = [HEADINGS, *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    typer.echo("\n".join(line.rstrip() for line in lines))


def _print_table() -> None:
    """The same on a terminal, as wide as that is: the spacings stand below, since most samplers take them all."""
    from rich.console import Console
    from rich.table import Table

    shown = [i for i, heading in enumerate(HEADINGS) if heading not in ("class", "spacings")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i in shown:
        table.add_column(
            HEADINGS[i], no_wrap=HEADINGS[i] == "name", justify="right" if i in (2, 3) else "left"
        )
    for row in rows():
        table.add_row(*(row[i] for i in shown))
    out = Console(highlight=False, markup=False)
    out.print(table)
    out.print(
        f"\nSpacings that may follow a name: {', '.join(SPACINGS)}. --json tells which samplers take which."
    )
