"""What to make: texts, embeddings, counts, or a picture that says it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, each, positive, text_list
from calotype.diffusion.limits import limits
from calotype.image_processor import as_list, is_pil

WEIGHTINGS = ("a1111", "compel")
"""The syntaxes for weights inside a prompt, by the tools that they come from."""


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
    prompt_chunks: bool = argument(
        False,
        "Whether a prompt that is longer than the text encoder reads is encoded in several chunks instead of cut.",
        beside="prompt",
    )
    prompt_weighting: str | None = argument(
        None,
        "The syntax in which the prompts weight their words: 'a1111', as in (word:1.3), or 'compel', as in word++; "
        "without it brackets are text. Such prompts are encoded in chunks.",
        beside="prompt",
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
            text_list("prompt", self.prompt)
        if self.negative_prompt is not None:
            negatives = text_list("negative_prompt", self.negative_prompt)
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
        if self.prompt_weighting not in (None, *WEIGHTINGS):
            raise InputError(
                f"prompt_weighting must be {' or '.join(map(repr, WEIGHTINGS))}, not {self.prompt_weighting!r}."
            )
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} pictures")

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The prompts as a tuple, if texts were given."""
        return None if self.prompt is None else text_list("prompt", self.prompt)

    @property
    def negative_texts(self) -> tuple[str, ...]:
        """One negative text a prompt; empty texts where none was given."""
        if self.negative_prompt is None:
            return ("",) * self.prompts
        texts = text_list("negative_prompt", self.negative_prompt)
        return texts * self.prompts if isinstance(self.negative_prompt, str) else texts

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        if self.prompt is not None:
            return len(text_list("prompt", self.prompt))
        assert self.prompt_embeds is not None
        return self.prompt_embeds.shape[0]

    @property
    def repeats(self) -> int:
        """Pictures a prompt."""
        return each("num_images_per_prompt", self.num_images_per_prompt)

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
                text_list(name, value)


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
class Batch(Inputs):
    """How many pictures to make where there is no prompt to count."""

    batch_size: int = argument(1, "How many pictures to make.")

    def __post_init__(self) -> None:
        positive("batch_size", self.batch_size, "pictures")
        limits().check("pictures", self.batch_size, f"A call for {self.batch_size:,} pictures")

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.batch_size


@dataclass(frozen=True)
class Original(Inputs):
    """A picture that says alone what to make."""

    image: Any = argument(
        None, "The picture to vary: PIL, a list of them, or pixel values as CLIP takes them."
    )
    num_images_per_prompt: int | None = argument(1, "How many pictures of each.")

    def __post_init__(self) -> None:
        if self.image is None:
            raise InputError("image is not given; pass the picture to vary.")
        if isinstance(self.image, torch.Tensor):
            if self.image.ndim != 4:
                raise InputError(
                    f"image must be a tensor (batch, 3, height, width), not {tuple(self.image.shape)}."
                )
        elif not all(is_pil(one) for one in as_list(self.image)):
            raise InputError(
                "image must be a PIL image, a list of them or a tensor of pixel values, not an array."
            )
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} pictures")

    @property
    def given(self) -> int:
        """How many pictures are given."""
        if isinstance(self.image, torch.Tensor):
            return len(self.image)
        return len(self.image) if isinstance(self.image, list | tuple) else 1

    @property
    def repeats(self) -> int:
        """Pictures to make of each."""
        return each("num_images_per_prompt", self.num_images_per_prompt)

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.given * self.repeats
