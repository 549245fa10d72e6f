"""ControlNet (arXiv:2302.05543): a copy of the UNet's encoder that reads a control picture, one or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import only
from calotype.diffusion.controls.control import Control, Residuals, Steering, with_zeros
from calotype.diffusion.guidance import UNCOND
from calotype.diffusion.inputs import Controlled
from calotype.image_processor import VaeImageProcessor, as_list

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State
    from calotype.diffusion.tasks.task import Path, Task


@dataclass(frozen=True)
class ControlNet(Control):
    """The family's ``controlnet``, steered by the argument called ``picture``."""

    picture: str = "control_image"

    @property
    def tensor_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The control picture."""
        return (self.picture,)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture, scale or range for each network."""
        picture = arguments.get(self.picture)
        if picture is None:
            raise InputError(f"{self.picture} is not given; pass the picture that the ControlNet reads.")
        controlled, count = Controlled.of(arguments), len(networks(family))
        several = is_group(family)
        if several and (
            not isinstance(picture, list | tuple) or len(self.pictures(arguments, count)) != count
        ):
            raise InputError(
                f"There are {count} ControlNets; {self.picture} must be a list of one picture for each."
            )
        for one in self.pictures(arguments, count) if several else [picture]:
            as_list(one)
        scales = controlled.controlnet_conditioning_scale
        if isinstance(scales, list | tuple) and len(scales) != count:
            raise InputError(
                f"There are {len(scales)} values of controlnet_conditioning_scale for {count} networks."
            )
        controlled.ranges(count)

    def pictures(self, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """One entry a network; a list of lists is a list of each prompt's pictures, turned round."""
        given = arguments[self.picture]
        if isinstance(given[0], list | tuple):
            return [list(each) for each in zip(*given, strict=True)]
        return list(given)

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """Prepare the pictures, and the networks' scale in every step."""
        family: Any = call.family
        controlled, nets = Controlled.of(call.arguments), networks(family)
        guess = controlled.guess_mode or nets[0].config.global_pool_conditions
        branches = len(call.guidance.branches)
        alone = guess and UNCOND in call.guidance.branches  # that branch does without the network
        several = is_group(family)
        given = self.pictures(call.arguments, len(nets)) if several else [call.arguments[self.picture]]
        prepared = [
            prepared_picture(call, task, one, nets[0].dtype, 1 if alone else branches) for one in given
        ]
        scales = controlled.scales(len(nets), len(path.timesteps))

        def steer(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> Residuals:
            names = state.guidance.branches
            seeing = tuple(name for name in names if name != UNCOND) if alone else names
            mine = partial(only, branches=seeing, of=names, pictures=len(latents) // len(names))
            latents = mine(latents)
            pictures = [state.tensors[self.picture]] if not several else prepared
            pictures = [fitted(one, len(latents)) for one in pictures]
            down, mid = family.controlnet(
                latents,
                timestep,
                controlnet_cond=pictures if several else pictures[0],
                conditioning_scale=scales[index] if several else scales[index][0],
                guess_mode=guess,
                return_dict=False,
                **mine(family.told(state.conditions)),
            )
            residuals = Residuals(tuple(down), mid)
            return residuals if seeing == names else with_zeros(residuals, seeing, names)

        return Steering(steer, {} if several else {self.picture: prepared[0]})


def fitted(pictures: torch.Tensor, count: int) -> torch.Tensor:
    """Pictures that are the same in every branch, for as many rows as a step has."""
    return pictures[-count:] if len(pictures) >= count else pictures.repeat(count // len(pictures), 1, 1, 1)


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
