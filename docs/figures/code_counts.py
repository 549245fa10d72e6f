"""The counts in docs/architecture.md: how long the parts are whose sum the pipelines are.

python docs/figures/code_counts.py           # writes them into docs/architecture.md
python docs/figures/code_counts.py --print   # prints them
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

import calotype
from calotype.core.files import write_text
from calotype.pipelines.pipeline import DiffusionPipeline

SOURCE = Path(calotype.__file__).parent
PAGE = Path(__file__).resolve().parents[1] / "architecture.md"
BEGIN, END = "<!-- counts: written by docs/figures/code_counts.py -->", "<!-- /counts -->"


def lines(path: Path) -> int:
    """Lines of a file or of all Python files under a folder, comments and docstrings included."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def declarations() -> dict[str, int]:
    """The public pipeline classes and how many lines each takes, without its docstring."""
    found = {}
    for path in sorted((SOURCE / "pipelines").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or node.name not in calotype.__all__:
                continue
            public = getattr(calotype, node.name)
            if (
                isinstance(public, type)
                and issubclass(public, DiffusionPipeline)
                and public is not DiffusionPipeline
            ):
                documented = (
                    node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
                )  # type: ignore[operator]
                found[node.name] = node.end_lineno - node.lineno + 1 - documented  # type: ignore[operator]
    return found


def loops() -> list[str]:
    """The functions outside the schedulers in which a scheduler takes a step."""

    def steps(path: Path) -> Iterator[str]:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                called = node.func if isinstance(node, ast.Call) else None
                if (
                    isinstance(called, ast.Attribute)
                    and called.attr == "step"
                    and "scheduler" in ast.unparse(called.value)
                ):
                    yield f"{path.relative_to(SOURCE)}: {function.name}"

    paths = (path for path in sorted(SOURCE.rglob("*.py")) if path.parent.name != "schedulers")
    return [found for path in paths for found in steps(path)]


def table() -> str:
    """All counts as Markdown."""
    classes = declarations()
    longest = max(classes, key=classes.__getitem__)
    middle = sorted(classes.values())[len(classes) // 2]
    rows = [
        ("functions in which a scheduler takes a step", ", ".join(f"`{one}`" for one in loops())),
        ("public pipeline classes", len(classes)),
        ("lines of such a class, median and most", f"{middle}, {classes[longest]} (`{longest}`)"),
    ]
    rows += [
        (f"lines of `families/{p.name}`", lines(p))
        for p in sorted((SOURCE / "families").glob("*.py"))
        if lines(p) > 100
    ]
    rows += [(f"lines of `{name}/` in all", f"{lines(SOURCE / name):,}") for name in PACKAGES]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


PACKAGES = ("diffusion", "families", "pipelines", "schedulers", "models", "nn")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the counts into the page on the architecture.")
    parser.add_argument("--print", action="store_true", help="print them instead")
    if parser.parse_args().print:
        print(table())
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}")
    print(PAGE)


if __name__ == "__main__":
    main()
