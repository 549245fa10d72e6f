"""All shapes as one signed-distance function, and marching a ray through it.

Every shape is a *cross-section* (how far a point is from the axis: round, square, star or heart) swept by a *profile*
(a slab with sloped sides, or the tube around a segment). Their few numbers stand in a table, so that one branch-free
function serves all and a batch may mix shapes freely. All the pieces are 1-Lipschitz, hence so is the whole:
the value never exceeds the true distance and sphere tracing (Hart 1996) cannot step through a surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from calotype.pocket.vec3 import Vec3, along, dot, normalize
from calotype.pocket.vocabulary import EVERY_SHAPE, MAX_OBJECTS

FAR = 1.0e4


@dataclass(frozen=True)
class ShapeForm:
    """The numbers of one shape at scale 1. The centre is ``height / 2``-ish above the ground: ``base``."""

    base: float
    """Height of the centre when the shape stands on the ground."""
    top: float
    """Height of the highest point above the centre."""
    bound: float
    """Radius of a sphere around the centre that holds the shape."""
    width: float
    """Half of the width that a viewer sees, averaged over yaw."""
    section: str = "round"
    """``round``, ``square``, ``star`` or ``heart``."""
    upright: bool = False
    """The axis points to the viewer instead of up."""
    ring: float = 0.0
    """Radius at which the profile's axis runs around the shape's own."""
    tube: float = 0.0
    """Radius of a tube around the axis segment; 0 for a slab profile."""
    half: float = 0.0
    """Half of the length along the axis."""
    bottom_radius: float = 0.0
    top_radius: float = 0.0
    mirror: bool = False
    """The profile is repeated upside down below the centre."""
    bevel: float = 0.1
    """Width of the rounded edges."""


_STAR_TIP, _STAR_NOTCH = 1.08, 0.52
_COS36, _SIN36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
# the one edge of the star that is left after folding runs from the tip (0, tip) to the notch
_EDGE = (_STAR_TIP - _STAR_NOTCH * _COS36, _STAR_NOTCH * _SIN36)
_STAR_NORMAL = (_EDGE[0] / math.hypot(*_EDGE), _EDGE[1] / math.hypot(*_EDGE))
# two discs of this radius beside each other, and the lines that touch them and meet at a right angle below
_HEART_LOBE, _HEART_APART = 0.5, 0.46
_HEART_TIP = _HEART_APART + math.sqrt(2) * _HEART_LOBE

FORMS = {
    "sphere": ShapeForm(base=0.95, top=0.95, bound=0.96, width=0.95, tube=0.95),
    "cube": ShapeForm(
        base=0.78, top=0.78, bound=1.36, width=0.98, section="square", half=0.78, bottom_radius=0.78, top_radius=0.78
    ),
    "cylinder": ShapeForm(
        base=0.88, top=0.88, bound=1.18, width=0.76, half=0.88, bottom_radius=0.76, top_radius=0.76, bevel=0.12
    ),
    "cone": ShapeForm(base=0.98, top=0.98, bound=1.42, width=0.92, half=0.98, bottom_radius=0.95, bevel=0.07),
    "torus": ShapeForm(base=0.98, top=0.98, bound=0.99, width=0.9, upright=True, ring=0.68, tube=0.30),
    "pyramid": ShapeForm(
        base=0.8, top=0.8, bound=1.54, width=1.0, section="square", half=0.8, bottom_radius=0.92, bevel=0.04
    ),
    "capsule": ShapeForm(base=1.06, top=1.06, bound=1.07, width=0.62, tube=0.62, half=0.44),
    "octahedron": ShapeForm(
        base=1.1, top=1.1, bound=1.12, width=0.9, section="square", mirror=True, half=0.55, bottom_radius=0.72,
        bevel=0.04,
    ),
    "star": ShapeForm(
        base=_STAR_TIP * _COS36, top=_STAR_TIP, bound=1.12, width=0.95, section="star", upright=True, half=0.26,
        bottom_radius=_STAR_TIP * _STAR_NORMAL[1], top_radius=_STAR_TIP * _STAR_NORMAL[1], bevel=0.12,
    ),
    "heart": ShapeForm(
        base=_HEART_TIP, top=_HEART_LOBE, bound=1.21, width=0.9, section="heart", upright=True, half=0.3,
        bottom_radius=_HEART_LOBE, top_radius=_HEART_LOBE, bevel=0.16,
    ),
}  # fmt: skip
"""Shape name -> its numbers."""


def form_table(values: str, device: torch.device | str | None = None) -> Tensor:
    """One field of every :class:`ShapeForm`, [shapes] in the order of the ids."""
    return torch.tensor([float(getattr(FORMS[name], values)) for name in EVERY_SHAPE], device=device)


@dataclass(frozen=True)
class Body:
    """One object of every scene of a batch, ready for the distance function; all tensors [B, 1], flags as 0 or 1."""

    x: Tensor
    y: Tensor
    z: Tensor
    scale: Tensor
    cos_yaw: Tensor
    sin_yaw: Tensor
    cos_roll: Tensor
    sin_roll: Tensor
    bound: Tensor
    absent: Tensor
    is_square: Tensor
    is_star: Tensor
    is_heart: Tensor
    is_upright: Tensor
    is_tube: Tensor
    is_mirrored: Tensor
    ring: Tensor
    tube: Tensor
    half: Tensor
    bevel: Tensor
    mean_radius: Tensor
    slope_q: Tensor
    slope_a: Tensor


def pack_bodies(
    shape: Tensor, position: Tensor, scale: Tensor, yaw: Tensor, roll: Tensor, present: Tensor
) -> Tensor:
    """Scene tensors ([B, 3] ids, [B, 3, 3] points of standing, ...) -> one float tensor [B, 3, fields of Body].

    One tensor instead of fifty keeps the calls of compiled functions cheap.
    """
    device = shape.device
    base, bound, ring, tube, half, bottom, top, bevel = (
        form_table(name, device)[shape]
        for name in ("base", "bound", "ring", "tube", "half", "bottom_radius", "top_radius", "bevel")
    )
    sections = [FORMS[name].section for name in EVERY_SHAPE]
    square = torch.tensor([float(s == "square") for s in sections], device=device)[shape]
    star = torch.tensor([float(s == "star") for s in sections], device=device)[shape]
    heart = torch.tensor([float(s == "heart") for s in sections], device=device)[shape]
    # unit normal of the slab's side in the (radius, axis) plane
    rise, run = 2 * half, bottom - top
    length = torch.hypot(rise, run).clamp_min(1e-6)
    columns = {
        "x": position[..., 0],
        "y": position[..., 1] + base * scale,
        "z": position[..., 2],
        "scale": scale,
        "cos_yaw": torch.cos(yaw),
        "sin_yaw": torch.sin(yaw),
        "cos_roll": torch.cos(roll),
        "sin_roll": torch.sin(roll),
        "bound": bound * scale,
        "absent": (~present).float(),
        "is_square": square,
        "is_star": star,
        "is_heart": heart,
        "is_upright": form_table("upright", device)[shape],
        "is_tube": (tube > 0).float(),
        "is_mirrored": form_table("mirror", device)[shape],
        "ring": ring,
        "tube": tube,
        "half": half,
        "bevel": bevel,
        "mean_radius": (bottom + top) / 2,
        "slope_q": rise / length,
        "slope_a": run / length,
    }
    return torch.stack([columns[f.name].float() for f in fields(Body)], dim=-1)


def unpack_bodies(packed: Tensor) -> list[Body]:
    """The reverse of :func:`pack_bodies`: views, one :class:`Body` a slot."""
    return [Body(*(packed[:, k, i : i + 1] for i in range(packed.shape[2]))) for k in range(MAX_OBJECTS)]


def smooth_max(a: Tensor, b: Tensor, width: Tensor | float) -> Tensor:
    """The larger of two, blended within ``width`` by a parabola; a convex mix of gradients, so still 1-Lipschitz."""
    blend = (width - (a - b).abs()).clamp_min(0.0)
    return torch.maximum(a, b) + blend * blend * (0.25 / width)


def star_section(u: Tensor, v: Tensor) -> Tensor:
    """Distance of (u, v) along the normal of the star's edges, after folding the plane by its ten mirrors."""
    u = u.abs()
    # mirrors through the centre at +-36 degrees from the vertical, then the vertical again: the group D5
    for side in (1.0, -1.0):
        across = (side * _COS36 * u - _SIN36 * v).clamp_min(0.0)
        u = u - 2.0 * across * side * _COS36
        v = v + 2.0 * across * _SIN36
    return u.abs() * _STAR_NORMAL[0] + v * _STAR_NORMAL[1]


def heart_section(u: Tensor, v: Tensor) -> Tensor:
    """Distance of (u, v) to the heart, plus the radius of its lobes; a lower bound off its rounded parts."""
    x = u.abs() - _HEART_APART
    below = torch.maximum(v, (x + v) * math.sqrt(0.5)) + _HEART_LOBE
    return torch.minimum(torch.sqrt(x * x + v * v + 1e-12), torch.maximum((x - v) * math.sqrt(0.5), below))


def body_distance(p: Vec3, body: Body) -> Tensor:
    """Signed distance (a lower bound outside) from points [B, N] to one object a scene; about 88 FLOPs a point."""
    inverse = 1.0 / body.scale
    x = (p.x - body.x) * inverse
    y = (p.y - body.y) * inverse
    z = (p.z - body.z) * inverse
    u = body.cos_yaw * x - body.sin_yaw * z
    w = body.sin_yaw * x + body.cos_yaw * z
    u, y = body.cos_roll * u + body.sin_roll * y, body.cos_roll * y - body.sin_roll * u
    axis = torch.where(body.is_upright > 0.5, w, y)
    v = torch.where(body.is_upright > 0.5, y, w)
    square = smooth_max(u.abs(), v.abs(), 0.1)
    q = torch.where(body.is_square > 0.5, square, torch.sqrt(u * u + v * v + 1e-12))
    q = torch.where(body.is_star > 0.5, star_section(u, v), q)
    q = torch.where(body.is_heart > 0.5, heart_section(u, v), q)
    q = (q - body.ring).abs()
    axis = torch.where(body.is_mirrored > 0.5, axis.abs() - body.half, axis)
    beyond = axis.abs() - body.half
    outside = beyond.clamp_min(0.0)
    tube = torch.sqrt(q * q + outside * outside + 1e-12) - body.tube
    side = (q - body.mean_radius) * body.slope_q + axis * body.slope_a
    slab = smooth_max(beyond, side, body.bevel)
    distance = torch.where(body.is_tube > 0.5, tube, slab) * body.scale
    return torch.where(body.absent > 0.5, FAR, distance)


def scene_distance(p: Vec3, objects: Tensor) -> Tensor:
    """Signed distance to the nearest object (the floor is not in it: a ray meets it in closed form).

    ``objects`` here and below is what :func:`pack_bodies` returns.
    """
    first, *others = unpack_bodies(objects)
    nearest = body_distance(p, first)
    for body in others:
        nearest = torch.minimum(nearest, body_distance(p, body))
    return nearest


def nearest_object(p: Vec3, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance to the nearest object and its slot (0, 1, 2; int64)."""
    first, *others = unpack_bodies(objects)
    best, slot = body_distance(p, first), torch.zeros_like(p.x, dtype=torch.int64)
    for k, body in enumerate(others, start=1):
        distance = body_distance(p, body)
        slot = torch.where(distance < best, k, slot)
        best = torch.minimum(best, distance)
    return best, slot


def hull(origin: Vec3, direction: Vec3, objects: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Where a ray enters and leaves the bounding spheres of all objects, ``margin`` times as large.

    (FAR, -FAR) when it meets none.
    """
    enter, leave = torch.full_like(origin.x, FAR), torch.full_like(origin.x, -FAR)
    for body in unpack_bodies(objects):
        to_center = Vec3(body.x, body.y, body.z) - origin
        middle = dot(to_center, direction)
        radius = body.bound * margin
        chord = radius * radius - (dot(to_center, to_center) - middle * middle)
        half = torch.sqrt(chord.clamp_min(0.0))
        meets = (chord > 0) & (middle + half > 0) & (body.absent < 0.5)
        enter = torch.minimum(enter, torch.where(meets, (middle - half).clamp_min(0.0), FAR))
        leave = torch.maximum(leave, torch.where(meets, middle + half, -FAR))
    return enter, leave


def march(origin: Vec3, direction: Vec3, t: Tensor, objects: Tensor, steps: int) -> Tensor:
    """Sphere tracing: ``steps`` safe steps from ``t`` along the ray; the ray parameter reached."""
    for _ in range(steps):
        t = t + scene_distance(along(origin, direction, t), objects)
    return t


def march_shadow(
    origin: Vec3, direction: Vec3, t: Tensor, light: Tensor, sharpness: Tensor, objects: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Like :func:`march`, towards a lamp; also the least ``sharpness * distance / t`` met: the penumbra."""
    for _ in range(steps):
        distance = scene_distance(along(origin, direction, t), objects)
        light = torch.minimum(light, sharpness * distance / t.clamp_min(1e-3))
        t = t + distance.clamp(0.025, 0.6)
    return t, light


_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


def surface_normal(p: Vec3, distance: Callable[[Vec3], Tensor], width: float = 0.012) -> Vec3:
    """Unit gradient of ``distance`` by differences at the four corners of a tetrahedron."""
    total = Vec3(torch.zeros_like(p.x), torch.zeros_like(p.x), torch.zeros_like(p.x))
    for x, y, z in _TETRAHEDRON:
        d = distance(Vec3(p.x + x * width, p.y + y * width, p.z + z * width))
        total = Vec3(total.x + d * x, total.y + d * y, total.z + d * z)
    return normalize(total)
