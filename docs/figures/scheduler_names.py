"""The tables of names in docs/schedulers.md, from the tables that the library itself reads.

python docs/figures/scheduler_names.py           # writes them into docs/schedulers.md
python docs/figures/scheduler_names.py --print   # prints them
"""

from __future__ import annotations

import argparse
from pathlib import Path

from calotype.core.files import write_text
from calotype.schedulers.samplers import ELSEWHERE, LEVELS, SAMPLERS, SPACINGS, STEPS

PAGE = Path(__file__).resolve().parents[1] / "schedulers.md"
BEGIN, END = "<!-- names: written by docs/figures/scheduler_names.py -->", "<!-- /names -->"


def tables() -> str:
    """Samplers, spacings, and what other programs have beyond them, as Markdown."""
    lines = [
        "| name | class | order | evaluations a step | fresh noise | when |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in SAMPLERS:
        order = "–" if row.order is None else row.order
        noise = "yes" if row.stochastic else "no"
        cells = (f"**{row.name}**", f"`{row.scheduler}`", order, row.evaluations, noise, row.when)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| spacing | also | options | which samplers take it |", "| --- | --- | --- | --- |"]
    for name, spacing in SPACINGS.items():
        also = ", ".join(f"`{alias}`" for alias in spacing.aliases)
        options = (
            ", ".join(f"`{key}={value!r}`" for key, value in spacing.options.items()) or "the model's own"
        )
        lines.append(f"| **{name}** | {also} | {options} | {_takers(name)} |")
    lines += ["", "| of other programs | nearest here |", "| --- | --- |"]
    lines += [f"| `{name}` | {nearest} |" for name, nearest in ELSEWHERE.items()]
    return "\n".join(lines)


def _takers(spacing: str) -> str:
    """Which samplers take a spacing, the shorter list of those that do and those that don't."""
    if spacing not in (*LEVELS, *STEPS, "Lu"):
        return "all"
    takes = [row.name for row in SAMPLERS if spacing in row.spacings]
    others = [row.name for row in SAMPLERS if spacing not in row.spacings]
    return f"all but {', '.join(others)}" if len(others) < len(takes) else ", ".join(takes)


def written(page: str) -> str:
    """The page with the tables between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the tables of scheduler names into the documentation."
    )
    parser.add_argument("--print", action="store_true", dest="show")
    if parser.parse_args().show:
        print(tables())
    else:
        write_text(PAGE, written(PAGE.read_text(encoding="utf-8")))
        print(PAGE)


if __name__ == "__main__":
    main()
