"""FreeNoise: videos longer than the model knows, from noise whose windows are alike (arXiv:2310.15169)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.nn.windows import Windows

if TYPE_CHECKING:
    from calotype.diffusion.call import Call

Interpolate = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(first frame, last frame, embeddings at both, each (1, tokens, channels)) -> those of all frames between, too."""

NOISE_TYPES = ("shuffle_context", "repeat_context", "random")
"""What the noise of later frames is: that of earlier ones in another order, the same again, or noise of its own."""


def straight(first: int, last: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Embeddings on the straight line between two."""
    return torch.cat([torch.lerp(start, end, frame / (last - first)) for frame in range(last - first + 1)])


@dataclass(frozen=True)
class FreeNoise:
    """Attention in ``windows`` along time, noise of the type ``noise_type``, and what lies between prompts of frames.

    Raises ``InputError`` for a type that there is none of.
    """

    windows: Windows = field(default_factory=Windows)
    noise_type: str = "shuffle_context"
    interpolate: Interpolate = straight

    def __post_init__(self) -> None:
        if self.noise_type not in NOISE_TYPES:
            raise InputError(f"noise_type must be one of {', '.join(NOISE_TYPES)}, not {self.noise_type!r}.")

    def noise(self, call: Call) -> torch.Tensor:
        """Noise in the call's latent shape, made of what is drawn or given for all frames or the first window."""
        shape, given, source = call.latent_shape, call.noise.latents, call.noise.generator
        frames, length = shape[2], min(self.windows.length, shape[2])
        alike = self.noise_type != "random"
        if given is None:
            drawn = length if self.noise_type == "repeat_context" else frames
            size = (*shape[:2], drawn, *shape[3:])
            noise = randn_tensor(size, generator=source, device=call.device, dtype=call.family.dtype)
        elif alike and given.ndim == 5 and given.shape[2] == length != frames:
            noise = given.to(call.device)
        else:
            return initial_noise(call)
        if self.noise_type == "shuffle_context":
            return self._shuffled(noise, frames, source)
        return torch.cat([noise] * -(-frames // noise.shape[2]), dim=2)[:, :, :frames]

    def _shuffled(self, noise: torch.Tensor, frames: int, source: Generators) -> torch.Tensor:
        """Behind the first window, the frames of a stride are those a window earlier, in another order."""
        if isinstance(source, list | tuple) and len(source) == len(noise):
            each = zip(noise.split(1), source, strict=True)
            return torch.cat([self._shuffled(one, frames, generator) for one, generator in each])
        generator = source if isinstance(source, torch.Generator) or source is None else source[0]
        device = torch.device("cpu") if generator is None else generator.device
        length, stride = self.windows.length, self.windows.stride
        kept = list(noise[:, :, :length].unbind(2))
        for begin in range(length, frames, stride):
            order = torch.randperm(stride, generator=generator, device=device)
            kept += [kept[begin - length + int(place)] for place in order][: frames - begin]
        return torch.stack(kept, dim=2)

    def between(self, embeds: Mapping[int, torch.Tensor], frames: int) -> torch.Tensor:
        """Embeddings of all frames (frames, tokens, channels) from those of some, among them the first and the last.

        Raises ``InputError`` where the user's own interpolation gives another shape.
        """
        found: dict[int, torch.Tensor] = dict(embeds)
        for first, last in pairwise(sorted(embeds)):
            made = self.interpolate(first, last, embeds[first][None], embeds[last][None])
            wanted = (last - first + 1, *embeds[first].shape)
            if tuple(made.shape) != wanted:
                raise InputError(
                    f"The interpolation between the prompts of frames {first} and {last} gave the shape "
                    f"{tuple(made.shape)}, not {wanted}."
                )
            found.update(zip(range(first, last + 1), made, strict=True))
        return torch.stack([found[frame] for frame in range(frames)])
