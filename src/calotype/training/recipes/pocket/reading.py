"""What the text encoder is taught before any picture: to read off a caption what stands where.

A denoising loss alone teaches a small text encoder colours and shapes long before it teaches "to the left of". So the
encoder first answers questions about the scene that a caption describes. Its answers stand where the UNet's
cross-attention finds them: the tokens from the end of the text on (the end token and the padding) take turns at the
scene as a whole, the first object from the left, the second and the third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calotype.pocket.labels import centers_of, reading_order
from calotype.pocket.motion import MOTIONS, SPEEDS, MovingScenes
from calotype.pocket.scene import SceneBatch
from calotype.pocket.vocabulary import COLORS, FLOORS, MATERIALS, MAX_OBJECTS, SHAPES, SIZES, SKIES

_SCENE = {
    "count": MAX_OBJECTS + 1,
    "floor": len(FLOORS),
    "sky": len(SKIES),
    "motion": len(MOTIONS) + 1,
    "speed": len(SPEEDS) + 1,
}
_OBJECT = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "size": len(SIZES) + 1,
    "material": len(MATERIALS) + 1,
    "depth": MAX_OBJECTS + 1,
    "standing": 3,
}
QUESTIONS = (_SCENE, *([_OBJECT] * MAX_OBJECTS))
"""For each role its questions and how many answers they have; the last answer to those about an object, or about what
happens, is that there is none."""

_ROLES_ASKED = Counter(name for role in QUESTIONS for name in role)


def answers_of(scenes: SceneBatch, moving: MovingScenes | None = None) -> Tensor:
    """int64 [B, Q]: the answers to :data:`QUESTIONS`, role after role; ``moving`` if the scenes are moments of it.

    ``depth`` is how many objects stand nearer to the viewer, ``standing`` is 0 on the floor and 1 on another object.
    """
    order = reading_order(centers_of(scenes), scenes.present)
    present = scenes.present.gather(1, order)

    def object_answers(values: Tensor, absent: int) -> Tensor:
        return torch.where(present, values.gather(1, order), absent)

    z = torch.where(scenes.present, scenes.position[..., 2], -torch.inf)
    nearer = (z[:, None, :] > z[:, :, None]).sum(-1)
    columns = {
        "shape": scenes.shape,
        "color": scenes.color,
        "size": scenes.size,
        "material": scenes.material,
        "depth": nearer,
        "standing": (scenes.support >= 0).long(),
    }
    of_objects = torch.stack(
        [object_answers(columns[name], count - 1) for name, count in _OBJECT.items()], dim=-1
    )
    nothing = torch.ones_like(scenes.floor)
    motion = nothing * len(MOTIONS) if moving is None else moving.motion
    speed = nothing * len(SPEEDS) if moving is None else moving.speed
    of_scene = torch.stack((scenes.present.sum(1), scenes.floor, scenes.sky, motion, speed), dim=-1)
    return torch.cat((of_scene, of_objects.flatten(1)), dim=1)


class ReadingObjective(nn.Module):
    """Cross-entropy of the answers that a CLIP text encoder's states give after the end of the text.

    The token at position p, from the first end token on, answers for role p mod 4; it also tells its role, so that
    cross-attention can choose it.
    """

    text_encoder: Any

    def __init__(self, text_encoder: nn.Module, width: int, end: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.end = end
        self.heads = nn.ModuleList(nn.Linear(width, sum(role.values())) for role in QUESTIONS)
        self.role = nn.Linear(width, len(QUESTIONS))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``input_ids`` [B, L] and ``answers`` [B, Q]; beside the loss the share of right answers per question."""
        ids, answers = batch["input_ids"], batch["answers"]
        states = self.text_encoder(input_ids=ids).last_hidden_state
        over = (ids == self.end).cumsum(1) > 0
        roles = len(QUESTIONS)
        losses, first = [], 0
        shares: dict[str, Tensor] = {}
        for number, (role, head) in enumerate(zip(QUESTIONS, self.heads, strict=True)):
            logits, counted = head(states[:, number::roles]).float(), over[:, number::roles]
            parts = logits.split(list(role.values()), dim=-1)
            for column, (name, part) in enumerate(zip(role, parts, strict=True), start=first):
                target = answers[:, column, None].expand(counted.shape)
                error = F.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none")
                weight = counted.float() / counted.sum()
                losses.append((error.view_as(weight) * weight).sum())
                right = ((part.argmax(-1) == target) * weight).sum()
                shares[name] = shares.get(name, right.new_zeros(())) + right / _ROLES_ASKED[name]
            first += len(role)
        place = torch.arange(ids.shape[1], device=ids.device).remainder(roles).expand_as(ids)
        known = F.cross_entropy(self.role(states).float().flatten(0, 1), place.flatten())
        return {"loss": torch.stack(losses).mean() + known, **shares}


@dataclass(frozen=True)
class CaptionSet:
    """N scenes' captions (int16 ids [N, K, L]) and what is true of them (int8 [N, Q])."""

    ids: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class CaptionBatches:
    """Batches for the text encoder: captions (or the empty one) and the answers."""

    data: CaptionSet
    empty: Tensor
    """int16 [L]"""
    batch: int
    seed: int
    dropout: float

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of this number, drawn on the device; the same number gives the same batch."""
        device = self.data.ids.device
        options: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(self.seed + number),
            "device": device,
        }
        index = torch.randint(len(self.data), (self.batch,), **options)
        which = torch.randint(self.data.ids.shape[1], (self.batch,), **options)
        dropped = torch.rand((self.batch, 1), **options) < self.dropout
        return {
            "input_ids": torch.where(dropped, self.empty, self.data.ids[index, which]).long(),
            "answers": self.data.answers[index].long(),
        }
