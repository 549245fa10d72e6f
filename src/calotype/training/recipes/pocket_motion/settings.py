"""Every number of the recipe of the pocket model's motion."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from calotype.core.errors import InputError


@dataclass(frozen=True)
class AdapterSettings:
    """The motion modules, and the low-rank updates of the base's attention that let it hear of motion."""

    head_width: int = 32
    depth: tuple[int, ...] | int = 1
    positions: int = 32
    rank: int = 16
    updates: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """endings of the base's layers that are updated"""


@dataclass(frozen=True)
class ClipSettings:
    """Clips to render and encode, and captions for each."""

    count: int = 16_000
    captions: int = 4
    frames: int = 16
    supersample: int = 2
    chunk: int = 128
    validation: int = 128


@dataclass(frozen=True)
class TrainSettings:
    """How the adapter is trained; ``batch`` counts clips."""

    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    ema_decay: float = 0.995
    caption_dropout: float = 0.1
    faint: float = 0.5
    """the share of clips that are fainter than the last tenth of the timesteps leaves them, down to nothing"""
    changing: float = 0.5
    """the weight of what changes in faint clips, beside the whole of all clips"""
    following: float = 0.5
    """the weight of reading the main object's way behind each motion module"""
    steps: int | None = None


@dataclass(frozen=True)
class MotionSettings:
    """The whole recipe; sizes of pictures and latents are the base's."""

    seed: int = 20_261
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    clips: ClipSettings = field(default_factory=ClipSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    guidance: float = 5.0
    sampling_steps: int = 20

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return asdict(self)


TINY = MotionSettings(
    adapter=AdapterSettings(head_width=8, positions=8, rank=2),
    clips=ClipSettings(count=8, captions=2, frames=4, supersample=1, chunk=4, validation=2),
    train=TrainSettings(batch=2, warmup=2, steps=3),
    sampling_steps=2,
)
PRESETS = {"full": MotionSettings(), "tiny": TINY}


def preset(name: str) -> MotionSettings:
    """The settings of a preset; ``InputError`` lists the names if there is none of this one."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r} of pocket-motion; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


PROMPTS = (
    "a red ball rolling to the right on grass",
    "a blue cube sliding to the left on a wooden floor",
    "a yellow star rolling to the left on sand at sunset",
    "a green cone moving away from the camera on snow",
    "a white cylinder coming closer on tiles",
    "a purple octahedron falling down on grass at night",
    "an orange pyramid spinning on wood",
    "a turquoise torus moving to the right past a pink cube on snow",
    "a black sphere on sand, the camera turns left",
    "a pink capsule jumping on tiles",
)
"""Prompts of the sample sheets."""

HEARD = tuple(
    f"a {color} {name} moving to the {{}} on {floor}"
    for color, name, floor in (
        ("red", "ball", "grass"), ("blue", "cube", "wood"), ("green", "cone", "snow"), ("yellow", "star", "sand"),
        ("white", "cylinder", "tiles"), ("purple", "torus", "grass"), ("orange", "pyramid", "sand"),
        ("pink", "cube", "snow"),
    )
)  # fmt: skip
"""Prompts for one side or the other."""
