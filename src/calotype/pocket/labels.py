"""What a picture of a scene shows, as tensors: the classifier's targets, objects ordered from left to right; and what
each of its pixels shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.pocket.placement import project
from calotype.pocket.renderer import Rendering
from calotype.pocket.scene import SceneBatch
from calotype.pocket.sdf import form_table
from calotype.pocket.vocabulary import SHAPES

SAME_COLUMN = 0.14
"""Objects whose centres are nearer than this in x (-1 to 1) stand on each other: the lower one comes first."""

SEGMENTS = ("sky", "floor", *SHAPES)
"""What a pixel can show, by its label."""
PALETTE = (
    (135, 206, 235), (110, 110, 110), (255, 0, 0), (0, 0, 255), (0, 160, 0), (255, 255, 0), (255, 0, 255),
    (255, 128, 0), (0, 255, 255), (128, 0, 160), (255, 255, 255),
)  # fmt: skip
"""The colours of :data:`SEGMENTS` on a picture of labels, RGB 0 to 255."""


@dataclass(frozen=True)
class Labels:
    """Targets of B pictures; slots 0 to 2 run from left to right, empty ones come last with -1 as id."""

    count: Tensor
    """int64 [B]"""
    shape: Tensor
    """int64 [B, 3]"""
    color: Tensor
    """int64 [B, 3]"""
    center: Tensor
    """[B, 3, 2]: x and y of the objects' centres on the picture, -1 to 1, y up"""
    floor: Tensor
    """int64 [B]"""
    sky: Tensor
    """int64 [B]"""

    def __getitem__(self, index: slice | Tensor) -> Labels:
        return Labels(
            self.count[index], self.shape[index], self.color[index], self.center[index], self.floor[index],
            self.sky[index],
        )  # fmt: skip


def reading_order(center: Tensor, present: Tensor) -> Tensor:
    """int64 [B, 3]: slots from left to right, the lower of a stack first, empty ones last."""
    x = torch.where(present, center[..., 0], 10.0)
    order = x.argsort(dim=1, stable=True)
    for first, second in ((0, 1), (1, 2), (0, 1)):
        pair = order[:, [first, second]]
        px, py = x.gather(1, pair), center[..., 1].gather(1, pair)
        both = present.gather(1, pair).all(1)
        swap = both & ((px[:, 1] - px[:, 0]).abs() < SAME_COLUMN) & (py[:, 1] < py[:, 0])
        order[:, [first, second]] = torch.where(swap[:, None], pair.flip(1), pair)
    return order


def centers_of(scenes: SceneBatch) -> Tensor:
    """[B, 3, 2]: x and y of the objects' centres on the picture, -1 to 1, y up, slot by slot."""
    middle = scenes.position.clone()
    middle[..., 1] += form_table("base", scenes.device)[scenes.shape] * scenes.scale
    x, y, _ = project(middle, scenes.eye, scenes.target, scenes.fov)
    return torch.stack((x, y), dim=-1)


def labels_of(scenes: SceneBatch) -> Labels:
    """The targets of ``scenes``."""
    center = centers_of(scenes)
    order = reading_order(center, scenes.present)
    present = scenes.present.gather(1, order)
    return Labels(
        count=scenes.present.sum(1),
        shape=torch.where(present, scenes.shape.gather(1, order), -1),
        color=torch.where(present, scenes.color.gather(1, order), -1),
        center=center.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)),
        floor=scenes.floor,
        sky=scenes.sky,
    )


def instances_of(rendering: Rendering) -> Tensor:
    """uint8 [B, H, W]: 0 where a pixel shows the sky, 1 the floor, 2 + k the object in slot k."""
    ids = rendering.object_id[:, 0]
    ground = rendering.normal.abs().amax(1) > 0
    return torch.where(ids > 0, ids + 1, ground.to(torch.uint8))


def segments_of(instances: Tensor, scenes: SceneBatch) -> Tensor:
    """uint8 [B, H, W]: for each pixel of :func:`instances_of` which of :data:`SEGMENTS` it shows."""
    first = torch.arange(2, device=instances.device).expand(len(instances), 2)
    table = torch.cat((first, 2 + scenes.shape.to(instances.device)), dim=1)
    found = table.gather(1, instances.flatten(1).long())
    return found.view(instances.shape).to(torch.uint8)


def painted(segments: Tensor) -> Tensor:
    """Labels [B, H, W] in their colours, [B, 3, H, W] in [0, 1]."""
    colors = torch.tensor(PALETTE, device=segments.device) / 255
    return colors[segments.long()].permute(0, 3, 1, 2)
