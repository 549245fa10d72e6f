"""From one embedding to another: a picture's, noised to a level part of the way down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs import Picture
from calotype.diffusion.tasks.from_image import copies, later_part, to_first_level
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


class FromEmbedding(Task):
    """Start from what the family sees in a picture; ``strength`` says how much of it is forgotten."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture."""
        if Picture.of(arguments).image is None:
            raise InputError("image is not given; pass the picture, or its embedding, to start from.")

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule."""
        return later_part(call, path, Picture.of(call.arguments).strength)

    def start(self, call: Call, path: Path) -> Start:
        """Embed the picture, then draw the noise."""
        family: Any = call.family
        embeds = family.embedded(Picture.of(call.arguments).image, call.device).to(family.dtype)
        embeds = embeds.repeat_interleave(call.subject.repeats, dim=0)
        embeds = embeds.repeat(copies(len(embeds), call.pictures), 1)
        generator: Any = call.noise.generator
        noise = randn_tensor(embeds.shape, generator, call.device, embeds.dtype)
        return Start(to_first_level(call, path, embeds, noise))
