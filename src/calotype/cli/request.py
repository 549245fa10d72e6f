"""What one run of ``calotype generate`` is asked for, from options, from another picture, or from both."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from calotype.cli import adapters
from calotype.core.errors import InputError
from calotype.utils.metadata import Settings

MAX_SEED = 2**63 - 1
DEFAULT_STEPS = 20
NOTHING = 'Say what to show: calotype generate "a red ball on grass"; or give --like FILE.png.'


def default_model(video: bool) -> str:
    """The bundled model that is taken where none is named."""
    return "pocket-motion" if video else "pocket"


def default_steps(model: str) -> int:
    """The steps that are taken where no number is named; few-step models are made for theirs."""
    from calotype.pipelines.bundled import USUAL

    return int(USUAL.get(model, {}).get("num_inference_steps", DEFAULT_STEPS))


@dataclass(frozen=True)
class Request:
    """The settings of a run; ``None`` leaves a choice to the model.

    ``scheduler`` is a name, or the class and full configuration that a picture recorded.
    """

    prompts: tuple[str, ...]
    model: str
    seed: int
    count: int = 1
    steps: int = DEFAULT_STEPS
    negative: str | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | dict[str, Any] | None = None
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    control: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    frames: int | None = None
    fps: float | None = None
    ip_adapter: tuple[str, ...] = ()
    ip_image: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)
    """What a picture recorded of files and models that it was made with: contents and commits, by name."""

    def check(self) -> None:
        """Refuse what no model could do, before one is loaded."""
        from calotype.diffusion.inputs import Guide, Picture, Steps
        from calotype.diffusion.limits import limits

        if self.count < 1:
            raise InputError(f"--count must be at least 1, not {self.count}.")
        pictures = self.count * max(1, len(self.prompts))
        limits().check("pictures", pictures, f"A run for {pictures:,} pictures")
        if not 0 <= self.seed <= MAX_SEED - self.count + 1:
            raise InputError(f"--seed must be between 0 and {MAX_SEED - self.count + 1}, not {self.seed}.")
        Steps(num_inference_steps=self.steps)
        if self.guidance is not None:
            Guide(guidance_scale=self.guidance)
        for option, side in (("--width", self.width), ("--height", self.height)):
            if side is not None:
                if side < 1:
                    raise InputError(f"{option} must be a whole number of pixels, at least 1, not {side}.")
                limits().check("side", side, f"{option} {side}")
        for option, value in (("--mask", self.mask), ("--strength", self.strength)):
            if value is not None and self.image is None:
                raise InputError(f"{option} needs --image, the picture that it is about.")
        if self.strength is not None:
            Picture(strength=self.strength)
        if self.frames is not None and self.frames < 1:
            raise InputError(f"--frames must be at least 1, not {self.frames}.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"--fps must be above 0 and at most 1000, not {self.fps:g}.")
        for option, given in (("--lora", self.lora), ("--ip-adapter", self.ip_adapter)):
            for text in given:
                adapters.weighted(text, option)
        if len(self.ip_adapter) != len(self.ip_image):
            raise InputError(
                f"There are {len(self.ip_adapter)} --ip-adapter and {len(self.ip_image)} --ip-image; give a picture "
                f"for each adapter."
            )
        if self.controlnet and len(self.controlnet) != len(self.control):
            raise InputError(
                f"There are {len(self.control)} --control and {len(self.controlnet)} --controlnet; give a model for "
                f"each picture."
            )

    def jobs(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each picture: every prompt with the seeds ``seed``, ``seed + 1``, …; "" without prompts."""
        return [(prompt, self.seed + n) for prompt in self.prompts or ("",) for n in range(self.count)]


def from_options(options: dict[str, Any], video: bool = False) -> Request:
    """A request from the options that were given, for a video or pictures; without a seed, a random one.

    A picture needs no prompt for some models that move it.
    """
    if not options.get("prompts") and "image" not in options:
        raise InputError(NOTHING)
    model = options.get("model", default_model(video))
    usual = {"prompts": (), "steps": default_steps(model), "seed": random.SystemRandom().randrange(2**32)}
    return Request(**{**usual, **options, "model": model})


_FILES = {"lora", "embedding", "ip_adapter", "ip_image"}
"""Adapters and what they read."""
_BESIDE = _FILES | {"frames", "fps"}
"""What goes in without taking the place of the picture's size."""


def _inputs(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A request's part that says which pictures go in, from the settings of what was made from them."""
    if not recorded.keys() - _BESIDE:
        return {}
    single = {name: recorded[name]["file"] for name in ("image", "mask") if name in recorded}
    controls, nets = recorded.get("control", ()), recorded.get("controlnet", ())
    files = [*(recorded[name] for name in single), *controls]
    return {
        **single,
        **{name: recorded.get(name) for name in ("strength", "width", "height")},
        "control": tuple(entry["file"] for entry in controls),
        "controlnet": tuple(entry["model"] for entry in nets),
        "known": {entry["file"]: entry["sha256"] for entry in files}
        | {entry["model"]: entry["revision"] for entry in nets if entry.get("revision")},
    }


def _adapters(recorded: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """A request's part that says which adapters go in; ``known`` is what the other files contain."""
    own = {entry["file"]: entry["sha256"] for name in _FILES for entry in recorded.get(name, ())}
    pictures = tuple(entry["file"] for entry in recorded.get("ip_image", ()))
    return {**adapters.requested(dict(recorded)), "ip_image": pictures, "known": {**known, **own}}


def like(made: Settings, options: dict[str, Any]) -> Request:
    """The request that makes a recorded picture again, changed by the options that were given."""
    inputs = _inputs(made.inputs) or {"width": made.size[0], "height": made.size[1]}
    recorded = Request(
        prompts=() if made.prompt == "" and "image" in made.inputs else (made.prompt,),
        frames=made.inputs.get("frames"),
        fps=made.inputs.get("fps"),
        model=made.model,
        seed=made.seed,
        steps=made.steps,
        negative=made.negative_prompt,
        guidance=made.guidance,
        scheduler=dict(made.scheduler),
        device=made.device,
        dtype=made.dtype,
        revision=made.revision,
        **{**inputs, **_adapters(made.inputs, inputs.get("known", {}))},
    )
    if options.get("model", made.model) != made.model:
        recorded = replace(recorded, revision=None)  # the commit names a state of the recorded model
    named = {
        options.get("image"),
        options.get("mask"),
        *options.get("control", ()),
        *options.get("controlnet", ()),
        *(adapters.weighted(text, "--lora").name for text in options.get("lora", ())),
        *(adapters.weighted(text, "--ip-adapter").name for text in options.get("ip_adapter", ())),
        *options.get("ip_image", ()),
        *options.get("embedding", ()),
    }
    known = {name: value for name, value in recorded.known.items() if name not in named}
    return replace(recorded, **{"known": known, **options})
