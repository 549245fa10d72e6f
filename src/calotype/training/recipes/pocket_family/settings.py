"""Numbers of the family that its members share; each member adds its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from calotype.core.errors import InputError
from calotype.training.recipes.pocket.settings import changed

PRESET_NAMES = ("full", "tiny")


@dataclass(frozen=True)
class ViewSettings:
    """Scenes to render and encode, and captions for each."""

    count: int = 49_152
    captions: int = 4
    supersample: int = 2
    chunk: int = 1_024
    validation: int = 512


@dataclass(frozen=True)
class TrainSettings:
    """How a member is trained; ``batch`` counts views."""

    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    caption_dropout: float = 0.1
    steps: int | None = None


@dataclass(frozen=True)
class ShapeSettings:
    """A UNet smaller than the base's."""

    channels: tuple[int, ...] = (64, 96, 96)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    head_width: int = 32
    groups: int = 32
    time_width: int = 256


@dataclass(frozen=True)
class SampleSettings:
    """How the pictures of the sheets are drawn."""

    steps: int = 12
    guidance: float = 4.0


class MemberSettings(Protocol):
    """A frozen dataclass with these and what else the member has."""

    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainSettings: ...


@dataclass(frozen=True)
class FamilySettings:
    """What does not belong to a member."""

    seed: int = 20_262
    views: ViewSettings = field(default_factory=ViewSettings)


TINY_TRAIN = TrainSettings(batch=2, warmup=2, steps=3)
TINY_SHAPE = ShapeSettings(channels=(8, 16), attention=(False, True), head_width=8, groups=4, time_width=16)
TINY_SAMPLE = SampleSettings(steps=2)
PRESETS = {
    "full": FamilySettings(),
    "tiny": FamilySettings(
        views=ViewSettings(count=8, captions=2, supersample=1, chunk=4, validation=4),
    ),
}


def check_preset(name: str) -> None:
    """``InputError`` lists the names if there is none of this one."""
    if name not in PRESET_NAMES:
        raise InputError(
            f"There is no preset {name!r} of pocket-family; there are {', '.join(PRESET_NAMES)}."
        )


def split_changes(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of views, ``views.count=1024``, and those of the member."""
    ours = [change for change in changes if change.startswith("views.")]
    return ours, [change for change in changes if change not in ours]


def family_settings(name: str, changes: Sequence[str], seed: int | None) -> FamilySettings:
    """The settings of a preset with changes of its views. Raises ``InputError`` as :func:`changed` does."""
    check_preset(name)
    ours, _ = split_changes(changes)
    return changed(PRESETS[name], [*ours, *([f"seed={seed}"] if seed is not None else [])])


def member_settings(member: Any, name: str, changes: Sequence[str], seed: int | None) -> Any:
    """A member's settings of a preset with the changes that are not of views."""
    check_preset(name)
    _, theirs = split_changes(changes)
    return changed(member.settings(name), [*theirs, *([f"seed={seed}"] if seed is not None else [])])
