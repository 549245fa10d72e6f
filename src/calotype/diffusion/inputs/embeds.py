"""What to make, told by embeddings: of pictures that a prior imagined, or of texts with the tokens that count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, each
from calotype.diffusion.inputs.prompts import Prompt
from calotype.diffusion.limits import limits
from calotype.image_processor import VaeImageProcessor, is_pil


@dataclass(frozen=True)
class Embedded(Inputs):
    """The embeddings of pictures to show, as a prior gives them."""

    image_embeds: torch.Tensor | list[torch.Tensor] | None = argument(
        None, "Embeddings of pictures to show (batch, channels), or a list of these, from the prior."
    )
    negative_image_embeds: torch.Tensor | list[torch.Tensor] | None = argument(
        None, "Embeddings to steer away from, of the shape of image_embeds, from the prior."
    )
    num_images_per_prompt: int | None = argument(1, "How many pictures of each prompt or embedding.")

    def __post_init__(self) -> None:
        if self.image_embeds is None:
            raise InputError("image_embeds is not given; the prior's pipeline makes it from a text.")
        shapes = []
        for name in ("image_embeds", "negative_image_embeds"):
            value = getattr(self, name)
            parts = value if isinstance(value, list | tuple) else [value]
            if value is None:
                continue
            if not parts or not all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in parts):
                raise InputError(f"{name} must be a tensor (batch, channels) or a list of these.")
            shapes.append((sum(len(part) for part in parts), parts[0].shape[1]))
        if len(set(shapes)) > 1:
            raise InputError(
                f"image_embeds has the shape {shapes[0]} and negative_image_embeds {shapes[1]}; they must be equal."
            )
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} pictures")

    @property
    def embeddings(self) -> int:
        """How many embeddings there are."""
        return len(joined(self.image_embeds))

    @property
    def repeats(self) -> int:
        """Pictures of each embedding."""
        return each("num_images_per_prompt", self.num_images_per_prompt)

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.embeddings * self.repeats


@dataclass(frozen=True)
class Hinted(Inputs):
    """A picture that says how far away things are."""

    hint: Any = argument(
        None,
        "The control picture, such as depth: PIL, or a tensor (batch, 3, height, width) in [0, 1], or a list of these.",
    )

    @property
    def pictures(self) -> torch.Tensor | list[Any]:
        """The hints as one tensor, or as PIL images."""
        if self.hint is None:
            raise InputError(
                "hint is not given; pass the control picture, a PIL image or a tensor (batch, 3, height, width)."
            )
        items = self.hint if isinstance(self.hint, list | tuple) else [self.hint]
        if items and all(is_pil(item) for item in items):
            return list(items)
        if not items or not all(isinstance(item, torch.Tensor) and item.ndim == 4 for item in items):
            raise InputError("hint must be PIL images or tensors (batch, 3, height, width).")
        return joined(list(items))

    def check(self, count: int, what: str) -> None:
        """Refuse hints unless there is one for all or one for each of so many embeddings or prompts."""
        if len(self.pictures) not in (1, count):
            raise InputError(
                f"There are {len(self.pictures)} hints; give one for all or one for each of the {count} {what}."
            )

    def pixels(self, processor: VaeImageProcessor, height: int, width: int) -> torch.Tensor:
        """The hints (batch, 3, height, width) in [0, 1]; tensors as they are, which must have this size."""
        pictures = self.pictures
        if not isinstance(pictures, torch.Tensor):
            return processor.preprocess(pictures, height, width)
        if tuple(pictures.shape[1:]) != (3, height, width):
            raise InputError(
                f"hint has the shape {tuple(pictures.shape)}; this call needs (batch, 3, {height}, {width})."
            )
        return pictures


@dataclass(frozen=True)
class TextMasks(Inputs):
    """Which tokens of encoded prompts count."""

    attention_mask: torch.Tensor | None = argument(
        None, "1 for the tokens of prompt_embeds that count, (batch, tokens); needed with these."
    )
    negative_attention_mask: torch.Tensor | None = argument(
        None, "1 for the tokens of negative_prompt_embeds that count, (batch, tokens); needed with these."
    )

    def check(self, prompt: Prompt) -> None:
        """Refuse embeddings without their mask, or with one that does not fit."""
        for name, mask, embeds in (
            ("", self.attention_mask, prompt.prompt_embeds),
            ("negative_", self.negative_attention_mask, prompt.negative_prompt_embeds),
        ):
            if embeds is not None and (mask is None or mask.shape != embeds.shape[:2]):
                found = "is not given" if mask is None else f"has the shape {tuple(mask.shape)}"
                raise InputError(
                    f"{name}prompt_embeds needs {name}attention_mask in the shape {tuple(embeds.shape[:2])}, which "
                    f"{found}."
                )


def joined(parts: Any) -> torch.Tensor:
    """A tensor, or a list of tensors as one batch."""
    return torch.cat(list(parts)) if isinstance(parts, list | tuple) else parts
