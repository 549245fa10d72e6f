"""ControlNets for videos: one that reads a picture for each frame, and one that reads pictures for some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.frames import context_of_frames, for_frames, together
from calotype.diffusion.conditions import Conditions
from calotype.diffusion.controls.bound import Beside
from calotype.diffusion.controls.control import Control, Residuals, Steering
from calotype.diffusion.controls.controlnet import ControlNet
from calotype.diffusion.controls.network import beside, is_group, networks, picture_processor
from calotype.diffusion.inputs import ControlFrames, Controlled, frames_of
from calotype.image_processor import as_list

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State
    from calotype.diffusion.tasks.task import Path, Task

_PICTURES = "conditioning_frames"


@dataclass(frozen=True)
class _Each:
    """The frames of a call as so many pictures to make, each with a control picture of its own."""

    pictures: int
    repeats: int = 1


@dataclass(frozen=True)
class EachFrame(Control):
    """A ControlNet for pictures at work on the frames of videos; ``conditioning_frames`` are for every video."""

    control: ControlNet = field(default_factory=lambda: ControlNet(_PICTURES))

    @property
    def tensor_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The control pictures."""
        return self.control.tensor_names

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """As the ControlNet; and refuse a number of pictures that is not that of the frames."""
        given, count = ControlFrames.of(arguments).conditioning_frames, len(networks(family))
        if is_group(family) and (not isinstance(given, list | tuple) or len(given) != count):
            raise InputError(
                f"There are {count} ControlNets; {_PICTURES} must be a list of {count} lists of frames, one for each."
            )
        if given is None:
            raise InputError(f"{_PICTURES} is not given; pass the pictures that the ControlNet reads.")
        frames = frames_of(arguments)
        for one in _by_network(family, arguments):
            if frames is not None and len(one) != frames:
                raise InputError(
                    f"{_PICTURES} has {len(one)} pictures for {frames} frames; give one for each."
                )
        self.control.check(family, {**arguments, _PICTURES: _by_frame(family, arguments)})

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """Prepare a picture for each frame of each video."""
        frames = call.frames
        assert frames is not None
        family: Any = Beside(call.family, {"told": partial(_told, call.family, frames)})
        pictures = _by_frame(call.family, call.arguments) * call.pictures
        of_frames = replace(
            call,
            family=family,
            subject=_Each(call.pictures * frames),
            arguments={**call.arguments, _PICTURES: pictures},
        )
        inner = self.control.prepare(of_frames, path, task)

        def steer(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> Residuals:
            return inner.steer(index, together(latents), timestep, state)

        return Steering(steer, inner.tensors)


def _by_network(family: Any, arguments: Mapping[str, Any]) -> list[list[Any]]:
    """The frames for each network."""
    given = ControlFrames.of(arguments).conditioning_frames
    each = given if is_group(family) else [given]
    return [list(one) if getattr(one, "ndim", 0) == 4 else as_list(one) for one in each]


def _by_frame(family: Any, arguments: Mapping[str, Any]) -> list[Any]:
    """The picture for each frame, or a list of one for each of several networks."""
    given = _by_network(family, arguments)
    return [list(each) for each in zip(*given, strict=True)] if is_group(family) else given[0]


def _told(family: Any, frames: int, conditions: Conditions) -> dict[str, Any]:
    """What networks for pictures are told, with a row for each frame."""
    told = family.told(conditions)
    context = told.pop("encoder_hidden_states")
    rows = context_of_frames(context, len(context), frames)
    return {"encoder_hidden_states": rows, **for_frames(told, len(context), frames)}


@dataclass(frozen=True)
class SparseFrames(Control):
    """SparseCtrl (arXiv:2311.16933): pictures for some frames, from which the network guesses the others' residuals."""

    tensor_names = (_PICTURES,)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without pictures, and numbers of frames that do not go with them."""
        asked = ControlFrames.of(arguments)
        if asked.conditioning_frames is None:
            raise InputError(f"{_PICTURES} is not given; pass the pictures that the ControlNet reads.")
        if is_group(family) or not hasattr(networks(family)[0].config, "concat_conditioning_mask"):
            raise InputError("This pipeline takes one SparseControlNetModel.")
        count, indices = len(as_list(asked.conditioning_frames)), list(asked.controlnet_frame_indices)
        if len(set(indices)) != len(indices) or len(indices) != count:
            raise InputError(
                f"There are {count} pictures in {_PICTURES} for the frames {indices} of controlnet_frame_indices; give "
                f"one for each, and each frame once."
            )
        frames = frames_of(arguments) or 1
        if beyond := [index for index in indices if not 0 <= index < frames]:
            raise InputError(
                f"controlnet_frame_indices has {beyond[0]}; the frames are the numbers 0 to {frames - 1}."
            )
        if not isinstance(Controlled.of(arguments).controlnet_conditioning_scale, int | float):
            raise InputError("controlnet_conditioning_scale is one number: there is one ControlNet.")

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """Prepare the pictures, as latents where the network reads such, at their places among empty frames."""
        family: Any = call.family
        net, frames = networks(family)[0], call.frames
        assert frames is not None
        asked, controlled = ControlFrames.of(call.arguments), Controlled.of(call.arguments)
        pixels = picture_processor(family.scale_factor).preprocess(
            asked.conditioning_frames, height=call.height, width=call.width
        )
        if net.config.use_simplified_condition_embedding:
            scaled = (pixels * 2 - 1).to(call.device, family.dtype)
            pixels = family.likeliest(scaled) * family.vae.config.scaling_factor
        pixels = pixels.to(call.device, net.dtype)
        indices = list(asked.controlnet_frame_indices)
        shown = pixels.new_zeros(1, pixels.shape[1], frames, *pixels.shape[2:])
        shown[0, :, indices] = pixels.transpose(0, 1)
        mask = pixels.new_zeros(1, 1, frames, *pixels.shape[2:])
        mask[:, :, indices] = 1
        guess = controlled.guess_mode or net.config.global_pool_conditions

        def own(index: int, rows: int, state: State) -> dict[str, Any]:
            return {
                "controlnet_cond": state.tensors[_PICTURES],
                "conditioning_mask": mask,
                "conditioning_scale": controlled.controlnet_conditioning_scale,
            }

        return Steering(beside(call, guess, own), {_PICTURES: shown})
