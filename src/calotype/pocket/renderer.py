"""Scenes to pictures: rays through every (sub)pixel, sphere-traced and shaded, for a whole batch at a time.

Everything is elementwise on [scenes, rays] with fixed step counts, so ``torch.compile`` makes a handful of kernels
out of it. Cost: one distance evaluation is about 215 FLOPs (three objects), a ray takes 32 to find its surface,
22 for the shadow, 16 for the mirror, 14 for normals, occlusion and identity, and about 1,600 FLOPs are shading:
some 20 kFLOP a ray, 1.3 GFLOP a picture of 128 x 128 with 2 x 2 supersampling. 1,500 such pictures a second are
2 TFLOP/s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.pocket import sdf, shading
from calotype.pocket.placement import camera_axes
from calotype.pocket.scene import SceneBatch
from calotype.pocket.surroundings import floor_color, pack_surroundings, sky_color, unpack_surroundings
from calotype.pocket.vec3 import Vec3, along, normalize, reflect, where

FIND_STEPS, SHADOW_STEPS, MIRROR_STEPS = 32, 22, 16
_STRIDE = 2
"""Marching steps in one compiled call: more make larger kernels that take minutes to compile, for no speed."""
_SURFACE = 0.012
"""A ray has hit when it is nearer than this to a surface: half a subpixel at the objects' distance."""
SKY_DEPTH = 100.0
REACH = 300.0
"""Rays end here, so that no coordinate grows beyond what float32 resolves."""
RAYS_AT_A_TIME = 1 << 23
"""Rays in flight on a GPU; about 200 bytes each."""
RAYS_AT_A_TIME_CPU = 1 << 17
MAX_SIZE, MAX_SUPERSAMPLE = 2048, 8


@dataclass(frozen=True)
class Rendering:
    """B pictures and what is exactly known of them."""

    rgb: Tensor
    """[B, 3, H, W] in [0, 1], display values (gamma applied)"""
    depth: Tensor
    """[B, 1, H, W], along the camera's axis in world units; ``SKY_DEPTH`` for the sky"""
    normal: Tensor
    """[B, 3, H, W], unit vectors in world coordinates; zero for the sky"""
    object_id: Tensor
    """uint8 [B, 1, H, W]: 0 for floor and sky, k + 1 for the object in slot k"""
    edges: Tensor
    """[B, 1, H, W], 1 on outlines and creases of objects, else 0"""


def camera_rays(camera: Tensor, columns: Tensor, rows: Tensor) -> Vec3:
    """Unit directions [B, rays] through points of the picture; ``camera`` as from :func:`_pack_camera`."""
    right, up, forward, zoom = camera[:, 0:3], camera[:, 3:6], camera[:, 6:9], camera[:, 9:10]

    def component(i: int) -> Tensor:
        return (right[:, i : i + 1] * columns + up[:, i : i + 1] * rows) * zoom + forward[:, i : i + 1]

    return normalize(Vec3(component(0), component(1), component(2)))


@dataclass(frozen=True)
class _Stages:
    """The elementwise functions of which a rendering is made; plain or each compiled once and used in many places."""

    directions: Callable[..., Vec3] = camera_rays
    hull: Callable[..., tuple[Tensor, Tensor]] = sdf.hull
    advance: Callable[..., Tensor] = sdf.march
    advance_shadow: Callable[..., tuple[Tensor, Tensor]] = sdf.march_shadow
    nearest: Callable[..., tuple[Tensor, Tensor]] = sdf.nearest_object
    distance: Callable[..., Tensor] = sdf.scene_distance
    sky: Callable[..., Vec3] = sky_color
    floor: Callable[..., Vec3] = floor_color
    reflection: Callable[..., Vec3] = shading.reflected_light
    shade: Callable[..., Vec3] = shading.surface_color
    develop: Callable[..., Vec3] = shading.develop

    def compiled(self) -> _Stages:
        return _Stages(
            *(torch.compile(getattr(self, f.name), fullgraph=True, dynamic=False) for f in fields(self))
        )


@dataclass(frozen=True)
class _Traced:
    """Per ray [B, rays]: display colour, ray parameter, id and normal."""

    color: Vec3
    t: Tensor
    identity: Tensor
    """0 floor, k + 1 the object in slot k, -1 sky"""
    normal: Vec3


def _trace(scenes: SceneBatch, columns: Tensor, rows: Tensor, stages: _Stages) -> _Traced:
    objects = sdf.pack_bodies(
        scenes.shape, scenes.position, scenes.scale, scenes.yaw, scenes.roll, scenes.present
    )
    around = pack_surroundings(scenes.floor, scenes.sky, scenes.light, scenes.texture_offset)
    materials = shading.pack_materials(scenes.color, scenes.material)
    direction = stages.directions(_pack_camera(scenes), columns, rows)

    def spread(
        v: Tensor,
    ) -> Vec3:  # one vector a scene -> one a ray, so that all rays look alike to the compiler
        return Vec3(*(v[:, i : i + 1].expand(direction.x.shape).contiguous() for i in range(3)))

    def distance_to(p: Vec3) -> Tensor:
        return stages.distance(p, objects)

    # what the rays meet
    origin = spread(scenes.eye)
    t, leave = stages.hull(origin, direction, objects, 1.0)
    for _ in range(FIND_STEPS // _STRIDE):
        t = stages.advance(origin, direction, t, objects, _STRIDE)
    t = t.clamp_max(REACH)
    distance, slot = stages.nearest(along(origin, direction, t), objects)
    t_floor = torch.where(direction.y < -1e-4, origin.y / (-direction.y).clamp_min(1e-4), sdf.FAR)
    on_object = (distance < _SURFACE) & (t < leave + 0.05) & (t < t_floor)
    t_hit = torch.where(on_object, t, t_floor)
    identity = torch.where(on_object, slot + 1, torch.where(t_floor < sdf.FAR, 0, -1))
    p = along(origin, direction, t_hit.clamp_max(REACH))
    up = Vec3(torch.zeros_like(t), torch.ones_like(t), torch.zeros_like(t))
    normal = where(on_object, sdf.surface_normal(p, distance_to), up)

    # what light reaches them
    occlusion = shading.ambient_occlusion(p, normal, distance_to)
    outside, lamp = along(p, normal, 0.03), spread(scenes.light)
    t_light = stages.hull(outside, lamp, objects, 1.35)[0].clamp(0.02, REACH)
    light, sharpness = torch.ones_like(t), unpack_surroundings(around).sharpness.contiguous()
    for _ in range(SHADOW_STEPS // _STRIDE):
        t_light, light = stages.advance_shadow(outside, lamp, t_light, light, sharpness, objects, _STRIDE)

    # what they mirror
    mirrored = reflect(direction, normal)
    t_mirror, leave = stages.hull(outside, mirrored, objects, 1.0)
    for _ in range(MIRROR_STEPS // _STRIDE):
        t_mirror = stages.advance(outside, mirrored, t_mirror, objects, _STRIDE)
    q = along(outside, mirrored, t_mirror.clamp_max(REACH))
    distance, mirrored_slot = stages.nearest(q, objects)
    seen = (distance < 2.5 * _SURFACE) & (t_mirror < leave + 0.05) & (q.y > 0.0)
    above = Vec3(mirrored.x, mirrored.y.clamp_min(0.0), mirrored.z)
    mirror_sky = stages.sky(above, around, torch.zeros_like(t[:1, :1]))
    reflection = stages.reflection(
        outside,
        mirrored,
        mirror_sky,
        seen,
        sdf.surface_normal(q, distance_to),
        mirrored_slot,
        materials,
        around,
    )

    ground = stages.floor(p, t_hit, -direction.y, around)
    surface = stages.shade(
        direction, normal, on_object, slot, ground, light, occlusion, reflection, materials, around
    )
    sky = stages.sky(direction, around, torch.ones_like(t[:1, :1]))
    color = stages.develop(surface, sky, t_hit, identity, around)
    return _Traced(color, t_hit, identity, normal)


def _pack_camera(scenes: SceneBatch) -> Tensor:
    """[B, 10]: right, up, forward, tangent of half the field of view."""
    right, up, forward = camera_axes(scenes.eye, scenes.target)
    zoom = torch.tan(scenes.fov * (math.pi / 360))[:, None]
    return torch.cat((right, up, forward, zoom), dim=1).float()


def _ray_grid(size: int, supersample: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns and rows (-1 to 1, up) [1, rays], ordered pixel by pixel with a pixel's subsamples together."""
    fine = size * supersample
    line = (torch.arange(fine, device=device, dtype=torch.float32) + 0.5) * (2.0 / fine) - 1.0
    rows, columns = torch.meshgrid(-line, line, indexing="ij")

    def by_pixel(values: Tensor) -> Tensor:
        blocks = values.reshape(size, supersample, size, supersample).permute(0, 2, 1, 3)
        return blocks.reshape(1, -1).contiguous()

    return by_pixel(columns), by_pixel(rows)


def _edges(identity: Tensor, normal: Tensor) -> Tensor:
    """1 where the next pixel to the right or below is another object or turns away by more than 40 degrees."""
    edges = torch.zeros_like(identity, dtype=torch.bool)
    for dim in (-1, -2):
        n = identity.shape[dim] - 1
        first, second = identity.narrow(dim, 0, n), identity.narrow(dim, 1, n)
        turn = (normal.narrow(dim, 0, n) * normal.narrow(dim, 1, n)).sum(1, keepdim=True)
        edges.narrow(dim, 0, n).logical_or_((first != second) | ((turn < 0.77) & (first > 0)))
    return edges.float()


def _assemble(
    traced: _Traced, scenes: SceneBatch, columns: Tensor, rows: Tensor, size: int, samples: int
) -> Rendering:
    """Subsamples to pixels: colours averaged, all else from the subsample nearest to the viewer."""
    batch, pixels = len(scenes), size * size

    def grouped(values: Tensor) -> Tensor:
        return values.view(batch, pixels, samples)

    def pictures(values: Tensor) -> Tensor:
        return values.view(batch, -1, size, size)

    rgb = torch.stack([grouped(c).mean(-1) for c in (traced.color.x, traced.color.y, traced.color.z)], dim=1)
    nearest = grouped(traced.t).argmin(-1, keepdim=True)

    def at_nearest(values: Tensor) -> Tensor:
        return grouped(values).gather(-1, nearest).squeeze(-1)

    zoom = torch.tan(scenes.fov * (math.pi / 360))[:, None]
    axial = torch.rsqrt(1.0 + zoom * zoom * (columns * columns + rows * rows))
    identity = at_nearest(traced.identity)
    depth = torch.where(identity < 0, SKY_DEPTH, at_nearest(traced.t * axial)).clamp_max(SKY_DEPTH)
    components = (traced.normal.x, traced.normal.y, traced.normal.z)
    normal = torch.stack([at_nearest(c) for c in components], dim=1) * (identity >= 0)[:, None]
    object_id = pictures(identity.clamp_min(0).to(torch.uint8))
    normal = normal.view(batch, 3, size, size)
    return Rendering(
        rgb=rgb.view(batch, 3, size, size).clamp(0.0, 1.0),
        depth=pictures(depth),
        normal=normal,
        object_id=object_id,
        edges=_edges(object_id, normal),
    )


@torch.no_grad()
def _render(scenes: SceneBatch, size: int, supersample: int, stages: _Stages, at_a_time: int) -> Rendering:
    columns, rows = _ray_grid(size, supersample, scenes.device)
    parts = []
    for part in scenes.chunks(at_a_time):
        # compiled kernels have a fixed batch: the last part is filled up with its own first scene
        full = part
        if stages is not _PLAIN and len(part) < at_a_time:
            index = torch.arange(at_a_time, device=part.device)
            full = part[torch.where(index < len(part), index, 0)]
        rendering = _assemble(
            _trace(full, columns, rows, stages), full, columns, rows, size, supersample * supersample
        )
        parts.append(Rendering(*(getattr(rendering, f.name)[: len(part)] for f in fields(Rendering))))
    if len(parts) == 1:
        return parts[0]
    return Rendering(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Rendering)))


_PLAIN = _Stages()


def _check(size: int, supersample: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"The picture's size must be 1 to {MAX_SIZE} pixels, not {size}.")
    if not 1 <= supersample <= MAX_SUPERSAMPLE:
        raise InputError(f"supersample must be 1 to {MAX_SUPERSAMPLE}, not {supersample}.")


def _scenes_at_a_time(size: int, supersample: int, device: torch.device) -> int:
    rays = RAYS_AT_A_TIME_CPU if device.type == "cpu" else RAYS_AT_A_TIME
    return max(1, rays // (size * supersample) ** 2)


def render(scenes: SceneBatch, size: int = 128, supersample: int = 2) -> Rendering:
    """Pictures of ``scenes``, ``size`` x ``size``, each pixel the mean of ``supersample`` squared rays.

    Runs on the scenes' device, some scenes at a time, so that memory is bounded whatever the batch.

    Raises:
        InputError: a size or supersampling factor out of bounds.
    """
    _check(size, supersample)
    return _render(scenes, size, supersample, _PLAIN, _scenes_at_a_time(size, supersample, scenes.device))


def compiled_renderer(
    size: int = 128, supersample: int = 2, scenes_at_a_time: int | None = None
) -> Callable[[SceneBatch], Rendering]:
    """:func:`render` with its stages fused by ``torch.compile``; the first call compiles, later ones are fast.

    Call it with multiples of ``scenes_at_a_time`` scenes (on CUDA 128 at 128 pixels with 2 x 2 subsamples);
    a remainder is rendered as a full part of which the rest is thrown away.
    """
    _check(size, supersample)
    stages = _PLAIN.compiled()

    def rendered(scenes: SceneBatch) -> Rendering:
        at_a_time = scenes_at_a_time or _scenes_at_a_time(size, supersample, scenes.device)
        return _render(scenes, size, supersample, stages, at_a_time)

    return rendered
