"""Where objects stand: the camera's projection, and placement such that nothing intersects or hides another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.pocket.sdf import form_table
from calotype.pocket.vocabulary import MAX_OBJECTS

CANDIDATES = 24
"""Arrangements tried at a time for one scene."""
ROUNDS = 200
"""Times that scenes without a good arrangement are tried again before giving up."""

_PAIRS = tuple((i, j) for i in range(MAX_OBJECTS) for j in range(i + 1, MAX_OBJECTS))


def camera_axes(eye: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right, up and forward unit vectors [..., 3] of a camera without roll."""
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    zero = torch.zeros_like(forward[..., 0])
    right = torch.nn.functional.normalize(
        torch.stack((-forward[..., 2], zero, forward[..., 0]), dim=-1), dim=-1
    )
    up = torch.linalg.cross(right, forward)
    return right, up, forward


def project(points: Tensor, eye: Tensor, target: Tensor, fov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World points [B, ..., 3] seen by cameras ([B, 3], [B, 3], degrees [B]).

    Returns:
        x and y on the picture, -1 to 1 from left to right and from bottom to top, and the depth along the axis.
    """
    lead = (points.shape[0],) + (1,) * (points.ndim - 2)
    right, up, forward = (axis.view(*lead, 3) for axis in camera_axes(eye, target))
    offset = points - eye.view(*lead, 3)
    depth = (offset * forward).sum(-1).clamp_min(1e-3)
    zoom = 1.0 / torch.tan(fov.view(lead) * (math.pi / 360))
    return (offset * right).sum(-1) / depth * zoom, (offset * up).sum(-1) / depth * zoom, depth


def heights(shape: Tensor, scale: Tensor) -> Tensor:
    """Height [B, K] of objects standing on the ground: where the next one would stand on top."""
    return (form_table("base", shape.device) + form_table("top", shape.device))[shape] * scale


def rest(position: Tensor, support: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """Put every object that another supports on top of it; positions [B, ..., K, 3], ``support`` [B, K], -1: floor."""
    shape_of = (support.shape[0],) + (1,) * (position.ndim - 3) + (support.shape[1],)
    on_top = (support >= 0).view(shape_of)
    below = support.clamp_min(0)
    lift = torch.gather(heights(shape, scale), 1, below).view(shape_of)
    index = below.view(*shape_of, 1).expand(position.shape)
    carrier = torch.gather(position, -2, index)
    stacked = torch.stack((carrier[..., 0], lift.expand(carrier.shape[:-1]), carrier[..., 2]), dim=-1)
    return torch.where(on_top.unsqueeze(-1), stacked, position)


def _acceptable(
    position: Tensor,
    shape: Tensor,
    scale: Tensor,
    present: Tensor,
    support: Tensor,
    camera: tuple[Tensor, ...],
) -> Tensor:
    """[B, C]: which of C arrangements [B, C, K, 3] are in the frame, apart from each other and little hidden."""
    sx, _, depth = project(position, *camera)
    zoom = 1.0 / torch.tan(camera[2] * (math.pi / 360))[:, None, None]
    width = (form_table("width", shape.device)[shape] * scale).unsqueeze(1)
    half = width / depth * zoom
    top = position.clone()
    top[..., 1] = top[..., 1] + heights(shape, scale).unsqueeze(1)
    sy_top = project(top, *camera)[1]
    sy_base = project(position, *camera)[1]
    fits = (sx.abs() + half < 0.97) & (sy_top < 0.96) & (sy_base > -0.84)
    good = (fits | ~present.unsqueeze(1)).all(-1)
    for i, j in _PAIRS:
        stacked = (support[:, i] == j) | (support[:, j] == i)
        gap = torch.linalg.vector_norm(position[..., i, ::2] - position[..., j, ::2], dim=-1)
        apart = gap > 1.06 * (width[..., i] + width[..., j]) + 0.12
        larger, smaller = torch.maximum(half[..., i], half[..., j]), torch.minimum(half[..., i], half[..., j])
        seen = (sx[..., i] - sx[..., j]).abs() > larger + 0.35 * smaller
        needed = (present[:, i] & present[:, j] & ~stacked).unsqueeze(1)
        good = good & ((apart & seen) | ~needed)
    return good


def place(
    shape: Tensor,
    scale: Tensor,
    present: Tensor,
    support: Tensor,
    camera: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    """Points [B, 3, 3] on which the objects stand, by rejection; ``camera`` is (eye, target, field of view).

    Raises:
        RuntimeError: no arrangement was found for some scene, that is, its objects are too large for the frame.
    """
    device = shape.device
    alone = (present.sum(1) == 1).view(-1, 1, 1)
    reach_x = torch.where(alone, 1.3, 2.3)
    near, back = torch.where(alone, 1.3, 1.6), torch.where(alone, -0.5, -1.9)
    back = torch.where((support >= 0).any(1).view(-1, 1, 1), -2.5, back)  # towers need distance to fit
    placed = torch.zeros(*shape.shape, 3, device=device)
    todo = torch.arange(len(shape), device=device)
    for _ in range(ROUNDS):
        if not len(todo):
            return placed
        draw = torch.rand(len(todo), CANDIDATES, shape.shape[1], 2, generator=generator, device=device)
        x = (2 * draw[..., 0] - 1) * reach_x[todo]
        z = back[todo] + draw[..., 1] * (near[todo] - back[todo])
        position = torch.stack((x, torch.zeros_like(x), z), dim=-1)
        position = rest(position, support[todo], shape[todo], scale[todo])
        good = _acceptable(
            position, shape[todo], scale[todo], present[todo], support[todo],
            (camera[0][todo], camera[1][todo], camera[2][todo]),
        )  # fmt: skip
        first = good.to(torch.uint8).argmax(1)
        found = good.any(1)
        chosen = position[torch.arange(len(todo), device=device), first]
        placed[todo[found]] = chosen[found]
        todo = todo[~found]
    if len(todo):
        raise RuntimeError(f"No room was found for the objects of {len(todo)} of {len(shape)} scenes.")
    return placed
