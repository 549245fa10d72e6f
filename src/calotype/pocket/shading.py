"""Light on surfaces: direct light with soft shadows, ambient occlusion, mirror reflection, haze and tone curve."""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.pocket.sdf import Body, scene_distance
from calotype.pocket.surroundings import Surroundings, sky_color, smoothstep
from calotype.pocket.vec3 import Vec3, along, dot, mix, reflect
from calotype.pocket.vocabulary import COLOR_SRGB, COLORS, MATERIALS, linear_rgb

# diffuse share, mirror reflectance head-on, tint of the mirror, strength and sharpness of highlights
MATERIAL_FORMS = {
    "matte": (1.0, 0.0, 0.0, 0.04, 8.0),
    "shiny": (1.0, 0.07, 0.0, 0.85, 160.0),
    "metal": (0.45, 0.85, 0.97, 0.6, 70.0),
}
_OCCLUSION_TAPS = ((0.07, 0.35), (0.20, 0.30), (0.45, 0.20), (0.90, 0.15))
_HAZE_DISTANCE = 52.0


def pack_materials(color: Tensor, material: Tensor) -> Tensor:
    """Ids [B, 3] -> [B, 3, 8]: linear albedo and the five numbers of the material."""
    colors = torch.tensor([linear_rgb(COLOR_SRGB[name]) for name in COLORS], device=color.device)
    forms = torch.tensor([MATERIAL_FORMS[name] for name in MATERIALS], device=color.device)
    return torch.cat((colors[color], forms[material]), dim=-1)


def material_at(slot: Tensor, packed: Tensor) -> list[Tensor]:
    """The eight numbers of :func:`pack_materials` for the object in ``slot`` at each point."""
    chosen = [packed[:, 0, i : i + 1] for i in range(packed.shape[2])]
    for k in range(1, packed.shape[1]):
        chosen = [torch.where(slot == k, packed[:, k, i : i + 1], value) for i, value in enumerate(chosen)]
    return chosen


def ambient_occlusion(p: Vec3, normal: Vec3, objects: list[Body]) -> Tensor:
    """Share of the sky that is open above a point: how much nearer things are than free space along the normal."""
    hidden = torch.zeros_like(p.x)
    for reach, weight in _OCCLUSION_TAPS:
        tap = along(p, normal, reach)
        clear = torch.minimum(scene_distance(tap, objects), tap.y)
        hidden = hidden + weight * ((reach - clear) / reach).clamp(0.0, 1.0)
    return (1.0 - 0.85 * hidden).clamp(0.0, 1.0)


def ambient_light(normal: Vec3, occlusion: Tensor, around: Surroundings) -> Vec3:
    """Light from the sky above and, coloured by it, from the floor below."""
    up = 0.5 + 0.5 * normal.y
    falling = along(around.fill, around.key, around.light.y)
    bounce = (around.base * falling).scale(0.45)
    return mix(bounce, around.fill, up).scale(occlusion)


def highlight(direction: Vec3, normal: Vec3, light: Vec3, sharpness: Tensor) -> Tensor:
    """Blinn-Phong lobe around the half vector, with its energy growing as it narrows."""
    half = light - direction
    length = torch.rsqrt(dot(half, half).clamp_min(1e-6))
    cosine = (dot(half, normal) * length).clamp(0.0, 1.0)
    return torch.exp(sharpness * 1.4 * (cosine - 1.0))


def fresnel(facing: Tensor, head_on: Tensor) -> Tensor:
    """Schlick's approximation, up to 0.4 for what reflects little; without mirror reflectance nothing is mirrored."""
    grazing = (1.0 - facing).clamp(0.0, 1.0)
    square = grazing * grazing
    limit = head_on.clamp_min(0.4)
    return head_on + (limit - head_on) * square * square * grazing * (head_on > 0)


def reflected_light(
    p: Vec3, mirrored: Vec3, hit: Tensor, normal: Vec3, slot: Tensor, materials: Tensor, around: Surroundings
) -> Vec3:
    """What a mirror ray from ``p`` sees: an object (without its own shadows), the floor's mean colour or the sky."""
    red, green, blue, *_ = material_at(slot, materials)
    lit = dot(normal, around.light).clamp_min(0.0)
    open_sky = 0.5 + 0.5 * normal.y
    light = along(around.fill.scale(0.35 + 0.65 * open_sky), around.key, lit)
    thing = Vec3(red, green, blue) * light
    falling = along(around.fill, around.key, around.light.y)
    ground = mix(around.base, around.other, 0.4) * falling
    t_ground = p.y / (-mirrored.y).clamp_min(1e-3)
    ground = mix(around.horizon, ground, torch.exp(-(t_ground + 7.0) / _HAZE_DISTANCE))
    sky = sky_color(Vec3(mirrored.x, mirrored.y.clamp_min(0.0), mirrored.z), around, details=0.0)
    outside = mix(ground, sky, smoothstep(-0.02, 0.02, mirrored.y))
    seen = hit.to(p.x.dtype)
    return mix(outside, thing, seen)


def surface_color(
    direction: Vec3,
    normal: Vec3,
    albedo: Vec3,
    form: list[Tensor],
    shadow: Tensor,
    occlusion: Tensor,
    reflection: Vec3,
    around: Surroundings,
) -> Vec3:
    """Radiance that a surface sends to the viewer; ``form`` holds the five numbers of the material."""
    diffuse, head_on, tint, gleam, sharpness = form
    lit = dot(normal, around.light).clamp_min(0.0) * shadow
    light = ambient_light(normal, occlusion, around) + around.key.scale(lit)
    body = (albedo * light).scale(diffuse)
    facing = (-dot(direction, normal)).clamp(0.0, 1.0)
    mirror = fresnel(facing, head_on)
    white = Vec3(torch.ones_like(tint), torch.ones_like(tint), torch.ones_like(tint))
    tinted = mix(white, albedo, tint)
    # a metal keeps its own colour whatever it mirrors: the mirrored colour loses half of its saturation
    gray = 0.30 * reflection.x + 0.55 * reflection.y + 0.15 * reflection.z
    reflection = mix(reflection, Vec3(gray, gray, gray), tint * 0.55)
    body = along(
        body.scale(1.0 - mirror * (1.0 - tint)),
        Vec3(*_times(tinted, reflection)),
        mirror * (0.35 + 0.65 * occlusion),
    )
    lobe = highlight(direction, normal, around.light, sharpness) * gleam * shadow * (lit > 0)
    return body + (mix(white, tinted, 0.8) * around.key).scale(lobe)


def _times(a: Vec3, b: Vec3) -> tuple[Tensor, Tensor, Tensor]:
    product = a * b
    return product.x, product.y, product.z


def haze(color: Vec3, distance: Tensor, around: Surroundings) -> Vec3:
    """Blend into the horizon's colour with distance."""
    thin = distance / _HAZE_DISTANCE
    return mix(color, around.horizon, 1.0 - torch.exp(-thin * torch.sqrt(thin)))


def tone_curve(value: Tensor) -> Tensor:
    """Linear light -> display value in [0, 1]: straight up to the highlights, then a soft shoulder, then gamma."""
    value = value.clamp_min(0.0)
    square = value * value
    rolled = value * torch.rsqrt(torch.sqrt(1.0 + square * square))
    return torch.pow(rolled.clamp_min(1e-6), 1.0 / 2.2)


__all__ = [
    "ambient_light", "ambient_occlusion", "fresnel", "haze", "highlight", "material_at", "pack_materials",
    "reflect", "reflected_light", "surface_color", "tone_curve",
]  # fmt: skip
