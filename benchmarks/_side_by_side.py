"""What the benchmarks share: fresh processes taken in turn, and one kind of table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("diffusers", "calotype")


@dataclass(frozen=True)
class Row:
    """One measurement: what, the reference's value and ours; less is better."""

    what: str
    reference: float
    calotype: float
    unit: str = "s"


def run_python(code: str, *arguments: str, **environment: str) -> Any:
    """What a fresh interpreter that runs ``code`` prints as its last line, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
    )
    if done.returncode:
        raise RuntimeError(f"A measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(code: str, arguments: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Any]]:
    """The results of ``rounds`` runs for each key, taken in turn so that the machine's moods meet all alike."""
    results: dict[str, list[Any]] = {key: [] for key in arguments}
    for _ in range(rounds):
        for key, values in arguments.items():
            results[key].append(run_python(code, *values))
    return results


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def print_table(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """The rows with both values and how many times the reference takes ours."""
    width = max([len(row.what) for row in rows] + [len(title)])
    print(f"\n{title:<{width}}  {'reference':>12}  {'calotype':>12}  {'ratio':>7}")
    for row in rows:
        reference, ours = (f"{value:.3f} {row.unit}" for value in (row.reference, row.calotype))
        print(f"{row.what:<{width}}  {reference:>12}  {ours:>12}  {row.reference / row.calotype:>6.1f}x")
    for note in notes:
        print(f"  {note}")


def machine(threads: int) -> str:
    """The processor and the number of threads, for the notes of a table."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name
            )
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores, {threads} torch threads, Python {platform.python_version()}"
