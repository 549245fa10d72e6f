"""Every number of the pocket recipe: for a GPU, for a CPU, and for a tiny run that only goes through the motions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from calotype.core.errors import InputError
from calotype.training.objectives import Prediction


@dataclass(frozen=True)
class VAESettings:
    """An ``AutoencoderKL`` with two halvings: 128x128 pixels become 32x32x4 latents."""

    channels: tuple[int, ...] = (32, 64, 80)
    layers: int = 1
    groups: int = 16
    latent_channels: int = 4
    images: int = 48_000
    batch: int = 96
    learning_rate: float = 1.5e-3
    warmup: int = 300
    sharpness: float = 1.0
    kl: float = 1e-4
    color: float = 4.0
    attention: bool = True
    """between the two residual blocks at the bottom"""
    ema_decay: float = 0.999
    steps: int | None = None


@dataclass(frozen=True)
class TextSettings:
    """A CLIP text model, its tokenizer, and how it learns to read."""

    hidden: int = 160
    inner: int = 480
    layers: int = 4
    heads: int = 5
    merges: int = 1200
    corpus: int = 20_000
    length: int = 77
    scenes: int = 400_000
    """whose captions it learns from"""
    batch: int = 1024
    learning_rate: float = 1e-3
    warmup: int = 300
    ema_decay: float = 0.999
    steps: int | None = None


@dataclass(frozen=True)
class DataSettings:
    """Scenes to render and encode, and captions for each.

    ``least_detail`` (0 to 1) leaves out captions terser than that. ``keep_pictures`` is for where rendering is slow:
    pictures stay in the work folder, and the VAE learns from the same ones that become latents.
    """

    scenes: int = 400_000
    moving: float = 0.2
    """the share of scenes that are moments of moving ones, with captions of what happens"""
    captions: int = 4
    least_detail: float = 0.0
    validation: int = 2_048
    chunk: int = 2_048
    keep_pictures: bool = False


@dataclass(frozen=True)
class UNetSettings:
    """A ``UNet2DConditionModel`` of Stable Diffusion's layout and the diffusion it learns."""

    channels: tuple[int, ...] = (96, 128, 128)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    head_width: int = 32
    groups: int = 32
    time_width: int = 256
    prediction: Prediction = "v_prediction"
    min_snr_gamma: float | None = None
    caption_dropout: float = 0.1
    batch: int = 768
    learning_rate: float = 1e-3
    warmup: int = 300
    ema_decay: float = 0.9995
    steps: int | None = None


@dataclass(frozen=True)
class ProcessorSettings:
    """What is done on a CPU only."""

    bfloat16: bool = False
    """pays on processors with AVX512-BF16 or AMX"""
    threads: int = 1
    """parts of a batch computed side by side"""
    compiled_renderer: bool = False


@dataclass(frozen=True)
class PocketSettings:
    """The whole recipe."""

    seed: int = 20_260
    pixels: int = 128
    supersample: int = 2
    vae: VAESettings = field(default_factory=VAESettings)
    text: TextSettings = field(default_factory=TextSettings)
    data: DataSettings = field(default_factory=DataSettings)
    unet: UNetSettings = field(default_factory=UNetSettings)
    on_cpu: ProcessorSettings = field(default_factory=ProcessorSettings)
    guidance: float = 5.0
    sampling_steps: int = 20

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON and for comparing runs."""
        return asdict(self)


TINY = PocketSettings(
    pixels=32,
    supersample=1,
    vae=VAESettings(channels=(8, 8, 16), groups=4, images=32, batch=4, warmup=2, steps=6),
    text=TextSettings(
        hidden=16, inner=32, layers=1, heads=2, merges=300, corpus=200, scenes=48, batch=16, warmup=2, steps=6
    ),
    data=DataSettings(scenes=48, moving=0.34, captions=2, validation=8, chunk=16),
    unet=UNetSettings(
        channels=(8, 16),
        attention=(False, True),
        head_width=8,
        groups=4,
        time_width=16,
        batch=8,
        warmup=2,
        steps=6,
    ),
    sampling_steps=3,
)

CPU = PocketSettings(
    vae=VAESettings(
        channels=(16, 32, 64),
        groups=8,
        attention=False,
        images=10_240,
        batch=4,
        learning_rate=1.2e-3,
        warmup=50,
        sharpness=0.5,
        kl=1e-6,
        color=4.0,
        ema_decay=0.99,
    ),
    text=TextSettings(
        hidden=128, inner=384, layers=3, heads=4, corpus=8_000, length=32, scenes=32_768, batch=64, warmup=100
    ),
    data=DataSettings(scenes=7_168, least_detail=0.35, validation=512, chunk=512, keep_pictures=True),
    unet=UNetSettings(
        channels=(32, 64, 128),
        attention=(False, False, True),
        groups=8,
        batch=16,
        warmup=100,
        ema_decay=0.997,
    ),
    on_cpu=ProcessorSettings(bfloat16=True, threads=2, compiled_renderer=True),
)
"""An hour on two CPU cores: a smaller, weaker model in the same format."""

PRESETS = {"full": PocketSettings(), "cpu": CPU, "tiny": TINY}


def preset(name: str) -> PocketSettings:
    """The settings of a preset; ``InputError`` lists the names if there is none of this one."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


PROMPTS = (
    "a big shiny red ball to the left of a small blue cube on grass at sunset",
    "a green cone on sand",
    "a yellow torus on snow at night",
    "a metal purple cylinder on a wooden floor",
    "a white cube in front of a black sphere on tiles",
    "an orange capsule to the right of a turquoise pyramid on grass",
    "a pink star on wood under an overcast sky",
    "three objects on snow at sunset",
    "a small red cone on tiles, day",
    "two blue balls on sand",
    "a shiny black octahedron on grass at night",
    "a turquoise donut to the left of a yellow box on wood",
)
"""Prompts of the sample sheets."""


def changed(settings: PocketSettings, changes: Sequence[str]) -> PocketSettings:
    """Settings with some replaced: ``unet.batch=256``, ``seed=1``, ``unet.channels=[64,128]`` (values in JSON).

    Raises ``InputError`` for a setting that there is not, or a value of another kind than the present one.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        group, _, name = path.rpartition(".")
        target: Any = getattr(settings, group, None) if group else settings
        names = {f.name for f in fields(target)} if is_dataclass(target) else set()
        if not equals or name not in names:
            raise InputError(f"There is no setting {change!r}; write for instance unet.batch=256 or seed=1.")
        old, value = getattr(target, name), _parsed(text)
        fits = (
            type(value) is type(old)
            or old is None
            or value is None
            or (type(old) is float and type(value) is int)
        )
        if is_dataclass(old) or not fits:
            raise InputError(f"The setting {path} cannot be {text!r}; at present it is {old!r}.")
        if type(old) is float and value is not None:
            value = float(value)
        target = replace(target, **{name: value})
        whole: Any = {group: target}
        settings = replace(settings, **whole) if group else target
    return settings


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value
