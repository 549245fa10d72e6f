"""Light on surfaces: direct light with soft shadows, ambient occlusion, mirror reflection, haze and tone curve."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calotype.pocket.surroundings import Surroundings, smoothstep, unpack_surroundings
from calotype.pocket.vec3 import Vec3, along, dot, mix, where
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


def ambient_occlusion(p: Vec3, normal: Vec3, distance: Callable[[Vec3], Tensor]) -> Tensor:
    """Share of the sky that is open above a point: how much nearer things are than free space along the normal."""
    hidden = torch.zeros_like(p.x)
    for reach, weight in _OCCLUSION_TAPS:
        tap = along(p, normal, reach)
        clear = torch.minimum(distance(tap), tap.y)
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
    p: Vec3,
    mirrored: Vec3,
    sky: Vec3,
    hit: Tensor,
    normal: Vec3,
    slot: Tensor,
    materials: Tensor,
    packed: Tensor,
) -> Vec3:
    """What a mirror ray from ``p`` sees: an object (``hit``; without its own shadows), the floor's mean or the sky."""
    around = unpack_surroundings(packed)
    red, green, blue, *_ = material_at(slot, materials)
    lit = dot(normal, around.light).clamp_min(0.0)
    open_sky = 0.5 + 0.5 * normal.y
    light = along(around.fill.scale(0.35 + 0.65 * open_sky), around.key, lit)
    thing = Vec3(red, green, blue) * light
    falling = along(around.fill, around.key, around.light.y)
    ground = mix(around.base, around.other, 0.4) * falling
    t_ground = p.y / (-mirrored.y).clamp_min(1e-3)
    ground = mix(around.horizon, ground, torch.exp(-(t_ground + 7.0) / _HAZE_DISTANCE))
    outside = mix(ground, sky, smoothstep(-0.02, 0.02, mirrored.y))
    return where(hit, thing, outside)


def surface_color(
    direction: Vec3,
    normal: Vec3,
    on_object: Tensor,
    slot: Tensor,
    ground: Vec3,
    light: Tensor,
    occlusion: Tensor,
    reflection: Vec3,
    materials: Tensor,
    packed: Tensor,
) -> Vec3:
    """Radiance that a surface (object in ``slot``, else floor of albedo ``ground``) sends back along the ray."""
    around = unpack_surroundings(packed)
    *color, diffuse, head_on, tint, gleam, sharpness = material_at(slot, materials)
    albedo = where(on_object, Vec3(*color), ground)
    diffuse = torch.where(on_object, diffuse, 1.0)
    head_on = torch.where(on_object, head_on, around.gloss)
    tint = torch.where(on_object, tint, 0.0)
    gleam = torch.where(on_object, gleam, around.gloss * 4.0)
    sharpness = torch.where(on_object, sharpness, 60.0)

    shadow = smoothstep(0.0, 1.0, light)
    lit = dot(normal, around.light).clamp_min(0.0) * shadow
    body = (albedo * along(ambient_light(normal, occlusion, around), around.key, lit)).scale(diffuse)
    mirror = fresnel((-dot(direction, normal)).clamp(0.0, 1.0), head_on)
    one = torch.ones_like(tint)
    tinted = mix(Vec3(one, one, one), albedo, tint)
    # a metal keeps its own colour whatever it mirrors: the mirrored colour loses half of its saturation
    gray = 0.30 * reflection.x + 0.55 * reflection.y + 0.15 * reflection.z
    reflection = mix(reflection, Vec3(gray, gray, gray), tint * 0.55)
    body = body.scale(1.0 - mirror * (1.0 - tint))
    body = along(body, tinted * reflection, mirror * (0.35 + 0.65 * occlusion))
    lobe = highlight(direction, normal, around.light, sharpness) * gleam * shadow * (lit > 0)
    return along(body, mix(Vec3(one, one, one), tinted, 0.8) * around.key, lobe)


def develop(surface: Vec3, sky: Vec3, distance: Tensor, identity: Tensor, packed: Tensor) -> Vec3:
    """Display values of the rays: surfaces behind their haze, or sky where ``identity`` is negative."""
    color = where(identity >= 0, haze(surface, distance, unpack_surroundings(packed)), sky)
    return Vec3(tone_curve(color.x), tone_curve(color.y), tone_curve(color.z))


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
