"""How long importing takes: fresh processes, taken in turn, and the medians of several rounds.

    python -m benchmarks.imports [--rounds 5]

The time is that of the import statement alone, after the interpreter has started; files are in the page cache.
"""

from __future__ import annotations

import argparse

from benchmarks._side_by_side import Row, machine, median, print_table, run_python

LINES = {
    "import {}": "import {}",
    "from {} import StableDiffusionPipeline": "from {} import StableDiffusionPipeline",
    "from {} import EulerDiscreteScheduler": "from {} import EulerDiscreteScheduler",
    "from {}.utils import load_image": "from {}.utils import load_image",
}

MEASURE = """
import json, sys, time
start = time.perf_counter()
exec(sys.argv[1])
print(json.dumps(time.perf_counter() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the import of calotype and of the reference.")
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    lines = [line.format(library) for line in LINES.values() for library in ("diffusers", "calotype")]
    heaviest = LINES["from {} import StableDiffusionPipeline"]
    for library in ("diffusers", "calotype"):  # compiles bytecode and warms the page cache
        run_python(MEASURE, heaviest.format(library))
    taken: dict[str, list[float]] = {line: [] for line in ["import torch", *lines]}
    for nth in range(rounds):
        for line, values in taken.items():
            values.append(run_python(MEASURE, line))
            print(f"{nth + 1} of {rounds}: {line}: {values[-1]:.3f} s", flush=True)
    seconds = {line: median(values) for line, values in taken.items()}
    rows = [
        Row(what.format("…"), seconds[line.format("diffusers")], seconds[line.format("calotype")])
        for what, line in LINES.items()
    ]
    torch_alone = seconds["import torch"]
    above = seconds[heaviest.format("calotype")] - torch_alone
    print_table(
        "imports",
        rows,
        [
            f"{rounds} fresh process(es) a line, their median; {machine(1)}",
            f"import torch alone: {torch_alone:.3f} s; calotype's StableDiffusionPipeline adds {above:.3f} s",
        ],
    )


if __name__ == "__main__":
    main()
