"""Sky, far hills and floor: what a ray sees that meets no object. All of it is a table of numbers and one formula.

The tables are written in sRGB, as they should look, and turned into linear light when packed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from calotype.pocket.noise import hash01, value_noise
from calotype.pocket.vec3 import Vec3, dot, mix
from calotype.pocket.vocabulary import FLOORS, SKIES, linear_rgb


@dataclass(frozen=True)
class SkyForm:
    """One time of day. Colours are sRGB hex; the two lights are (linear RGB)."""

    zenith: str
    middle: str
    horizon: str
    glow: str
    """Colour around the sun or moon."""
    disc: float
    """Radius of the sun's or moon's disc in radians, 0 for none."""
    glow_strength: float
    cloud: str
    cloud_amount: float
    stars: float
    key: tuple[float, float, float]
    """Light of the sun or moon."""
    fill: tuple[float, float, float]
    """Light of the sky from above."""
    sharpness: float
    """How sharp shadows are: the reciprocal of the lamp's apparent size."""


SKY_FORMS = {
    "day": SkyForm(
        zenith="#2f74d0", middle="#6fb1ee", horizon="#d6ecf8", glow="#fff6dc", disc=0.0, glow_strength=0.0,
        cloud="#ffffff", cloud_amount=0.85, stars=0.0,
        key=(1.02, 0.95, 0.82), fill=(0.30, 0.35, 0.43), sharpness=9.0,
    ),
    "sunset": SkyForm(
        zenith="#3a3f86", middle="#d9698a", horizon="#ffbf6b", glow="#ffe08a", disc=0.045, glow_strength=1.0,
        cloud="#ff9a76", cloud_amount=0.45, stars=0.0,
        key=(1.20, 0.89, 0.67), fill=(0.37, 0.35, 0.42), sharpness=8.0,
    ),
    "night": SkyForm(
        zenith="#060a20", middle="#101b40", horizon="#2b3f70", glow="#cfe0ff", disc=0.040, glow_strength=0.35,
        cloud="#1d2c5c", cloud_amount=0.0, stars=1.0,
        key=(0.62, 0.63, 0.68), fill=(0.17, 0.18, 0.24), sharpness=8.0,
    ),
    "overcast": SkyForm(
        zenith="#7f8994", middle="#a7b0b8", horizon="#d3d8db", glow="#ffffff", disc=0.0, glow_strength=0.0,
        cloud="#6d7781", cloud_amount=0.55, stars=0.0,
        key=(0.22, 0.22, 0.22), fill=(0.56, 0.575, 0.60), sharpness=2.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FloorForm:
    """One floor. Colours are sRGB hex, lengths world units."""

    base: str
    other: str
    hills: str
    """Colour of the hills on the horizon."""
    hill_height: float
    frequency_x: float
    frequency_z: float
    coarse: float
    """Share of the noise at a third of the frequency, the frequency itself and three times it."""
    medium: float
    fine: float
    cell_x: float = 1.0
    cell_z: float = 1.0
    stagger: float = 0.0
    """How far the rows of cells are shifted against each other, in cells."""
    seam: float = 0.0
    """Darkness of the line between cells."""
    tone: float = 0.0
    """How much cells differ in brightness."""
    checker: float = 0.0
    ripple: float = 0.0
    """Strength of wind ripples."""
    gloss: float = 0.0
    """Reflectance at normal incidence."""


FLOOR_FORMS = {
    "wood": FloorForm(
        base="#bd8450", other="#94602f", hills="#7d8fa3", hill_height=0.6, frequency_x=6.0, frequency_z=0.55,
        coarse=0.3, medium=0.5, fine=0.45, cell_x=0.55, cell_z=4.6, stagger=1.0, seam=0.6, tone=0.38, gloss=0.04,
    ),
    "grass": FloorForm(
        base="#79a53c", other="#4c7a26", hills="#5c8a58", hill_height=1.0, frequency_x=5.0, frequency_z=3.4,
        coarse=0.8, medium=0.8, fine=0.9,
    ),
    "tiles": FloorForm(
        base="#ebe7dd", other="#7f97a6", hills="#7d8fa3", hill_height=0.6, frequency_x=1.2, frequency_z=1.2,
        coarse=0.06, medium=0.06, fine=0.05, seam=0.35, tone=0.06, checker=1.0, gloss=0.10,
    ),
    "sand": FloorForm(
        base="#e6c48c", other="#cf9f62", hills="#d0ab78", hill_height=0.8, frequency_x=4.0, frequency_z=4.0,
        coarse=0.5, medium=0.25, fine=0.4, ripple=0.5,
    ),
    "snow": FloorForm(
        base="#f4f7fc", other="#c9d8ec", hills="#c8d6e8", hill_height=1.5, frequency_x=1.5, frequency_z=1.5,
        coarse=0.9, medium=0.35, fine=0.15,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """Sky, light and floor of every scene of a batch, ready for the formulas; all tensors [B, 1]."""

    zenith: Vec3
    middle: Vec3
    horizon: Vec3
    glow: Vec3
    cloud: Vec3
    key: Vec3
    fill: Vec3
    base: Vec3
    other: Vec3
    hills: Vec3
    light: Vec3
    """Unit vector towards the lamp."""
    lamp: Vec3
    """Where the lamp's disc is drawn: nearer to the middle of the picture than the light comes from."""
    disc: Tensor
    glow_strength: Tensor
    cloud_amount: Tensor
    stars: Tensor
    sharpness: Tensor
    hill_height: Tensor
    frequency_x: Tensor
    frequency_z: Tensor
    coarse: Tensor
    medium: Tensor
    fine: Tensor
    cell_x: Tensor
    cell_z: Tensor
    stagger: Tensor
    seam: Tensor
    tone: Tensor
    checker: Tensor
    ripple: Tensor
    gloss: Tensor
    offset_x: Tensor
    offset_z: Tensor


_VECTORS = tuple(f.name for f in fields(Surroundings) if f.type == "Vec3")
_SCALARS = tuple(f.name for f in fields(Surroundings) if f.type != "Vec3")


def _rows(forms: list[SkyForm] | list[FloorForm], name: str) -> list[list[float]]:
    values = [getattr(form, name) for form in forms]
    if isinstance(values[0], str):
        return [list(linear_rgb(value)) for value in values]
    return [list(value) if isinstance(value, tuple) else [float(value)] for value in values]


def _drawn_lamp(light: Tensor) -> Tensor:
    """Where to draw the lamp that shines along ``light``: on its side, inside the picture, low over the horizon."""
    from_view = torch.atan2(light[:, 0], -light[:, 2])  # 0 is straight ahead of the viewer
    azimuth = torch.sign(from_view) * (0.11 + 0.10 * from_view.abs())
    elevation = 0.035 + 0.13 * light[:, 1]
    level = torch.cos(elevation)
    return torch.stack((torch.sin(azimuth) * level, torch.sin(elevation), -torch.cos(azimuth) * level), -1)


def pack_surroundings(floor: Tensor, sky: Tensor, light: Tensor, texture_offset: Tensor) -> Tensor:
    """Scene tensors ([B] ids, [B, 3], [B, 2]) -> one float tensor [B, numbers of Surroundings]."""
    skies, floors = [SKY_FORMS[name] for name in SKIES], [FLOOR_FORMS[name] for name in FLOORS]
    sky_names = {f.name for f in fields(SkyForm)}
    special = {
        "light": light,
        "lamp": _drawn_lamp(light),
        "offset_x": texture_offset[:, :1],
        "offset_z": texture_offset[:, 1:],
    }

    def column(name: str) -> Tensor:
        if name in special:
            return special[name]
        if name in sky_names:
            return torch.tensor(_rows(skies, name), device=sky.device)[sky]
        return torch.tensor(_rows(floors, name), device=floor.device)[floor]

    return torch.cat([column(name) for name in (*_VECTORS, *_SCALARS)], dim=-1)


def unpack_surroundings(packed: Tensor) -> Surroundings:
    """The reverse of :func:`pack_surroundings`: views."""
    column = [packed[:, i : i + 1] for i in range(packed.shape[1])]
    values: dict[str, Any] = {name: Vec3(*column[3 * i : 3 * i + 3]) for i, name in enumerate(_VECTORS)}
    values.update(zip(_SCALARS, column[3 * len(_VECTORS) :], strict=True))
    return Surroundings(**values)


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def sky_gradient(height: Tensor, around: Surroundings) -> Vec3:
    """The sky's colour at ``height`` = sine of the elevation; three stops."""
    low = smoothstep(0.0, 0.17, height)
    return mix(mix(around.horizon, around.middle, low), around.zenith, smoothstep(0.10, 0.55, height))


def sky_color(direction: Vec3, packed: Tensor, details: Tensor) -> Vec3:
    """Linear colour of the sky with lamp, clouds, stars and hills; where ``details`` is 0 without disc and stars."""
    around = unpack_surroundings(packed)
    height = direction.y.clamp_min(0.0)
    color = sky_gradient(height, around)

    # stars: one in some cells of a grid on the cylinder around the viewer
    angle = torch.atan2(direction.x, -direction.z)
    column, row = angle * 62.0 + around.offset_x, height * 62.0
    i, j = torch.floor(column), torch.floor(row)
    luck = hash01(i, j)
    dx, dy = column - i - 0.5 - 0.25 * (luck * 37.0 % 1.0), row - j - 0.5
    star = torch.exp(-(dx * dx + dy * dy) * 22.0) * smoothstep(0.90, 0.99, luck) * around.stars * details
    color = color + around.glow.scale(star * 0.9 * smoothstep(0.03, 0.12, height))

    # lamp: disc and glow; 1 - cos of the angle between is half the angle squared
    away = (2.0 * (1.0 - dot(direction, around.lamp))).clamp_min(0.0)
    halo = torch.exp(-away * 10.0) * 0.30 + torch.exp(-away * 90.0) * 0.55
    color = mix(color, around.glow, (halo * around.glow_strength).clamp(0.0, 1.0))
    angle_off = torch.sqrt(away + 1e-9)
    disc = smoothstep(around.disc + 0.006, around.disc - 0.002, angle_off) * (around.disc > 0) * details
    color = mix(color, around.glow.scale(1.25), disc)

    # clouds on a plane overhead, thinned towards the horizon
    spread = 1.0 / (height + 0.10)
    cx, cz = direction.x * spread * 1.1 + around.offset_x, direction.z * spread * 2.2 + around.offset_z
    billow = value_noise(cx, cz) * 0.60 + value_noise(cx * 2.3 + 7.7, cz * 2.3) * 0.28
    billow = billow + value_noise(cx * 5.1, cz * 5.1 + 3.1) * 0.12
    cover = smoothstep(0.46, 0.72, billow) * around.cloud_amount * smoothstep(0.02, 0.10, height)
    color = mix(color, around.cloud, cover)

    # two rows of hills, the farther one more in the haze
    for scale, lift, haze in ((4.0, 1.0, 0.62), (6.5, 0.55, 0.30)):
        outline = value_noise(angle * scale + around.offset_x * lift, around.offset_z) * 0.058
        outline = outline + value_noise(angle * scale * 3.3 + around.offset_z, around.offset_x) * 0.014
        top = outline * lift * around.hill_height
        light = Vec3(*(0.55 * k + 0.75 * f for k, f in zip(_xyz(around.key), _xyz(around.fill), strict=True)))
        hill = mix(around.hills * light, around.horizon, haze)
        color = mix(color, hill, smoothstep(0.002, -0.002, direction.y - top))
    return color


def _xyz(v: Vec3) -> tuple[Tensor, Tensor, Tensor]:
    return v.x, v.y, v.z


def floor_color(p: Vec3, distance: Tensor, slope: Tensor, packed: Tensor) -> Vec3:
    """Linear albedo of the floor at points ``p``, seen from ``distance`` at the sine ``slope`` of the ray's fall.

    Detail finer than a pixel's footprint fades into its mean instead of flickering.
    """
    around = unpack_surroundings(packed)
    footprint = distance * 0.0045 / slope.clamp_min(0.02)
    x, z = p.x + around.offset_x, p.z + around.offset_z

    def kept(frequency: Tensor | float) -> Tensor:
        cycles = footprint * frequency
        return 1.0 / (1.0 + 3.0 * cycles * cycles)

    # cells: planks or tiles
    column = x / around.cell_x
    shift = around.stagger * hash01(torch.floor(column), around.offset_x)
    row = z / around.cell_z + shift
    ci, cj = torch.floor(column), torch.floor(row)
    lot = hash01(ci, cj + 19.0)
    parity = torch.remainder(ci + cj, 2.0)
    edge_x = (0.5 - (column - ci - 0.5).abs()) * around.cell_x
    edge_z = (0.5 - (row - cj - 0.5).abs()) * around.cell_z
    width = 0.012
    line_x = smoothstep(width + 0.5 * footprint, 0.3 * width, edge_x) * (width / (width + 0.35 * footprint))
    line_z = smoothstep(width + footprint, 0.3 * width, edge_z) * (width / (width + 0.5 * footprint))
    seam = torch.maximum(line_x, line_z) * around.seam

    fx, fz = x * around.frequency_x, z * around.frequency_z
    # each plank has its own grain
    fx = fx + lot * around.stagger * 40.0
    top_frequency = torch.maximum(around.frequency_x, around.frequency_z)
    tone = (value_noise(fx * 0.31, fz * 0.31) - 0.5) * around.coarse
    tone = tone + (value_noise(fx, fz) - 0.5) * around.medium * kept(around.frequency_z)
    tone = tone + (value_noise(fx * 3.1 + 5.5, fz * 3.1) - 0.5) * around.fine * kept(top_frequency * 1.5)
    wave = torch.sin((z * 1.0 + x * 0.25 + value_noise(x * 0.6, z * 0.6) * 2.2) * (2.0 * math.pi * 1.7))
    tone = tone + wave * around.ripple * kept(1.7)

    plain = mix(around.base, around.other, (0.5 + tone).clamp(0.0, 1.0))
    tiled = mix(around.base, around.other, (parity * 0.92 + 0.04 + tone).clamp(0.0, 1.0))
    color = mix(plain, tiled, around.checker)
    return color.scale((1.0 + (lot - 0.5) * around.tone * kept(1.0 / around.cell_x)) * (1.0 - seam))
