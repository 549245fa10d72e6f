"""From the start of a process to its first picture, and until its calls have settled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._gpu.bench import Bench
from benchmarks._gpu.report import OURS, REFERENCE, Measured

SIDE, STEPS = 512, 20
READY = 10_000
"""Milliseconds from the beginning of the first call to the end of the second, after which all are replayed."""
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
"""The variables that say where compiled kernels are kept; calotype keeps none elsewhere."""


def measure(bench: Bench, part: str) -> None:
    """Rows of the first picture and of settling, with an empty cache of kernels and with a filled one."""
    states = "no kernels kept", "kernels kept"
    pictures = [bench.report.row(part, f"First picture, {state}") for state in states]
    ready = [bench.report.row(part, f"Two calls, {state}", READY) for state in states]
    rows = [*pictures, *ready]
    enough = [bench.has(60, row) for row in rows]
    if not all(enough):
        return
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "model", Path(place) / "cache"
        bench.stock.pipeline(REFERENCE, False, "pndm").save_pretrained(folder)
        bench.timer.clear()
        for state, (who, library) in enumerate(
            ((REFERENCE, "diffusers"), (OURS, "calotype"), (OURS, "calotype")), -1
        ):
            at = [0, 1] if who == REFERENCE else [state]
            with bench.going_on(pictures[at[0]], who):
                one, both = process(bench, library, folder, cache)
                for index in at:
                    bench.report.add(pictures[index], who, one)
                    bench.report.add(ready[index], who, both)


def process(bench: Bench, library: str, folder: Path, cache: Path) -> tuple[Measured, Measured]:
    """One process: its first picture, and the time of its first two calls."""
    given = [
        str(bench.device), str(bench.stock.dtype).removeprefix("torch."), str(bench.sizes.side(SIDE)),
        str(bench.sizes.steps(STEPS)),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "HF_HUB_OFFLINE": "1",
        **{name: str(cache / name.lower()) for name in CACHES},
    }
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._gpu.first_picture", library, str(folder), *given],
        capture_output=True, text=True, env=environment, timeout=max(bench.left, 1),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"The process with {library} failed:\n{done.stderr}")
    return read(json.loads(done.stdout.splitlines()[-1]), started)


def read(said: dict[str, Any], started: float) -> tuple[Measured, Measured]:
    """The first picture since ``started`` and the first two calls, in ms, out of what a process said."""
    imported, loaded, made = said["imported"], said["loaded"], said["made"]
    first, second, third = ((end - start) * 1e3 for start, end in zip([loaded, *made], made, strict=False))
    memory = said.get("allocated"), said.get("reserved")
    whole, both = (made[0] - started) * 1e3, (made[1] - loaded) * 1e3
    picture = Measured(whole, whole, first, second, None, *memory)
    picture.more = {"imported": f"{imported - started:.2f} s", "loaded": f"{loaded - started:.2f} s"}
    picture.more |= {"third": f"{third:.0f}", "report": said["report"]}
    return picture, Measured(both, both, first, second)
