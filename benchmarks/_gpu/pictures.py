"""From a prompt to pictures by whole pipelines: the reference and calotype, with the same weights and noise."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._gpu.bench import Bench
from benchmarks._gpu.calls import CALLS, Call, make
from benchmarks._gpu.report import OURS, REFERENCE, Measured, Row
from benchmarks._gpu.timing import RATE, error, middle, operations
from calotype.acceleration import accelerated

PLAIN = "calotype without acceleration"
MOST = {REFERENCE: (2.0, 2, 10), OURS: (2.5, 3, 30), PLAIN: (2.0, 2, 5)}
"""Seconds of settled calls, and at least and at most how many."""


def measure(bench: Bench, part: str, name: str) -> None:
    """The row of one call."""
    call = CALLS[name]
    row = bench.report.row(part, call.what, call.aim)
    if bench.has(call.needs, row):
        with bench.going_on(row, REFERENCE):
            _measure(bench, row, call)


def _measure(bench: Bench, row: Row, call: Call) -> None:
    given, found = call.given(bench.sizes), dict[str, Tensor]()
    reference = pipeline(bench, call, REFERENCE)
    row.floor = floor(reference, call, given)
    right = precise(bench, reference, call, given)
    for who in (REFERENCE, OURS, *[PLAIN] * bench.mechanisms):
        if who != REFERENCE and not bench.has(call.needs / 4, row, who):
            continue
        with bench.going_on(row, who):
            pipe = reference if who == REFERENCE else pipeline(bench, call, OURS)
            if who == PLAIN:
                pipe.acceleration = None
            one, found[who] = measured(bench, who, pipe, call, given)
            one.error = error(found[who][:1], right)
            if who != REFERENCE and REFERENCE in found:
                one.more["apart"] = f"{error(found[who], found[REFERENCE]):.1e}"
            bench.report.add(row, who, one)


def pipeline(bench: Bench, call: Call, who: str) -> Any:
    return bench.stock.pipeline(who, call.xl, call.scheduler, call.controlled)


def models_of(pipe: Any) -> list[nn.Module]:
    return [one for one in pipe.components.values() if isinstance(one, nn.Module)]


def floor(pipe: Any, call: Call, given: dict[str, Any]) -> float:
    """The milliseconds that the operations take at least, from those of two and of three steps."""
    two, three = (
        operations(partial(make, pipe, call, {**given, "num_inference_steps": steps})) for steps in (2, 3)
    )
    return (two + (given["num_inference_steps"] - 2) * (three - two)) / RATE * 1e3


def precise(bench: Bench, pipe: Any, call: Call, given: dict[str, Any]) -> Tensor:
    """The first picture as the reference's models make it in float32 out of the same noise, of the same type."""
    draws, side = torch.Generator(bench.device).manual_seed(0), given["height"] // 8
    latents = torch.randn(
        call.pictures, 4, side, side, generator=draws, device=bench.device, dtype=bench.stock.dtype
    )
    try:
        pipe.to(torch.float32)
        found: Tensor = make(
            pipe, call, {**given, "num_images_per_prompt": 1}, generator=draws, latents=latents[:1].float()
        )
        return found.cpu()
    finally:
        pipe.to(bench.stock.dtype)
        bench.timer.clear()


def measured(bench: Bench, who: str, pipe: Any, call: Call, given: dict[str, Any]) -> tuple[Measured, Tensor]:
    """Times of one pipeline, and what it makes of the first prompt once its calls have settled."""
    timer, models = bench.timer, models_of(pipe)
    for model in models:
        accelerated.forget(model)
    peak, count = bench.peak(models), 0

    def run() -> Tensor:
        nonlocal count
        count += 1
        found: Tensor = make(pipe, call, given, at=count)
        return found

    first, second = timer.wall(run), timer.wall(run)
    if who == OURS:
        timer.wall(run)  # what is captured at the second call is settled from here on
    times = timer.walls(run, *MOST[who])
    found: Tensor = make(pipe, call, given).cpu()
    one = Measured(middle(times), min(times), first, second, None, *peak.gib())
    one.more["calls"] = len(times)
    if who == OURS and pipe.acceleration:
        one.more["report"] = pipe.acceleration.report()
    for model in models:
        accelerated.forget(model)
    return one, found
