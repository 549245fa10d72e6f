"""What was measured: lines as they come, a table with aims at the end, and a file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REFERENCE, OURS, COMPILED = "reference", "calotype", "reference, compiled"
MOST_ERROR = 1.2
"""Times the reference's own error."""
MOST_MEMORY = 1.1
"""Times the reference's peak."""


@dataclass
class Measured:
    """Of one library or variant: times in ms, the error against float32, and peaks of memory in GiB."""

    middle: float
    best: float
    first: float | None = None
    second: float | None = None
    error: float | None = None
    allocated: float | None = None
    reserved: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One piece of work; times in ms."""

    part: str
    what: str
    aim: float | None = None
    floor: float | None = None
    found: dict[str, Measured] = field(default_factory=dict)
    missing: str = ""
    """Why something was not measured."""

    def value(self, name: str, who: str) -> float | None:
        """What is known of a library or variant."""
        found: float | None = getattr(self.found[who], name) if who in self.found else None
        return found

    def ratio(self, name: str, of: str = OURS, to: str = REFERENCE) -> float | None:
        """One value of ``of`` over that of ``to``."""
        above, below = self.value(name, of), self.value(name, to)
        return above / below if above is not None and below else None

    @property
    def verdict(self) -> str:
        """Whether all aims that there are were met, and which ones not."""
        if OURS not in self.found:
            return self.missing or "not measured"
        limits = {
            "time": (self.found[OURS].middle, self.aim),
            "error": (self.ratio("error"), MOST_ERROR),
            "memory": (self.ratio("allocated"), MOST_MEMORY),
            "reserved": (self.ratio("reserved"), MOST_MEMORY),
        }
        known = {
            name: value <= limit
            for name, (value, limit) in limits.items()
            if value is not None and limit is not None
        }
        missed = [name for name, met in known.items() if not met]
        found = f"missed: {', '.join(missed)}" if missed else "met" if known else "-"
        return f"{found} ({self.missing})" if self.missing else found


def shown(value: float | None, form: str = ",.1f", width: int = 9) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def line(what: str, who: str, one: Measured) -> str:
    """What is printed as soon as something has been measured."""
    more = "".join(f"  {name} {value}" for name, value in one.more.items() if name != "report")
    return (
        f"{what:34s} {who:30s} {shown(one.first, ',.0f')} {shown(one.second, ',.0f')} "
        f"{shown(one.middle, ',.2f', 10)} {shown(one.best, ',.2f', 10)} {shown(one.error, '.2e')} "
        f"{shown(one.allocated, '.2f', 7)} {shown(one.reserved, '.2f', 7)}{more}"
    )


HEAD = (
    f"{'':34s} {'':30s} {'1st, ms':>9s} {'2nd':>9s} {'median':>10s} {'best':>10s} {'error':>9s} "
    f"{'GiB':>7s} {'held':>7s}"
)


def table(rows: list[Row]) -> list[str]:
    """The summary: ratios are calotype's value over the reference's, times the reference's over calotype's."""
    width = max([len(row.what) for row in rows], default=0)
    compiled = any(COMPILED in row.found for row in rows)
    names = ["floor", "reference", *["compiled"] * compiled, "calotype", "best", "faster", "aim"]
    lines = [
        " ".join([f"{'ms':{width}s}", *(f"{name:>9s}" for name in names)])
        + f" {'error':>6s} {'memory':>6s} {'held':>6s}  met?"
    ]
    for row in rows:
        cells = [shown(row.floor), shown(row.value("middle", REFERENCE))]
        cells += [shown(row.value("middle", COMPILED))] * compiled
        cells += [shown(row.value("middle", OURS)), shown(row.value("best", OURS))]
        cells += [shown(row.ratio("middle", REFERENCE, OURS), ".2f")]
        cells += [shown(row.aim, ",.0f")]
        cells += [shown(row.ratio(name), ".2f", 6) for name in ("error", "allocated", "reserved")]
        lines.append(f"{row.what:{width}s} {' '.join(cells)}  {row.verdict}")
    lines.append(
        f"error, memory and what PyTorch held of it: calotype's over the reference's (eager); aims {MOST_ERROR}, "
        f"{MOST_MEMORY} and {MOST_MEMORY}"
    )
    return lines


class Report:
    """Rows and notes; each is printed as it comes, and the file holds all of them at any time."""

    def __init__(self, out: Path | None, about: dict[str, Any]) -> None:
        self.out, self.about = out, about
        self.rows: list[Row] = []
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.failed = False

    def row(self, part: str, what: str, aim: float | None = None) -> Row:
        self.rows.append(Row(part, what, aim))
        return self.rows[-1]

    def add(self, row: Row, who: str, one: Measured) -> None:
        row.found[who] = one
        self.say(line(row.what, who, one))

    def say(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)
        self.write()

    def note(self, text: str) -> None:
        """Something longer, beside the tables."""
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)
        self.write()

    def fail(self, what: str, trace: str) -> None:
        self.failed = True
        self.note(f"{what} failed:\n{trace}")

    def write(self) -> None:
        if self.out is None:
            return
        rows = [{**asdict(row), "verdict": row.verdict} for row in self.rows]
        found = {**self.about, "rows": rows, "lines": self.lines, "notes": self.notes}
        beside = self.out.with_name(self.out.name + ".part")
        beside.write_text(json.dumps(found, indent=1))
        os.replace(beside, self.out)
