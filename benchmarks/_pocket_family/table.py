"""Measures and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number about a member, and what it has to be at least (or at most) to be good; without a bar it is shown."""

    member: str
    name: str
    value: float
    unit: str
    detail: str = ""
    bar: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "met": self.met}


def share(member: str, name: str, right: Sequence[bool], bar: float | None = None, what: str = "") -> Measure:
    """The percentage of true values."""
    count, total = sum(bool(value) for value in right), len(right)
    percent = 100 * count / max(1, total)
    return Measure(member, name, percent, "%", f"{count} of {total}{what and ' ' + what}", bar)


def mean(member: str, name: str, values: Sequence[float], unit: str, bar: float | None = None) -> Measure:
    """The mean of values, with their lowest tenth beside it."""
    ordered = sorted(float(value) for value in values)
    tenth = ordered[len(ordered) // 10]
    average = sum(ordered) / len(ordered)
    return Measure(member, name, average, unit, f"{len(ordered)}, a tenth < {tenth:.2f}", bar)


def lines(measures: Sequence[Measure]) -> list[str]:
    """The table, a row a measure."""
    rows = [("member", "measure", "value", "of", "bar", "")]
    for one in measures:
        sign = "<=" if one.at_most else ">="
        digits = 1 if one.unit == "%" else 3 if one.unit == "" else 2
        rows.append(
            (
                one.member,
                one.name,
                f"{one.value:.{digits}f} {one.unit}".strip(),
                one.detail,
                "" if one.bar is None else f"{sign} {one.bar:g}",
                "" if one.met is None else "yes" if one.met else "NO",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    shown = []
    for row in rows:
        cells = [
            cell.rjust(width) if i == 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        shown.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join("-" * (w + 1) + ("-:"[i == 2]) for i, w in enumerate(widths)) + "|"
    return [shown[0], rule, *shown[1:]]
