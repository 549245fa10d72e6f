"""Whole calls on one GPU, from the prompt to the picture, and where their time goes.

    python -m benchmarks.calls_gpu [--only one,sd15,sdxl] [--out FILE]   # also four, sd15x8, controlnet

Models of full size, text encoders included, with random weights in bfloat16. The first call of a process, the second
(which captures) and those after the third are told apart. A row of the second table is a model in one settled call:
when the host came to it and left it, and when the device began and ended, in ms after the call began.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._gpu.calls import CALLS, make
from benchmarks._gpu.sizes import FULL
from benchmarks._gpu.stock import Stock
from benchmarks._gpu.timing import Timer


@contextmanager
def watched(rows: list[Any]) -> Iterator[None]:
    """Within this, each call of a model leaves its name, times of the host and events of the device in ``rows``."""
    from calotype.acceleration.accelerated import Accelerated

    kind: Any = Accelerated
    plain = kind._run

    def run(self: Any, *args: Any) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        at = time.perf_counter()
        begin.record()
        found = plain(self, *args)
        end.record()
        rows.append((type(self.__dict__["_orig_mod"]).__name__, at, time.perf_counter(), begin, end))
        return found

    kind._run = run
    try:
        yield
    finally:
        kind._run = plain


def where_time_goes(run: Any) -> list[str]:
    """Lines of the second table, from one call."""
    rows: list[Any] = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    at = time.perf_counter()
    with watched(rows):
        run()
    end.record()
    torch.cuda.synchronize()
    whole = (time.perf_counter() - at) * 1e3
    lines = [f"  {'':28s} {'host from':>10s} {'to':>8s}   {'device from':>12s} {'to':>8s} {'ms':>8s}"]
    shown = rows if len(rows) <= 8 else [*rows[:5], *rows[-3:]]
    for name, begin, left, first, last in shown:
        one, two = start.elapsed_time(first), start.elapsed_time(last)
        lines.append(
            f"  {name:28s} {(begin - at) * 1e3:10.2f} {(left - at) * 1e3:8.2f}   "
            f"{one:12.2f} {two:8.2f} {two - one:8.2f}"
        )
    models = sum(first.elapsed_time(last) for *_, first, last in rows)
    lines.append(
        f"  the call {whole:.2f} ms, the device's {start.elapsed_time(end):.2f}, in models {models:.2f}, beside them "
        f"{whole - models:.2f}; {len(rows)} calls of models"
    )
    return lines


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description="Time whole calls on a GPU, from the prompt to the picture.")
    parser.add_argument("--only", default="one,sd15,sdxl", help=f"some of {', '.join(CALLS)}")
    parser.add_argument("--out", type=Path, help="a file for what acceleration says of the models")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in CALLS]:
        parser.error(f"there is no call {', '.join(unknown)}; there are {', '.join(CALLS)}")
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device.", file=sys.stderr)
        return 2
    import calotype

    device = torch.device("cuda")
    timer = Timer(device)
    stock = Stock({"calotype": calotype}, FULL, device, torch.bfloat16)
    lines, reports = [], []
    for name in names:
        call = CALLS[name]
        stock.drop(*(("unet", "controlnet") if call.xl else ("xl_unet", "text_encoder_2")))
        pipe = stock.pipeline("calotype", call.xl, call.scheduler, call.controlled)
        timer.clear()
        torch.cuda.reset_peak_memory_stats()
        given, count = call.given(FULL), 0

        def run(form: str = "pt", pipe: Any = pipe, call: Any = call, given: dict[str, Any] = given) -> Any:
            nonlocal count
            count += 1
            return make(pipe, call, given, count, form)

        first, second = timer.wall(run), timer.wall(run)
        timer.wall(run)
        settled = timer.walls(run, 4.0, 9, 30)
        pil = timer.walls(partial(run, "pil"), 0.0, 5, 5)
        lines.append(
            f"{call.what}: first {first:.0f} ms, second {second:.0f}, settled {statistics.median(settled):.1f} "
            f"(best {min(settled):.1f} of {len(settled)}), as PIL {statistics.median(pil):.1f}; "
            f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
        )
        lines += where_time_goes(run)
        reports.append(f"{call.what}\n{pipe.acceleration.report() if pipe.acceleration else 'off'}")
        del pipe, run
    if options.out is not None:
        options.out.write_text("\n\n".join([*reports, *lines]) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
