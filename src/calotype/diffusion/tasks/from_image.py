"""Image-to-image (SDEdit, arXiv:2108.01073): a picture's latents, noised to a level part of the way down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import PictureGenerators, randn_tensor
from calotype.diffusion.inputs import Picture, Size, Span
from calotype.diffusion.tasks.task import Path, Start, Task, picture_size

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


def to_first_level(call: Call, path: Path, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents at the noise level of the path's first timestep."""
    return call.scheduler.add_noise(latents, noise, path.timesteps[:1].repeat(call.pictures))


@dataclass(frozen=True)
class FromImage(Task):
    """Start from a picture; ``strength`` says how much of it is forgotten.

    With ``copies_together`` the pictures to make of one given picture stand together, as those of one prompt do;
    otherwise the given pictures are gone through again and again. ``noised`` adds the noise.
    """

    copies_together: bool = False
    noised: Callable[[Call, Path, torch.Tensor, torch.Tensor], torch.Tensor] = to_first_level

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture."""
        if Picture.of(arguments).image is None:
            raise InputError("image is not given; pass the picture to start from.")

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """The picture's own size, rounded down to what the autoencoder divides."""
        return picture_size(family, Picture.of(arguments).image, Size.of(arguments), pictures)

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule, or what comes after ``denoising_start``."""
        return later_part(call, path, Picture.of(call.arguments).strength)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the picture, then draw the noise; latents that stand where the way begins are taken as they are."""
        if call.noise.latents is not None:
            return Start(call.noise.latents.to(call.device))
        picture = Picture.of(call.arguments).image
        pixels = call.family.image_processor.preprocess(picture, height=call.height, width=call.width)
        if self.copies_together:
            pixels = in_turn(pixels, call.pictures)
        if isinstance(call.noise.generator, list | tuple):  # each picture has its own draw from the posterior
            pixels = repeated_to(pixels, call.pictures)
        latents = encoded(call, pixels)
        if Span.of(call.arguments).denoising_start is not None:
            return Start(latents)
        noise = randn_tensor(latents.shape, call.noise.generator, call.device, latents.dtype)
        return Start(self.noised(call, path, latents, noise))


def later_part(call: Call, path: Path, strength: float) -> Path:
    """The last ``strength`` of a schedule, or what lies below ``denoising_start``; the scheduler's run begins there.

    Raises ``InputError`` when not even one step is left.
    """
    span = Span.of(call.arguments)
    if span.starts:
        return below_start(call, path, span.denoising_start or 0.0)
    total = path.steps
    kept = min(int(total * strength), total)
    if kept < 1:
        raise InputError(
            f"strength={strength} of {total} steps leaves none to take; use a strength of at least {1 / total:.3g} or "
            f"more steps."
        )
    return begun_at(call, path, (total - kept) * call.scheduler.order, kept)


def begun_at(call: Call, path: Path, first: int, steps: int) -> Path:
    """A schedule from its timestep ``first`` on, with the scheduler's run beginning there."""
    if hasattr(call.scheduler, "set_begin_index"):  # those that find their place by the timestep have none
        call.scheduler.set_begin_index(first)
    return Path(path.timesteps[first:], steps)


def below_start(call: Call, path: Path, start: float) -> Path:
    """The timesteps below the level at the fraction ``start`` of the way."""
    total = call.scheduler.config.num_train_timesteps
    count = int((path.timesteps < round(total - start * total)).sum())
    if call.scheduler.order == 2 and count % 2 == 0:
        count += (
            1  # such a solver visits each timestep but the first twice, and must not begin between the two
        )
    if count < 1:
        raise InputError(
            f"denoising_start={start} leaves no step to take; use more steps or an earlier start."
        )
    return begun_at(call, path, len(path.timesteps) - count, count)


def copies(given: int, count: int) -> int:
    """How many pictures to make of each given one; ``InputError`` where that does not come out even."""
    if count % given:
        raise InputError(f"There are {given} pictures to start from for {count} to make; give one for each.")
    return count // given


def repeated_to(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """The whole batch as often as it takes to have one item a picture; refused where that does not come out even."""
    return pixels.repeat(copies(len(pixels), count), 1, 1, 1)


def in_turn(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """One item a picture of ``count``, the copies of an item together; refused where that does not come out even."""
    return pixels.repeat_interleave(copies(len(pixels), count), dim=0)


def drawn_apart(call: Call, pixels: torch.Tensor) -> torch.Tensor:
    """One item for each picture of the call where all that is drawn for a picture comes from its own generator."""
    own = isinstance(call.noise.generator, PictureGenerators)
    return repeated_to(pixels, call.pictures) if own else pixels


def encoded(call: Call, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures, or latents as they are, as one item of latents for each picture of the call.

    With a list of generators item *i* of ``pixels`` is drawn with generator *i*.
    """
    generator = call.noise.generator
    pixels = drawn_apart(call, pixels).to(call.device, call.family.dtype)
    if pixels.shape[1] == call.latent_shape[1]:
        latents = pixels
    elif isinstance(generator, list | tuple):
        pairs = zip(pixels.split(1), generator, strict=False)
        latents = torch.cat([call.family.to_latents(one, source) for one, source in pairs])
    else:
        latents = call.family.to_latents(pixels, generator)
    return repeated_to(latents, call.pictures)
