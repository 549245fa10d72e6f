"""What a user may pass to a pipeline: typed groups of arguments, each with its default, its meaning and its checks.

A pipeline's ``__call__`` signature is put together from the fields of these groups (see ``pipelines.signature``), so
an argument's name, default and description stand in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch

from calotype.core.errors import InputError
from calotype.diffusion.limits import limits


def argument(default: Any, doc: str) -> Any:
    """A field of an input group: its default value and the sentence that describes it."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Inputs:
    """Base of the groups; abstract."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The group's values among a call's arguments; what the pipeline does not take keeps its default."""
        return cls(**{f.name: arguments[f.name] for f in fields(cls) if f.name in arguments})


def _positive(name: str, value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of {what}, at least 1, not {value!r}.")
    return value


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, not {value!r}.")
    return number


def _texts(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be a text or a list of texts, not {value!r}.")
    if not texts:
        raise InputError(f"{name} is an empty list; give at least one text.")
    return tuple(texts)


@dataclass(frozen=True)
class Prompt(Inputs):
    """What the picture should and should not show, as texts or as embeddings."""

    prompt: str | list[str] | None = argument(None, "What to show: a text, or a list of texts for a batch.")
    negative_prompt: str | list[str] | None = argument(
        None,
        "What to steer away from, one text for all or one for each prompt; needs guidance_scale above 1.",
    )
    num_images_per_prompt: int | None = argument(1, "How many pictures of each prompt.")
    prompt_embeds: torch.Tensor | None = argument(
        None, "Encoded prompts (batch, tokens, channels) in place of prompt."
    )
    negative_prompt_embeds: torch.Tensor | None = argument(
        None, "Encoded negative prompts, of the shape of prompt_embeds."
    )
    clip_skip: int | None = argument(
        None, "How many of the text encoder's last layers to leave out; 1 reads the layer before the last."
    )

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_embeds is not None:
            raise InputError(
                "Both prompt and prompt_embeds are given; they say the same thing, so give one of them."
            )
        if self.prompt is None and self.prompt_embeds is None:
            raise InputError("Neither prompt nor prompt_embeds is given; say what to show with one of them.")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise InputError("Both negative_prompt and negative_prompt_embeds are given; give one of them.")
        if self.prompt is not None:
            _texts("prompt", self.prompt)
        if self.negative_prompt is not None:
            negatives = _texts("negative_prompt", self.negative_prompt)
            if not isinstance(self.negative_prompt, str) and len(negatives) != self.prompts:
                raise InputError(
                    f"There are {len(negatives)} negative prompts for {self.prompts} prompts; give one for all or one "
                    f"for each."
                )
        embeds, negative = self.prompt_embeds, self.negative_prompt_embeds
        if embeds is not None and negative is not None and embeds.shape != negative.shape:
            raise InputError(
                f"prompt_embeds has the shape {tuple(embeds.shape)} and negative_prompt_embeds "
                f"{tuple(negative.shape)}; they must be equal."
            )
        if self.clip_skip is not None and (not isinstance(self.clip_skip, int) or self.clip_skip < 0):
            raise InputError(
                f"clip_skip must be a whole number of layers, 0 or more, not {self.clip_skip!r}."
            )
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} pictures")

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The prompts as a tuple, if texts were given."""
        return None if self.prompt is None else _texts("prompt", self.prompt)

    @property
    def negative_texts(self) -> tuple[str, ...]:
        """One negative text a prompt; empty texts where none was given."""
        if self.negative_prompt is None:
            return ("",) * self.prompts
        texts = _texts("negative_prompt", self.negative_prompt)
        return texts * self.prompts if isinstance(self.negative_prompt, str) else texts

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        if self.prompt is not None:
            return len(_texts("prompt", self.prompt))
        assert self.prompt_embeds is not None
        return self.prompt_embeds.shape[0]

    @property
    def repeats(self) -> int:
        """Pictures a prompt."""
        if self.num_images_per_prompt is None:
            return 1
        return _positive("num_images_per_prompt", self.num_images_per_prompt, "pictures")

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.prompts * self.repeats


@dataclass(frozen=True)
class TwoPrompts(Prompt):
    """A prompt for each of two text encoders, and the pooled form of what the second makes of it."""

    prompt_2: str | list[str] | None = argument(None, "What the second text encoder reads, if not prompt.")
    negative_prompt_2: str | list[str] | None = argument(
        None, "What the second text encoder reads in place of negative_prompt."
    )
    pooled_prompt_embeds: torch.Tensor | None = argument(None, "Pooled embeddings (batch, channels).")
    negative_pooled_prompt_embeds: torch.Tensor | None = argument(
        None, "Pooled embeddings of the negative prompts."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_embeds is not None and self.pooled_prompt_embeds is None:
            raise InputError(
                "prompt_embeds is given without pooled_prompt_embeds; make both with encode_prompt."
            )
        if self.negative_prompt_embeds is not None and self.negative_pooled_prompt_embeds is None:
            raise InputError(
                "negative_prompt_embeds is given without negative_pooled_prompt_embeds; make both with encode_prompt."
            )
        for name in ("prompt_2", "negative_prompt_2"):
            if (value := getattr(self, name)) is not None:
                _texts(name, value)


@dataclass(frozen=True)
class MicroConditions(Inputs):
    """What an SDXL denoiser is told about size, crop and quality (arXiv:2307.01952, section 2.2)."""

    original_size: tuple[int, int] | None = argument(
        None, "Height and width that the picture pretends to come from; by default its own."
    )
    crops_coords_top_left: tuple[int, int] = argument(
        (0, 0), "The corner that the picture pretends to be cut at."
    )
    target_size: tuple[int, int] | None = argument(
        None, "Height and width to aim for; by default the picture's own."
    )
    negative_original_size: tuple[int, int] | None = argument(None, "original_size for the negative prompt.")
    negative_crops_coords_top_left: tuple[int, int] = argument(
        (0, 0), "crops_coords_top_left for the negative prompt."
    )
    negative_target_size: tuple[int, int] | None = argument(None, "target_size for the negative prompt.")
    aesthetic_score: float = argument(6.0, "How beautiful the picture is to be, for models that were told.")
    negative_aesthetic_score: float = argument(2.5, "aesthetic_score for the negative prompt.")


@dataclass(frozen=True)
class Span(Inputs):
    """The part of the noise levels to work on, for several models in turn, as fractions of the whole way."""

    denoising_start: float | None = argument(
        None, "The fraction of the way at which the given latents are; replaces strength, and adds no noise."
    )
    denoising_end: float | None = argument(None, "The fraction of the way after which another model goes on.")

    def __post_init__(self) -> None:
        for name in ("denoising_start", "denoising_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= _finite(name, value) <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {value!r}.")
        if self.starts and self.ends and self.denoising_start >= self.denoising_end:  # type: ignore[operator]
            raise InputError(
                f"denoising_start={self.denoising_start} is not before denoising_end={self.denoising_end}."
            )

    @property
    def starts(self) -> bool:
        """Whether the way begins in the middle."""
        return self.denoising_start is not None and 0 < self.denoising_start < 1

    @property
    def ends(self) -> bool:
        """Whether the way ends before the picture is finished."""
        return self.denoising_end is not None and 0 < self.denoising_end < 1


@dataclass(frozen=True)
class Batch(Inputs):
    """How many pictures to make where there is no prompt to count."""

    batch_size: int = argument(1, "How many pictures to make.")

    def __post_init__(self) -> None:
        _positive("batch_size", self.batch_size, "pictures")
        limits().check("pictures", self.batch_size, f"A call for {self.batch_size:,} pictures")

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.batch_size


@dataclass(frozen=True)
class Size(Inputs):
    """The picture's size in pixels."""

    height: int | None = argument(None, "Height in pixels; by default what the model was trained for.")
    width: int | None = argument(None, "Width in pixels; by default what the model was trained for.")

    def checked(self, default: tuple[int, int], multiple: int, pictures: int) -> tuple[int, int]:
        """Height and width, refused when they do not divide by ``multiple`` or are over the limits."""
        sizes = []
        for name, value, usual in zip(("height", "width"), (self.height, self.width), default, strict=True):
            side = usual if value is None else _positive(name, value, "pixels")
            if side % multiple:
                lower = side // multiple * multiple
                near = f"{lower} and {lower + multiple}" if lower else f"{multiple}"
                raise InputError(
                    f"{name} must be divisible by {multiple} for this model, and {side} is not; near it: {near}."
                )
            limits().check("side", side, f"A {name} of {side:,} pixels")
            sizes.append(side)
        height, width = sizes
        pixels = height * width * pictures
        limits().check("pixels", pixels, f"{pictures} x {height} x {width} = {pixels:,} pixels")
        return height, width


@dataclass(frozen=True)
class Steps(Inputs):
    """The path from noise to picture."""

    num_inference_steps: int = argument(50, "Denoising steps; more is slower and, up to a point, better.")
    timesteps: Sequence[int] | None = argument(
        None, "The timesteps to visit, descending, in place of a number of steps."
    )
    sigmas: Sequence[float] | None = argument(
        None, "The noise levels to visit, descending, in place of a number of steps."
    )
    eta: float = argument(
        0.0, "η of DDIM, from 0 (deterministic) to 1 (as DDPM); other schedulers ignore it."
    )
    use_clipped_model_output: bool | None = argument(
        None, "Whether DDIM derives ε from the clipped prediction."
    )

    def __post_init__(self) -> None:
        if self.timesteps is not None and self.sigmas is not None:
            raise InputError("Both timesteps and sigmas are given; give one of them.")
        _finite("eta", self.eta)
        _positive("num_inference_steps", self.num_inference_steps, "steps")
        limits().check("steps", self.num_inference_steps, f"A call for {self.num_inference_steps:,} steps")


@dataclass(frozen=True)
class Guide(Inputs):
    """How strongly the prompt steers."""

    guidance_scale: float = argument(
        7.5,
        "How strongly to follow the prompt; 1 or less turns classifier-free guidance off and takes half the time.",
    )
    guidance_rescale: float = argument(
        0.0,
        "φ of arXiv:2305.08891 section 3.4, in [0, 1]: how far to restore the contrast that strong guidance changes.",
    )

    def __post_init__(self) -> None:
        _finite("guidance_scale", self.guidance_scale)
        _finite("guidance_rescale", self.guidance_rescale)


@dataclass(frozen=True)
class Noise(Inputs):
    """Where randomness comes from."""

    generator: torch.Generator | list[torch.Generator] | None = argument(
        None, "A seeded torch.Generator, or one for each picture, for a result that can be had again."
    )
    latents: torch.Tensor | None = argument(
        None, "Standard normal noise to start from, in the latents' shape."
    )

    def check_count(self, pictures: int) -> None:
        """Refuse a list of generators that does not match the number of pictures."""
        if isinstance(self.generator, list | tuple) and len(self.generator) != pictures:
            raise InputError(
                f"There are {len(self.generator)} generators for {pictures} pictures; give one for all or one for each."
            )


@dataclass(frozen=True)
class Attention(Inputs):
    """What is handed through to attention layers and image adapters."""

    cross_attention_kwargs: dict[str, Any] | None = argument(
        None, "Keyword arguments for the attention layers, such as {'scale': 0.7} for LoRA weights."
    )
    ip_adapter_image: Any = argument(None, "Pictures for an IP-Adapter.")
    ip_adapter_image_embeds: list[torch.Tensor] | None = argument(
        None, "Encoded pictures for each IP-Adapter, negatives first when guidance is on."
    )


@dataclass(frozen=True)
class Picture(Inputs):
    """A picture to start from."""

    image: Any = argument(
        None,
        "The picture to start from: PIL, array (batch, height, width, 3) or tensor (batch, 3, height, width).",
    )
    strength: float = argument(0.8, "How much of the picture to forget, from 0 (nothing) to 1 (everything).")

    def __post_init__(self) -> None:
        if not 0 <= _finite("strength", self.strength) <= 1:
            raise InputError(f"strength must be between 0 and 1, not {self.strength!r}.")


@dataclass(frozen=True)
class Masked(Inputs):
    """What part of a picture to replace."""

    mask_image: Any = argument(
        None, "The mask: white where something new goes, black where the picture stays."
    )
    masked_image_latents: torch.Tensor | None = argument(
        None, "Latents of the picture without the masked part."
    )
    padding_mask_crop: int | None = argument(
        None, "Work on the region around the mask alone, with so many pixels of margin, and paste it back."
    )


@dataclass(frozen=True)
class Controlled(Inputs):
    """How strongly, and in which part of the way, ControlNets steer; lists have a value for each of several."""

    control_image: Any = argument(
        None, "The picture that the ControlNet reads, or a list of one for each of several."
    )
    controlnet_conditioning_scale: float | list[float] = argument(1.0, "How strongly the ControlNet steers.")
    guess_mode: bool = argument(False, "Let the ControlNet guess the content, also without a prompt.")
    control_guidance_start: float | list[float] = argument(
        0.0, "The fraction of the steps at which it begins."
    )
    control_guidance_end: float | list[float] = argument(1.0, "The fraction of the steps at which it ends.")

    def ranges(self, count: int) -> list[tuple[float, float]]:
        """Beginning and end for each of ``count`` ControlNets; ``InputError`` for what is no range in [0, 1]."""
        columns = []
        for name in ("control_guidance_start", "control_guidance_end"):
            value = getattr(self, name)
            values = list(value) if isinstance(value, list | tuple) else [value] * count
            if len(values) != count:
                raise InputError(f"There are {len(values)} values of {name} for {count} ControlNets.")
            columns.append([_finite(name, one) for one in values])
        for start, end in zip(*columns, strict=True):
            if not 0 <= start < end <= 1:
                raise InputError(
                    f"A ControlNet cannot steer from {start} to {end} of the steps; control_guidance_start must be "
                    f"below control_guidance_end, both between 0 and 1."
                )
        return list(zip(*columns, strict=True))

    def scales(self, count: int, steps: int) -> list[list[float]]:
        """The scale of each ControlNet in each step: its own within its range, else 0."""
        given = self.controlnet_conditioning_scale
        each = list(given) if isinstance(given, list | tuple) else [given] * count
        ranges = self.ranges(count)
        return [
            [
                scale if i / steps >= start and (i + 1) / steps <= end else 0.0
                for scale, (start, end) in zip(each, ranges, strict=True)
            ]
            for i in range(steps)
        ]


StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Callbacks(Inputs):
    """What is called between steps."""

    callback_on_step_end: StepCallback | None = argument(
        None,
        "Called as f(pipe, step, timestep, tensors) after each step; the tensors that it returns replace the loop's.",
    )
    callback_on_step_end_tensor_inputs: Sequence[str] | None = argument(
        ("latents",), "The names of the tensors that the callback wants to see."
    )

    def check_names(self, allowed: Sequence[str]) -> None:
        """Refuse names of tensors that this pipeline does not offer."""
        unknown = [name for name in self.callback_on_step_end_tensor_inputs or () if name not in allowed]
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}; this pipeline offers "
                f"{', '.join(allowed)}."
            )


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output(Inputs):
    """What comes back."""

    output_type: str | None = argument(
        "pil", "'pil', 'np' (batch, height, width, 3), 'pt' (batch, 3, height, width) or 'latent'."
    )
    return_dict: bool = argument(True, "Whether to return an output object; otherwise a tuple.")

    def __post_init__(self) -> None:
        if self.output_type not in OUTPUT_TYPES:
            raise InputError(
                f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {self.output_type!r}."
            )


GROUPS: tuple[type[Inputs], ...] = (
    Prompt,
    TwoPrompts,
    MicroConditions,
    Span,
    Batch,
    Picture,
    Masked,
    Controlled,
    Size,
    Steps,
    Guide,
    Noise,
    Attention,
    Callbacks,
    Output,
)
