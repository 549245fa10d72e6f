"""A network beside the denoiser that is conditioned as it is: what every kind of ControlNet has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import only
from calotype.diffusion.controls.control import Residuals, Steer, with_zeros
from calotype.diffusion.guidance import UNCOND
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.loop import State
    from calotype.diffusion.tasks.task import Task

Own = Callable[[int, int, "State"], dict[str, Any]]
"""(step, rows, state) -> the arguments that the network takes beyond the denoiser's."""


def beside(call: Call, guess: bool, own: Own) -> Steer:
    """The family's ``controlnet`` as a control, with the arguments ``own`` of each step."""
    family: Any = call.family

    def steer(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> Residuals:
        names = state.guidance.branches
        mine = seeing(names, guess)
        selected = partial(only, branches=mine, of=names, pictures=len(latents) // len(names))
        rows = selected(latents)
        down, mid = family.controlnet(
            rows,
            timestep,
            guess_mode=guess,
            return_dict=False,
            **own(index, len(rows), state),
            **selected(family.told(state.conditions)),
        )
        residuals = Residuals(None if down is None else tuple(down), mid)
        return residuals if mine == names else with_zeros(residuals, mine, names)

    return steer


def seeing(branches: Sequence[str], guess: bool) -> tuple[str, ...]:
    """The branches that the network works in: when it guesses, not the one that is told nothing."""
    return tuple(name for name in branches if not (guess and name == UNCOND))


def fitted(pictures: torch.Tensor, rows: int) -> torch.Tensor:
    """Pictures that are the same in every branch, for as many rows as a step has."""
    return pictures[-rows:] if len(pictures) >= rows else pictures.repeat(rows // len(pictures), 1, 1, 1)


def is_group(family: Any) -> bool:
    """Whether the family's ControlNet is several in one."""
    return hasattr(family.controlnet, "nets")


def networks(family: Any) -> list[Any]:
    """The ControlNets, of which there is usually one."""
    net = getattr(family.controlnet, "_orig_mod", family.controlnet)
    return list(net.nets) if hasattr(net, "nets") else [net]


def picture_processor(scale_factor: int) -> VaeImageProcessor:
    """Prepares control pictures: RGB in [0, 1]."""
    return VaeImageProcessor(vae_scale_factor=scale_factor, do_convert_rgb=True, do_normalize=False)


def prepared_picture(call: Call, task: Task, picture: Any, dtype: torch.dtype, branches: int) -> torch.Tensor:
    """A control picture at the call's size, one for each picture of the call, and the branches stacked."""
    options = {"height": call.height, "width": call.width, **task.picture_options(call)}
    pixels = picture_processor(call.family.scale_factor).preprocess(picture, **options).float()
    prompts = call.pictures // call.subject.repeats
    if len(pixels) not in (1, prompts):
        raise InputError(
            f"There are {len(pixels)} control pictures for {prompts} prompts; give one or one for each."
        )
    times = call.pictures if len(pixels) == 1 else call.subject.repeats
    pixels = pixels.repeat_interleave(times, dim=0).to(call.device, dtype)
    return torch.cat([pixels] * branches)
