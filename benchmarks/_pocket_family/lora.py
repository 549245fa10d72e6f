"""A shape that the bundled checkpoint never saw, taught by low-rank weights: is it drawn, and is nothing forgotten?"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._pocket_family.drawing import draw
from benchmarks._pocket_family.table import Measure, share
from benchmarks._pocket_family.tasks import NAMES, Bench
from benchmarks._pocket_family.world import as_tensor
from calotype.pipelines.bundled import locate
from calotype.pocket.finder import FOUND, evaluate_finder, find_shape
from calotype.pocket.judging import shares
from calotype.pocket.lesson import lesson_prompts
from calotype.pocket.prompts import prompts
from calotype.pocket.vocabulary import COLORS, FLOORS

SHAPE = "heart"
SHIPPED = f"pocket-lora-{SHAPE}"
READER_BARS = {"with one": 98.0, "without one": 98.0, "turned over": None}
"""Percent of fresh renders that the finder must read rightly; things on their heads, of which scenes have none, are
shown."""
DRAWN_BAR, LOST_BAR = 80.0, 3.0
"""Percent of pictures that must show the shape, and points that may be lost in what the checkpoint knew."""


def finder(bench: Bench) -> list[Measure]:
    """Who judges, on rendered pictures."""
    scenes = 4 * max(1, bench.options.renders // 2)
    read = evaluate_finder(bench.finder, bench.classifier, SHAPE, scenes)
    return [
        Measure(
            "judge",
            f"finder of {SHAPE}s, renders {name}",
            100 * right,
            "%",
            f"{scenes} in all",
            READER_BARS[name],
        )
        for name, right in read.items()
    ]


def shipped(bench: Bench) -> list[Measure]:
    """The weights that come with the package."""
    return finder(bench) + measured(bench, SHIPPED, locate(bench.options.place(SHIPPED)))


def taught(bench: Bench) -> list[Measure]:
    """Weights that are trained now, by the recipe, on the device."""
    from calotype.training.recipes.pocket_lora import train_pocket_lora

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as work:
        out = bench.options.family or Path(work)
        began = time.perf_counter()
        train_pocket_lora(out, work=Path(work) / "work", device=bench.options.device, say=say)
        seconds = time.perf_counter() - began
        took = Measure("lora", "pictures, training and export", seconds, "s", bench.options.device)
        return [took, *finder(bench), *measured(bench, "lora", out / SHIPPED)]


def measured(bench: Bench, member: str, weights: Any) -> list[Measure]:
    """Prompts for the shape in colours on floors that no picture had, and those of the checkpoint, with and without."""
    options = bench.options
    new = lesson_prompts(SHAPE, options.count, options.seed)
    known = prompts("heldout", options.count, options.seed)
    pipe = options.load(options.base)

    def drawn() -> tuple[list[Any], list[Any]]:
        return draw(pipe, [p.text for p in new], options), draw(pipe, [p.text for p in known], options)

    def found(images: list[Any]) -> list[bool]:
        return (find_shape(bench.finder, bench.classifier, as_tensor(images)) > FOUND).tolist()

    before = drawn()
    pipe.load_lora_weights(weights)
    after = drawn()
    shown = found(after[0])
    reading = bench.read(after[0])
    in_color = [COLORS.index(p.color) in reading.color[i].tolist() for i, p in enumerate(new)]
    on_floor = [FLOORS.index(p.floor) == int(reading.floor[i]) for i, p in enumerate(new)]
    measures = [
        share(member, f"a {SHAPE} where one is asked for", shown, DRAWN_BAR),
        share(member, "the same without the weights", found(before[0])),
        share(member, f"the {SHAPE}'s colour", in_color),
        share(member, f"the {SHAPE}'s floor", on_floor),
        share(member, f"a {SHAPE} where none is asked for", found(after[1])),
    ]
    with_it, without = (shares(bench.judged(known, images[1])) for images in (after, before))
    for what in ("color", "shape", "floor"):
        now, once = (100 * right / max(1, total) for right, total in (with_it[what], without[what]))
        detail = f"{now:.1f} % with, {once:.1f} % without"
        label = f"{NAMES[what]}: lost of what was known"
        measures.append(Measure(member, label, once - now, "points", detail, LOST_BAR, at_most=True))
    return measures
