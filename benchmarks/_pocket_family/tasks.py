"""The tasks: what each member is asked for, and whether it does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from benchmarks._pocket_family.drawing import Options, draw
from benchmarks._pocket_family.judges import (
    ESTIMATOR,
    DepthJudge,
    correlation,
    edge_f1,
    iou,
    psnr,
)
from benchmarks._pocket_family.table import Measure, mean, share
from benchmarks._pocket_family.world import World, as_pictures, as_tensor, fresh, sentences
from calotype.annotators import canny
from calotype.diffusion import codec
from calotype.pocket.captions import with_article
from calotype.pocket.classifier import Reading, load_classifier, read_pictures
from calotype.pocket.finder import load_finder
from calotype.pocket.judging import Verdict, judge, shares
from calotype.pocket.labels import painted
from calotype.pocket.prompts import Prompt, prompts
from calotype.pocket.segmenter import FILE, load_segmenter, segment_pictures
from calotype.pocket.vocabulary import COLORS, SHAPES

CLASSIFIER = "pocket_classifier.safetensors"
SEGMENTER = "pocket_segmenter.safetensors"
FINDER = "pocket_heart_finder.safetensors"
NAMES = {
    "color": "main object's colour",
    "shape": "main object's shape",
    "floor": "floor",
    "sky": "sky",
    "relation": "left/right relation",
}
BARS = {"color": 95.0, "shape": 90.0, "floor": 90.0, "sky": None, "relation": 80.0}
"""Percent of the pictures of the bundled checkpoint that must be right; the sky is shown without a bar."""
NEAR = 0.2
"""An object stays in its place if its centre moves less than this, on a picture from -1 to 1."""


@dataclass(frozen=True)
class Bench:
    """What all tasks use: the options, scenes that no training saw, and the judges, each made when it is needed."""

    options: Options

    @cached_property
    def world(self) -> World:
        options = self.options
        return fresh(options.count, options.seed, options.device, supersample=options.supersample)

    @cached_property
    def classifier(self) -> Any:
        return load_classifier(self.options.judges / CLASSIFIER, self.options.device)

    @cached_property
    def segmenter(self) -> Any:
        family = self.options.family
        fresh_one = None if family is None else family / "pocket-segmenter" / FILE
        found = (
            fresh_one if fresh_one is not None and fresh_one.is_file() else self.options.judges / SEGMENTER
        )
        return load_segmenter(found, self.options.device)

    @cached_property
    def finder(self) -> Any:
        return load_finder(self.options.judges / FINDER, self.options.device)

    @cached_property
    def depth(self) -> DepthJudge:
        return DepthJudge(self.options.place(ESTIMATOR), self.options.device)

    @cached_property
    def pictures(self) -> list[Any]:
        """The rendered scenes as PIL pictures."""
        return as_pictures(self.world.pictures)

    def read(self, images: Sequence[Any]) -> Reading:
        """What the classifier reads in PIL pictures."""
        reading = read_pictures(self.classifier, as_tensor(list(images)))
        return Reading(*(getattr(reading, name).cpu() for name in Reading.__dataclass_fields__))

    def judged(self, asked: Sequence[Prompt], images: Sequence[Any]) -> list[Verdict]:
        return judge(asked, self.read(images))


def verdicts(
    member: str, found: Sequence[Verdict], bars: dict[str, float | None], names: Sequence[str] = tuple(NAMES)
) -> list[Measure]:
    """A measure for each attribute that was asked for."""
    measures = []
    for name, (right, total) in shares(found).items():
        if total and name in names:
            detail = f"{right} of {total}"
            measures.append(Measure(member, NAMES[name], 100 * right / total, "%", detail, bars.get(name)))
    return measures


def text_to_image(bench: Bench) -> list[Measure]:
    """Prompts that name pairs of shape and colour that were never seen."""
    options = bench.options
    asked = prompts(options.split, options.count, options.seed)
    images = draw(options.load(options.base), [p.text for p in asked], options)
    return verdicts(options.base, bench.judged(asked, images), BARS)


def image_to_image(bench: Bench) -> list[Measure]:
    """At strength 0.5 objects stay where they were, at 0.9 they have the colours that the prompt asks for."""
    pipe, options, world = bench.options.load(bench.options.base), bench.options, bench.world
    same = sentences(world.scenes, options.seed)
    images = draw(pipe, [p.text for p in same], options, each={"image": bench.pictures}, strength=0.5)
    reading, truth = bench.read(images), world.labels
    kept = []
    for i in range(len(world)):
        there = truth.center[i, : int(truth.count[i])]
        found = reading.center[i, : int(reading.count[i])]
        away = torch.cdist(there, found).amin(1)
        kept.append(bool((away < NEAR).all()))
    other = sentences(world.scenes, options.seed, recolor=True)
    images = draw(pipe, [p.text for p in other], options, each={"image": bench.pictures}, strength=0.9)
    followed = [verdict.color for verdict in bench.judged(other, images)]
    return [
        share(options.base, "image to image, strength 0.5: layout kept", kept, 85.0),
        share(options.base, "image to image, strength 0.9: new colour", followed, 85.0),
    ]


@dataclass(frozen=True)
class Hole:
    """A box of a picture, in pixels, and what is asked for in it."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom"""
    prompt: Prompt

    def mask(self, side: int) -> np.ndarray:
        mask = np.zeros((side, side), dtype=np.uint8)
        left, top, right, bottom = self.box
        mask[top:bottom, left:right] = 255
        return mask


def holes(world: World, seed: int, least: int = 40) -> list[Hole]:
    """A box about the main object of each scene, and another object to put there: the next scene's main one."""
    asked = sentences(world.scenes, seed, recolor=True)
    found = []
    for i, shown in enumerate(world.instances == 2):
        rows, columns = shown.any(1).nonzero(), shown.any(0).nonzero()
        box = []
        for line in (columns, rows):
            first, last = (int(line[0]), int(line[-1]) + 1) if len(line) else (44, 84)
            wide = max(least, round(1.4 * (last - first)))
            start = min(max(0, (first + last - wide) // 2), len(shown) - wide) if wide < len(shown) else 0
            box.append((start, min(start + wide, len(shown))))
        (left, right), (top, bottom) = box
        other = asked[(i + 1) % len(asked)]
        floor = asked[i]
        text = with_article(f"{other.color} {other.shape}")
        prompt = Prompt(text, other.shape, other.color, floor.floor, floor.sky)
        found.append(Hole((left, top, right, bottom), prompt))
    return found


def inside(reading: Reading, i: int, hole: Hole, side: int) -> tuple[bool, bool]:
    """Whether an object whose centre is in the hole has the asked colour; and the asked shape, too."""
    left, top, right, bottom = hole.box
    color, both = False, False
    for slot in range(int(reading.count[i])):
        x, y = ((float(v) + 1) / 2 * side for v in reading.center[i, slot] * torch.tensor([1.0, -1.0]))
        if left <= x <= right and top <= y <= bottom:
            right_color = int(reading.color[i, slot]) == COLORS.index(hole.prompt.color)
            color |= right_color
            both |= right_color and int(reading.shape[i, slot]) == SHAPES.index(hole.prompt.shape)
    return color, both


def inpainting(bench: Bench) -> list[Measure]:
    """Another object in the main one's place; what the mask leaves out stays, bit for bit."""
    name, options, world = "pocket-inpaint", bench.options, bench.world
    asked = holes(world, options.seed)
    side = world.pictures.shape[-1]
    masks = [hole.mask(side) for hole in asked]
    images = draw(
        options.load(name),
        [hole.prompt.text for hole in asked],
        options,
        each={"image": bench.pictures, "mask_image": as_pictures(torch.from_numpy(np.stack(masks)) / 255)},
        strength=1.0,
        composite=True,
    )
    reading = bench.read(images)
    found = [inside(reading, i, hole, side) for i, hole in enumerate(asked)]
    same = [
        bool((np.asarray(made)[mask == 0] == np.asarray(given)[mask == 0]).all())
        for made, given, mask in zip(images, bench.pictures, masks, strict=True)
    ]
    return [
        share(name, "asked object in the hole", [both for _, both in found], 85.0),
        share(name, "asked colour in the hole", [color for color, _ in found]),
        share(name, "unmasked pixels the same, bit for bit", same, 100.0),
    ]


def depth_to_image(bench: Bench) -> list[Measure]:
    """The scene's depth in other colours, from noise alone."""
    name, options, world = "pocket-depth", bench.options, bench.world
    asked = sentences(world.scenes, options.seed, recolor=True)
    texts = [p.text for p in asked]
    images = draw(options.load(name), texts, options, each={"image": bench.pictures}, strength=1.0)
    return [
        mean(name, "correlation of depths", correlation(bench.depth(images), world.nearness), "", 0.9),
        *verdicts(name, bench.judged(asked, images), {"color": 85.0}, ("color", "shape")),
    ]


def estimator(bench: Bench) -> list[Measure]:
    """The judge of depths, on rendered pictures."""
    world = bench.world
    scores = correlation(bench.depth(bench.pictures), world.nearness)
    return [mean(ESTIMATOR, "correlation with exact inverse depths", scores, "", 0.95)]


def edges_of(image: Any) -> np.ndarray:
    """Canny's edges of a PIL picture, bool [H, W]."""
    return np.asarray(canny(image).convert("L")) > 127


def disparity_pictures(depth: torch.Tensor) -> list[Any]:
    """Depths [B, H, W] as control pictures: white for the nearest, black for the farthest."""
    near = 1 / depth
    low, high = near.amin((1, 2), keepdim=True), near.amax((1, 2), keepdim=True)
    return as_pictures(((near - low) / (high - low))[:, None].expand(-1, 3, -1, -1))


def _steered(bench: Bench, name: str, control: Sequence[Any]) -> tuple[list[Any], list[Measure]]:
    """Pictures of the scenes in other colours that follow control pictures, and how often colours are right."""
    asked = sentences(bench.world.scenes, bench.options.seed, recolor=True)
    pipe = bench.options.load(name)
    images = draw(pipe, [p.text for p in asked], bench.options, control=control)
    return images, verdicts(name, bench.judged(asked, images), {}, ("color",))


def controlnet_canny(bench: Bench) -> list[Measure]:
    """Edges of the scene in other colours."""
    name = "pocket-controlnet-canny"
    images, colors = _steered(bench, name, [canny(picture) for picture in bench.pictures])
    scores = [edge_f1(edges_of(a), edges_of(b)) for a, b in zip(images, bench.pictures, strict=True)]
    return [mean(name, "F1 of edges, within 1 pixel", scores, "", 0.75), *colors]


def controlnet_depth(bench: Bench) -> list[Measure]:
    """Depth of the scene in other colours."""
    name = "pocket-controlnet-depth"
    images, colors = _steered(bench, name, disparity_pictures(bench.world.depth))
    scores = correlation(bench.depth(images), bench.world.nearness)
    return [mean(name, "correlation of depths", scores, "", 0.9), *colors]


def controlnet_segmentation(bench: Bench) -> list[Measure]:
    """Segments of the scene in other colours, read by a network that only ever saw rendered scenes."""
    name, world = "pocket-controlnet-segmentation", bench.world
    images, colors = _steered(bench, name, as_pictures(painted(world.segments)))
    scores = iou(segment_pictures(bench.segmenter, as_tensor(images)), world.segments)
    return [mean(name, "IoU of segments", scores, "", 0.8), *colors]


def segmenter(bench: Bench) -> list[Measure]:
    """The judge of segments, on rendered pictures."""
    scores = iou(segment_pictures(bench.segmenter, bench.world.pictures), bench.world.segments)
    return [mean("judge", "IoU of segments on renders", scores, "", 0.9)]


def turbo(bench: Bench) -> list[Measure]:
    """Four steps against the teacher's twenty, on the same prompts."""
    name, options = "pocket-turbo", bench.options
    asked = prompts("heldout", options.count, options.seed)
    texts = [p.text for p in asked]
    pipe = options.load(name)
    few = {key: pipe.usual({})[key] for key in ("num_inference_steps", "guidance_scale")}
    student = shares(bench.judged(asked, draw(pipe, texts, options, **few)))
    teacher = shares(bench.judged(asked, draw(options.load(options.base), texts, options)))
    steps = few["num_inference_steps"]
    measures = []
    for what in ("color", "shape", "floor"):
        percent = [100 * right / max(1, total) for right, total in (student[what], teacher[what])]
        label = f"{NAMES[what]}, {steps} steps"
        measures.append(Measure(name, label, percent[0], "%", f"teacher {percent[1]:.1f} %"))
        bar = None if what == "floor" else 5.0
        lost = percent[1] - percent[0]
        measures.append(Measure(name, f"{label}: lost", lost, "points", "", bar, at_most=True))
    return measures


def tiny_vae(bench: Bench) -> list[Measure]:
    """How near what it decodes is to the picture, beside the whole autoencoder; and pictures drawn through it."""
    name, options, world = "pocket-tiny-vae", bench.options, bench.world
    pipe, whole = options.load(name), options.load(options.base).vae
    pictures = world.pictures

    @torch.no_grad()
    def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        parts = [vae.decode(part).sample for part in latents.split(options.batch)]
        return ((torch.cat(parts).float().cpu() + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def encoded(vae: Any) -> torch.Tensor:
        parts = [(2 * part - 1).to(vae.device, vae.dtype) for part in pictures.split(options.batch)]
        return torch.cat([codec.mode(vae, part) for part in parts])

    latents = encoded(whole)
    tiny = psnr(decoded(pipe.vae, latents), pictures)
    full = psnr(decoded(whole, latents), pictures)
    own = psnr(decoded(pipe.vae, encoded(pipe.vae)), pictures)
    lost = sum(full) / len(full) - sum(tiny) / len(tiny)
    asked = prompts("heldout", options.count, options.seed)
    images = draw(pipe, [p.text for p in asked], options)
    return [
        mean(name, "PSNR of the autoencoder's latents", tiny, "dB", 27.0),
        mean(name, "PSNR, the whole autoencoder", full, "dB"),
        Measure(name, "dB lost against the whole one", lost, "dB", ""),
        mean(name, "PSNR of its own latents", own, "dB"),
        *verdicts(name, bench.judged(asked, images), {"color": 90.0}, ("color", "shape")),
    ]


def upscale(bench: Bench) -> list[Measure]:
    """Pictures a quarter as large, enlarged; beside what bicubic interpolation makes of them."""
    name, options, world = "pocket-upscale", bench.options, bench.world
    side = world.pictures.shape[-1]
    small = [picture.resize((side // 4, side // 4), 3) for picture in bench.pictures]
    bicubic = psnr(as_tensor([one.resize((side, side), 3) for one in small]), world.pictures)
    asked = sentences(world.scenes, options.seed)
    pipe = options.load(name)
    few = {key: pipe.usual({"image": small[0]})[key] for key in ("num_inference_steps", "guidance_scale")}
    images = draw(pipe, [p.text for p in asked], options, each={"image": small}, **few)
    found = psnr(as_tensor(images), world.pictures)
    gain = (sum(found) - sum(bicubic)) / len(found)
    beside = f"bicubic {sum(bicubic) / len(bicubic):.2f}"
    return [
        mean(name, "PSNR of the enlarged picture", found, "dB"),
        Measure(name, "dB gained on bicubic interpolation", gain, "dB", beside, 0.0),
        *verdicts(name, bench.judged(asked, images), {}, ("color", "shape")),
    ]


Task = Callable[[Bench], list[Measure]]
