"""SDXL's shape: attributes, what size and crop do, and what the refiner does to pictures that are almost done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks._pocket_family.drawing import draw
from benchmarks._pocket_family.judges import features, frechet
from benchmarks._pocket_family.table import Measure, mean, share
from benchmarks._pocket_family.tasks import NAMES, Bench, verdicts
from benchmarks._pocket_family.world import as_tensor, fresh
from calotype.pocket.judging import shares
from calotype.pocket.prompts import prompts
from calotype.pocket.segmenter import segment_pictures

NAME, REFINER = "pocket-xl", "pocket-xl-refiner"
SIDE, LARGE, SMALL = 128, 192, 48
_APART = 6
HANDOVER = 0.8
"""The share of the noise that is gone where the refiner takes over."""
BARS = {"color": 90.0, "shape": 80.0, "floor": 90.0, "sky": None, "relation": 70.0}


def text_to_image(bench: Bench) -> list[Measure]:
    """Prompts that name pairs of shape and colour that were never seen."""
    options = bench.options
    asked = prompts(options.split, options.count, options.seed)
    images = draw(options.load(NAME), [p.text for p in asked], options)
    return verdicts(NAME, bench.judged(asked, images), BARS)


def sharpness(pictures: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels over that of pixels six apart, [B] of pictures [B, 3, H, W].

    Absolute differences would not tell: an edge that is smeared adds up to what it was.
    """

    def apart(by: int) -> torch.Tensor:
        across, down = (
            pictures[..., by:] - pictures[..., :-by],
            pictures[..., by:, :] - pictures[..., :-by, :],
        )
        return across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))

    return apart(1) / apart(_APART).clamp_min(1e-9)


def shown_area(bench: Bench, images: Sequence[Any]) -> torch.Tensor:
    """Share of each picture's pixels that show an object [B]."""
    segments = segment_pictures(bench.segmenter, as_tensor(list(images)))
    return (segments > 1).double().mean((1, 2)).cpu()


def micro_conditions(bench: Bench) -> list[Measure]:
    """The same noise and prompts of one object at other sizes and crops.

    As the crop goes to the right the object goes to the left; of a larger original it is larger; of a small one that
    was blown up the picture is softer.
    """
    options, pipe = bench.options, bench.options.load(NAME)
    texts = [p.text for p in prompts(options.split, options.count, options.seed, pairs_share=0.0)]
    away = LARGE - SIDE

    def drawn(original: int, top: int, left: int) -> list[Any]:
        size, corner = (original, original), (top, left)
        return draw(pipe, texts, options, original_size=size, crops_coords_top_left=corner)

    whole, small = drawn(SIDE, 0, 0), drawn(SMALL, 0, 0)
    first, middle, last = (drawn(LARGE, away // 2, left) for left in (0, away // 2, away))

    def place(images: Sequence[Any]) -> torch.Tensor:
        reading = bench.read(images)
        return torch.tensor([float(reading.center[i, 0, 0]) for i in range(len(images))])

    by = (place(first) - place(last)) * (SIDE / 2)
    grown = (shown_area(bench, middle) / shown_area(bench, whole).clamp_min(1e-3)).clamp_max(4)
    softer = (sharpness(as_tensor(small)) < 0.9 * sharpness(as_tensor(whole))).tolist()
    return [
        share(NAME, "crop from left to right: the object moves to the left", (by > 0).tolist(), 85.0),
        Measure(NAME, "the same: so far, median", float(by.median()), "pixels", f"{away} is exact"),
        Measure(
            NAME, f"original of {LARGE}: the object is larger, median", float(grown.median()), "times",
            f"{LARGE / SIDE:g} squared is {(LARGE / SIDE) ** 2:.2f}", 1.3,
        ),
        share(NAME, f"original of {SMALL}: the picture is softer", softer, 85.0),
    ]  # fmt: skip


def refined(bench: Bench) -> list[Measure]:
    """The last fifth of the noise by the refiner, beside the same by the first model; and what its score does."""
    options = bench.options
    pipe, refiner = options.load(NAME), options.load(REFINER)
    asked = prompts(options.split, options.count, options.seed)
    texts = [p.text for p in asked]
    alone = draw(pipe, texts, options)
    begun = []
    for first in range(0, len(texts), options.batch):
        part = slice(first, min(first + options.batch, len(texts)))
        seeds = range(options.seed + part.start, options.seed + part.stop)
        begun.append(
            pipe(
                texts[part],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                denoising_end=HANDOVER,
                output_type="latent",
            ).images
        )
    latents = torch.cat(begun)

    def finished(**scores: float) -> list[Any]:
        images: list[Any] = []
        for first in range(0, len(texts), options.batch):
            part = slice(first, first + options.batch)
            images += refiner(
                texts[part],
                image=latents[part],
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                denoising_start=HANDOVER,
                **scores,
            ).images
        return images

    best, worst = finished(), finished(aesthetic_score=2.5, negative_aesthetic_score=6.0)
    counts = [shares(bench.judged(asked, images)) for images in (best, alone)]
    measures = []
    for what in ("color", "shape"):
        after, before = (100 * right / max(1, total) for right, total in (each[what] for each in counts))
        measures.append(
            Measure(
                REFINER,
                f"{NAMES[what]}: lost to {NAME} alone",
                before - after,
                "points",
                f"{after:.1f} % and {before:.1f} %",
                3.0,
                at_most=True,
            )
        )
    rendered = features(bench.classifier, fresh(options.renders, options.seed + 5, options.device).pictures)
    far = [frechet(features(bench.classifier, as_tensor(images)), rendered) for images in (best, alone)]
    measures.append(Measure(REFINER, "Fréchet distance to renders", far[0], "", f"{NAME} alone {far[1]:.3f}"))
    rougher = (noise_of(as_tensor(worst)) > noise_of(as_tensor(best))).tolist()
    measures.append(share(REFINER, "a low score: grainier than a high one", rougher, 85.0))
    away = [float(v) for v in (as_tensor(best) - as_tensor(alone)).square().mean((1, 2, 3)).sqrt()]
    measures.append(mean(REFINER, f"root mean square of what it changes of {NAME}'s", away, ""))
    return measures


def noise_of(pictures: torch.Tensor) -> torch.Tensor:
    """How much single pixels stand out of their surroundings [B], in pictures [B, 3, H, W]."""
    return (pictures - F.avg_pool2d(pictures, 3, stride=1, padding=1)).flatten(1).abs().median(1).values
