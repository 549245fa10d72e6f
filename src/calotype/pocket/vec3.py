"""Three tensors as one vector: the renderer keeps x, y, z apart so that the compiler fuses all into registers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vec3:
    """A field of 3-vectors (or of linear RGB colours); the three tensors broadcast with one another."""

    x: Tensor
    y: Tensor
    z: Tensor

    def __add__(self, other: Vec3) -> Vec3:
        return Vec3(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: Vec3) -> Vec3:
        return Vec3(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, other: Vec3) -> Vec3:
        return Vec3(self.x * other.x, self.y * other.y, self.z * other.z)

    def scale(self, s: Tensor | float) -> Vec3:
        return Vec3(self.x * s, self.y * s, self.z * s)


def dot(a: Vec3, b: Vec3) -> Tensor:
    return a.x * b.x + a.y * b.y + a.z * b.z


def along(origin: Vec3, direction: Vec3, t: Tensor | float) -> Vec3:
    """The point ``origin + t * direction``."""
    return Vec3(origin.x + t * direction.x, origin.y + t * direction.y, origin.z + t * direction.z)


def normalize(v: Vec3) -> Vec3:
    return v.scale(torch.rsqrt(dot(v, v).clamp_min(1e-12)))


def reflect(direction: Vec3, normal: Vec3) -> Vec3:
    return along(direction, normal, -2.0 * dot(direction, normal))


def mix(a: Vec3, b: Vec3, weight: Tensor | float) -> Vec3:
    """``a`` where ``weight`` is 0, ``b`` where it is 1."""
    return Vec3(a.x + (b.x - a.x) * weight, a.y + (b.y - a.y) * weight, a.z + (b.z - a.z) * weight)


def where(condition: Tensor, a: Vec3, b: Vec3) -> Vec3:
    return Vec3(
        torch.where(condition, a.x, b.x), torch.where(condition, a.y, b.y), torch.where(condition, a.z, b.z)
    )


def constant(like: Tensor, rgb: tuple[float, float, float]) -> Vec3:
    """A vector of Python floats as scalar tensors on ``like``'s device."""
    return Vec3(*(like.new_full((), value) for value in rgb))
