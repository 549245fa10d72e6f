"""Pictures from noise alone: are they like renders, and are they not the renders of the training?"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks._pocket_family.judges import features, frechet, nearest
from benchmarks._pocket_family.table import Measure
from benchmarks._pocket_family.tasks import Bench
from benchmarks._pocket_family.world import fresh, rendered
from calotype.pocket.scene import SceneBatch

NAME = "pocket-unconditional"
STEPS = 50


def training_scenes(count: int) -> SceneBatch:
    """Scenes that the member learned from: those of the first chunk of views, which its seed gives again."""
    from calotype.pipelines.bundled import BUNDLED
    from calotype.training.recipes.base import load_base
    from calotype.training.recipes.pocket.pictures import chunk_scenes
    from calotype.training.recipes.pocket_family.settings import PRESETS
    from calotype.training.recipes.pocket_family.views import pocket_settings

    settings = PRESETS["full"]
    pocket = pocket_settings(settings, load_base(BUNDLED["pocket"], torch.device("cpu")))
    return chunk_scenes(pocket, "views", 0, settings.views.chunk)[:count]


def unconditional(bench: Bench) -> list[Measure]:
    """Distances between distributions, and to single renders."""
    options = bench.options
    count = options.renders
    pipe = options.load(NAME)
    parts = []
    for first in range(0, count, options.batch):
        seeds = range(options.seed + first, options.seed + min(first + options.batch, count))
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        made: Any = pipe(
            batch_size=len(seeds), generator=generator, num_inference_steps=STEPS, output_type="np"
        )
        parts.append(torch.from_numpy(made.images).permute(0, 3, 1, 2).float())
    drawn = torch.cat(parts)
    side = drawn.shape[-1]

    def shrunk(pictures: torch.Tensor) -> torch.Tensor:
        return F.interpolate(pictures, (side, side), mode="area")

    one, other = (
        shrunk(fresh(count, options.seed + 1_000 * i, options.device, "train").pictures) for i in (1, 2)
    )
    known = shrunk(rendered(training_scenes(count), options.device).pictures)
    seen = {
        name: features(bench.classifier, p) for name, p in (("drawn", drawn), ("one", one), ("other", other))
    }
    distance, floor = frechet(seen["drawn"], seen["one"]), frechet(seen["one"], seen["other"])
    noise = frechet(features(bench.classifier, torch.rand(min(count, 64), 3, side, side)), seen["one"])
    # in training every second picture was mirrored
    learned, fresh_ones = (torch.cat((p, p.flip(-1))) for p in (known, one[: len(known)]))
    nearer = []
    for view in (lambda p: p.flatten(1), lambda p: features(bench.classifier, p)):
        mine = view(drawn)
        nearer.append(nearest(mine, view(learned)) < nearest(mine, view(fresh_ones)))
    detail = f"{len(drawn)} pictures of {side} pixels"
    return [
        Measure(NAME, "Fréchet distance to renders", distance, "", detail),
        Measure(NAME, "the same of other renders to them", floor, "", f"noise {noise:.3f}"),
        *(
            Measure(
                NAME,
                f"nearest render is one of the training, {space}",
                100 * float(values.double().mean()),
                "%",
                f"of {len(known)} and as many fresh",
                60.0,
                at_most=True,
            )
            for space, values in zip(("pixels", "features"), nearer, strict=True)
        ),
    ]
