"""The prior of Kandinsky 2: the embedding of a picture that fits a text, and that of what to steer away from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.family import component
from calotype.diffusion.inputs import Prompt
from calotype.families.prior import PriorFamily
from calotype.image_processor import as_list, is_pil

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    from calotype.models.prior_transformer import PriorTransformer
    from calotype.schedulers.ddpm import UnCLIPScheduler


@dataclass(frozen=True)
class KandinskyPrior(PriorFamily):
    """The family bound to its components; where there are negative prompts, their embeddings are sampled too."""

    prior: PriorTransformer = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    scheduler: UnCLIPScheduler = component()
    # a default, so that the field takes the place of what other families have under this name
    image_processor: CLIPImageProcessor = component(None)  # type: ignore[assignment]

    tensor_names: ClassVar[tuple[str, ...]] = (
        "latents", "prompt_embeds", "text_encoder_hidden_states", "text_mask",
    )  # fmt: skip

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        """The prompts and, behind them, what to steer away from as prompts of their own."""
        return with_negatives(prompts(arguments))

    def rows(self, arguments: Mapping[str, Any]) -> int:
        return 1 if arguments.get("negative_prompt") is None else 2

    def embedded(self, image: Any, device: torch.device) -> torch.Tensor:
        """CLIP's embeddings of pictures (batch, channels); tensors are pixel values as CLIP takes them, or embeddings.

        Raises ``InputError`` for anything else.
        """
        if isinstance(image, list | tuple) and image and isinstance(image[0], torch.Tensor):
            image = torch.cat(list(image))
        if isinstance(image, torch.Tensor):
            if image.ndim not in (2, 4):
                raise InputError(
                    f"image as a tensor must be pixel values (batch, 3, height, width) or embeddings (batch, "
                    f"channels), not {tuple(image.shape)}."
                )
            pixels = image
        else:
            pictures = as_list(image)
            if not is_pil(pictures[0]):
                raise InputError("image must be a PIL image, a list of them or a tensor, not an array.")
            pixels = self.image_processor(pictures, return_tensors="pt").pixel_values
        pixels = pixels.to(device, self.image_encoder.dtype)
        return pixels if pixels.ndim == 2 else self.image_encoder(pixels).image_embeds


def prompts(arguments: Mapping[str, Any]) -> Prompt:
    """The prompts of a call, which are texts here."""
    if arguments.get("prompt") is None:
        raise InputError("prompt is not given; say what to show.")
    taken = ("prompt", "negative_prompt", "num_images_per_prompt")
    return Prompt.of({name: arguments[name] for name in taken if name in arguments})


def with_negatives(subject: Prompt) -> Prompt:
    """The prompts followed by the negative prompts, if there are any; all are to steer away from the latter."""
    if subject.negative_prompt is None:
        return subject
    negatives = list(subject.negative_texts)
    return Prompt([*(subject.texts or ()), *negatives], negatives * 2, subject.num_images_per_prompt)


def in_pairs(
    embeds: torch.Tensor, arguments: Mapping[str, Any], encoder: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a prior sampled for :func:`with_negatives`: embeddings to show, and those to steer away from.

    Without negative prompts the latter are those of nothing, pixel values of zero.
    """
    if arguments.get("negative_prompt") is not None:
        image_embeds, negative = embeds.chunk(2)
        return image_embeds, negative
    return embeds, nothing_seen(encoder, len(embeds), embeds.device)


def nothing_seen(encoder: Any, count: int, device: torch.device) -> torch.Tensor:
    """CLIP's embedding of pixel values of zero, ``count`` times."""
    side = encoder.config.image_size
    pixels = torch.zeros(1, 3, side, side, device=device, dtype=encoder.dtype)
    return encoder(pixels).image_embeds.repeat(count, 1)
