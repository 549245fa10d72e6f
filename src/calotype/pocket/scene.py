"""Scenes of the pocket world: what stands where, in which light, as tensors; drawn at random or spelled out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.pocket.placement import place, project, rest
from calotype.pocket.vocabulary import (
    COLORS,
    EVERY_SHAPE,
    FLOORS,
    HELD_OUT,
    MATERIALS,
    MAX_OBJECTS,
    SHAPES,
    SIZE_RADIUS,
    SIZES,
    SKIES,
    index_of,
)

SPLITS = ("train", "heldout", "all")
EYE, TARGET, FIELD_OF_VIEW = (0.0, 2.3, 7.0), (0.0, 1.04, 0.0), 40.0
"""The camera about which the sampled ones vary slightly; the world's x points right, y up, z to the viewer."""
_COUNT_SHARES = (0.40, 0.42, 0.18)
_FLAT_TOPPED = ("cube", "cylinder")
_FACING = ("torus", "star", "heart")
_SUN = {  # degrees: azimuth from the viewer's direction (90 is sideways), elevation above the horizon
    "day": ((50, 92), (36, 52)),
    "sunset": ((98, 122), (13, 19)),
    "night": ((55, 100), (34, 48)),
    "overcast": ((20, 90), (55, 70)),
}


@dataclass(frozen=True)
class ObjectRecord:
    """One object in plain Python, for captions and labels."""

    shape: str
    color: str
    size: str
    material: str
    screen_x: float
    """-1 (left) to 1 (right) on the picture."""
    position: tuple[float, float, float]
    support: int
    """Index of the object that it stands on; -1 is the floor."""


@dataclass(frozen=True)
class SceneRecord:
    """One scene in plain Python; the main object comes first."""

    objects: tuple[ObjectRecord, ...]
    floor: str
    sky: str


@dataclass(frozen=True)
class ObjectSpec:
    """An object for :func:`make_scene`; what is left out is middling, matte and placed beside the others."""

    shape: str
    color: str
    size: str = "medium"
    material: str = "matte"
    position: tuple[float, float] | None = None
    """(x, z) on the floor: x to the right, z towards the viewer."""
    yaw: float = 0.35
    on: int | None = None
    """Index of an earlier object that this one stands on."""


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of up to three objects; ids index the tuples of ``vocabulary``. All tensors on one device."""

    shape: Tensor
    """int64 [B, 3]"""
    color: Tensor
    """int64 [B, 3]"""
    size: Tensor
    """int64 [B, 3]"""
    material: Tensor
    """int64 [B, 3]"""
    present: Tensor
    """bool [B, 3]; slot 0, the main object, always is"""
    position: Tensor
    """[B, 3, 3]: the point on which the object stands"""
    yaw: Tensor
    """[B, 3] radians, about the vertical"""
    roll: Tensor
    """[B, 3] radians, about the axis that points to the viewer, through the object's centre"""
    support: Tensor
    """int64 [B, 3]: slot on whose top the object stands, -1 for the floor"""
    floor: Tensor
    """int64 [B]"""
    sky: Tensor
    """int64 [B]"""
    light: Tensor
    """[B, 3], unit vector towards the sun or moon"""
    eye: Tensor
    """[B, 3]"""
    target: Tensor
    """[B, 3]"""
    fov: Tensor
    """[B] degrees, vertical"""
    texture_offset: Tensor
    """[B, 2]: where in the endless floor and sky textures the scene lies"""

    def __len__(self) -> int:
        return len(self.floor)

    def __getitem__(self, index: slice | Tensor) -> SceneBatch:
        return SceneBatch(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> SceneBatch:
        return SceneBatch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def chunks(self, size: int) -> Iterator[SceneBatch]:
        """Consecutive parts of at most ``size`` scenes."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def device(self) -> torch.device:
        return self.floor.device

    @property
    def scale(self) -> Tensor:
        """[B, 3]: the objects' radii in world units."""
        return torch.tensor([SIZE_RADIUS[name] for name in SIZES], device=self.device)[self.size]

    def screen(self) -> tuple[Tensor, Tensor, Tensor]:
        """x and y on the picture (-1 to 1, y up) and depth of the points of standing, each [B, 3]."""
        return project(self.position, self.eye, self.target, self.fov)

    def left_to_right(self) -> Tensor:
        """int64 [B, 3]: slots ordered from left to right, absent ones last, a stack from its foot upwards."""
        key = self.screen()[0] + 0.02 * (self.support >= 0) + 10.0 * (~self.present)
        return key.argsort(dim=1, stable=True)

    def records(self) -> list[SceneRecord]:
        """The scenes in plain Python."""
        columns = (
            self.shape,
            self.color,
            self.size,
            self.material,
            self.present,
            self.position,
            self.support,
        )
        shape, color, size, material, present, position, support = (c.tolist() for c in columns)
        screen_x, floor, sky = self.screen()[0].tolist(), self.floor.tolist(), self.sky.tolist()
        return [
            SceneRecord(
                objects=tuple(
                    ObjectRecord(
                        shape=EVERY_SHAPE[shape[i][k]],
                        color=COLORS[color[i][k]],
                        size=SIZES[size[i][k]],
                        material=MATERIALS[material[i][k]],
                        screen_x=screen_x[i][k],
                        position=tuple(position[i][k]),
                        support=support[i][k],
                    )
                    for k in range(MAX_OBJECTS)
                    if present[i][k]
                ),
                floor=FLOORS[floor[i]],
                sky=SKIES[sky[i]],
            )
            for i in range(len(self))
        ]


def concatenate(batches: Sequence[SceneBatch]) -> SceneBatch:
    """Several batches as one."""
    return SceneBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(SceneBatch)))


@dataclass(frozen=True)
class _Draw:
    """Uniform draws of one batch from one generator, on its device."""

    n: int
    generator: torch.Generator | None
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", self.generator.device if self.generator else torch.device("cpu"))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(self.n, *shape, generator=self.generator, device=self.device)
        return low + (high - low) * draw

    def integer(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self.n, *shape), generator=self.generator, device=self.device)


def pairs_of(split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(shape, colour) ids [P, 2] that a main object and any other object may have in ``split``.

    Raises:
        InputError: ``split`` is not one of :data:`SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    every = [(s, c) for s in range(len(SHAPES)) for c in range(len(COLORS))]
    held = [(s, c) for s, c in every if (SHAPES[s], COLORS[c]) in HELD_OUT]
    seen = [pair for pair in every if pair not in held]
    main, other = {"train": (seen, seen), "heldout": (held, seen), "all": (every, every)}[split]
    return torch.tensor(main, device=device), torch.tensor(other, device=device)


def _light(sky: Tensor, draw: _Draw) -> Tensor:
    """Unit vectors [B, 3] towards the light, from the left or the right as it falls."""
    bounds = torch.tensor([[_SUN[name][0], _SUN[name][1]] for name in SKIES], device=sky.device)[sky].float()
    fraction = draw.uniform(0, 1, 2)
    angle = (bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * fraction) * (math.pi / 180)
    side = draw.integer(2) * 2 - 1
    azimuth, elevation = angle[:, 0] * side, angle[:, 1]
    level = torch.cos(elevation)
    return torch.stack((torch.sin(azimuth) * level, torch.sin(elevation), torch.cos(azimuth) * level), dim=-1)


def sample_scenes(
    n: int, generator: torch.Generator | None = None, split: str = "train", main_shape: str | None = None
) -> SceneBatch:
    """``n`` random scenes on the generator's device: objects apart, in the frame and little hidden.

    ``train`` never shows the (shape, colour) pairs of ``vocabulary.HELD_OUT``; in ``heldout`` every main object
    (slot 0) is one of them; ``all`` knows no difference. With ``main_shape`` every main object has this shape, which
    may be one of ``vocabulary.EXTRA_SHAPES``; those are in no scene otherwise.

    Raises:
        InputError: ``n`` is not positive, the split is unknown or there is no such shape.
    """
    if n < 1:
        raise InputError(f"The number of scenes must be at least 1, not {n}.")
    draw = _Draw(n, generator)
    device = draw.device
    main, other = pairs_of(split, device)
    pair = other[draw.integer(len(other), MAX_OBJECTS)]
    pair[:, 0] = main[draw.integer(len(main))]
    if split != "heldout":  # now and then two alike, so that plurals are learned
        alike = draw.uniform(0, 1) < 0.10
        pair[:, 1] = torch.where(alike[:, None], pair[:, 0], pair[:, 1])
    if main_shape is not None:
        pair[:, 0, 0] = index_of(EVERY_SHAPE, main_shape, "shape")
    shape, color = pair[..., 0].contiguous(), pair[..., 1].contiguous()
    size, material = draw.integer(len(SIZES), MAX_OBJECTS), draw.integer(len(MATERIALS), MAX_OBJECTS)
    share = draw.uniform(0, 1)
    count = 1 + (share > _COUNT_SHARES[0]).long() + (share > _COUNT_SHARES[0] + _COUNT_SHARES[1]).long()
    present = torch.arange(MAX_OBJECTS, device=device) < count[:, None]
    # three large things do not fit side by side: of three the last is small, and one at most is big
    limit = torch.stack((size[:, 0], torch.where(size[:, 0] == 2, 0, 1), torch.zeros_like(count)), dim=1)
    size = torch.where((count == 3)[:, None], torch.minimum(size, limit), size)
    size[:, 0] = torch.where(count == 1, size[:, 0].clamp_min(1), size[:, 0])

    support = torch.full_like(shape, -1)
    flat = torch.tensor([name in _FLAT_TOPPED for name in EVERY_SHAPE], device=device)[shape]
    stacking = (draw.uniform(0, 1) < 0.4) & (count > 1)
    support[:, 1] = torch.where(stacking & flat[:, 0], 0, -1)
    support[:, 0] = torch.where(stacking & flat[:, 1] & ~flat[:, 0], 1, -1)
    carrier_size = torch.gather(size, 1, support.clamp_min(0)).clamp_max(1)
    size = torch.where(support >= 0, torch.minimum(size, carrier_size), size)

    yaw = draw.uniform(-math.pi / 4, math.pi / 4, MAX_OBJECTS)
    facing = torch.tensor([name in _FACING for name in EVERY_SHAPE], device=device)[shape]
    yaw = torch.where(facing, yaw * 0.8, yaw)
    sky = draw.integer(len(SKIES))
    eye = torch.tensor(EYE, device=device) + draw.uniform(-1, 1, 3) * torch.tensor(
        (0.5, 0.2, 0.3), device=device
    )
    target = torch.tensor(TARGET, device=device) + draw.uniform(-1, 1, 3) * torch.tensor(
        (0.12, 0.06, 0.0), device=device
    )
    fov = torch.full((n,), FIELD_OF_VIEW, device=device)
    scale = torch.tensor([SIZE_RADIUS[name] for name in SIZES], device=device)[size]
    return SceneBatch(
        shape=shape,
        color=color,
        size=size,
        material=material,
        present=present,
        position=place(shape, scale, present, support, (eye, target, fov), generator),
        yaw=yaw,
        roll=torch.zeros_like(yaw),
        support=support,
        floor=draw.integer(len(FLOORS)),
        sky=sky,
        light=_light(sky, draw),
        eye=eye,
        target=target,
        fov=fov,
        texture_offset=draw.uniform(0, 64, 2),
    )


def make_scene(
    objects: Sequence[ObjectSpec],
    floor: str = "wood",
    sky: str = "day",
    *,
    light: tuple[float, float] | None = None,
    eye: tuple[float, float, float] = EYE,
    target: tuple[float, float, float] = TARGET,
    fov: float = FIELD_OF_VIEW,
    texture_offset: tuple[float, float] = (17.3, 41.9),
) -> SceneBatch:
    """One scene spelled out, as a batch of one on the CPU.

    Args:
        light: (azimuth from the viewer's direction, elevation) in degrees; the sky's middling one when left out.

    Raises:
        InputError: a name that the vocabulary lacks, no object or more than three, or an ``on`` that is not earlier.
    """
    if not 1 <= len(objects) <= MAX_OBJECTS:
        raise InputError(f"A scene has 1 to {MAX_OBJECTS} objects, not {len(objects)}.")
    for i, spec in enumerate(objects):
        if spec.on is not None and not 0 <= spec.on < i:
            raise InputError(f"Object {i} stands on object {spec.on}, which does not come before it.")
    padded = [*objects, *[objects[0]] * (MAX_OBJECTS - len(objects))]

    def ids(names: tuple[str, ...], attribute: str) -> Tensor:
        return torch.tensor([[index_of(names, getattr(spec, attribute), attribute) for spec in padded]])

    size = ids(SIZES, "size")
    scale = torch.tensor([[SIZE_RADIUS[SIZES[i]] for i in size[0].tolist()]])
    shape = ids(EVERY_SHAPE, "shape")
    spread = [(2.0 * (i - (len(objects) - 1) / 2), 0.0) for i in range(MAX_OBJECTS)]
    places = [spec.position or spread[i] for i, spec in enumerate(padded)]
    position = torch.tensor([[(x, 0.0, z) for x, z in places]])
    support = torch.full((1, MAX_OBJECTS), -1)
    for i, spec in enumerate(objects):  # in order, so that a tower of three grows upwards
        if spec.on is not None:
            support[0, i] = spec.on
            lifted = rest(position, support, shape, scale)
            lifted[0, i, 1] += position[0, spec.on, 1]
            position[0, i] = lifted[0, i]
    bounds = _SUN[SKIES[index_of(SKIES, sky, "sky")]]
    azimuth, elevation = (math.radians(v) for v in (light or tuple(sum(b) / 2 for b in bounds)))
    level = math.cos(elevation)
    return SceneBatch(
        shape=shape,
        color=ids(COLORS, "color"),
        size=size,
        material=ids(MATERIALS, "material"),
        present=torch.arange(MAX_OBJECTS)[None] < len(objects),
        position=position,
        yaw=torch.tensor([[spec.yaw for spec in padded]]),
        roll=torch.zeros(1, MAX_OBJECTS),
        support=support,
        floor=torch.tensor([index_of(FLOORS, floor, "floor")]),
        sky=torch.tensor([index_of(SKIES, sky, "sky")]),
        light=torch.tensor([[math.sin(azimuth) * level, math.sin(elevation), math.cos(azimuth) * level]]),
        eye=torch.tensor([eye]),
        target=torch.tensor([target]),
        fov=torch.tensor([fov]),
        texture_offset=torch.tensor([texture_offset]),
    )
