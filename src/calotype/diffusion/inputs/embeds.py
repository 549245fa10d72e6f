"""What to make, told by embeddings: of pictures that a prior imagined, or of texts with the tokens that count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, positive
from calotype.diffusion.inputs.prompts import Prompt
from calotype.diffusion.limits import limits


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
        if self.num_images_per_prompt is None:
            return 1
        return positive("num_images_per_prompt", self.num_images_per_prompt, "pictures")

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.embeddings * self.repeats


@dataclass(frozen=True)
class Hinted(Inputs):
    """A picture that says how far away things are."""

    hint: torch.Tensor | list[torch.Tensor] | None = argument(
        None, "The control picture, such as depth: (batch, 3, height, width), or a list of these."
    )

    def checked(self, embeddings: int) -> torch.Tensor:
        """The hint as one tensor; ``InputError`` unless there is one for all or one for each embedding."""
        if self.hint is None:
            raise InputError(
                "hint is not given; pass the control picture as a tensor (batch, 3, height, width)."
            )
        hint = joined(self.hint)
        if hint.ndim != 4 or len(hint) not in (1, embeddings):
            raise InputError(
                f"hint must be a tensor (batch, 3, height, width) with one picture, or one for each of the "
                f"{embeddings} embeddings, not {tuple(hint.shape)}."
            )
        return hint


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
