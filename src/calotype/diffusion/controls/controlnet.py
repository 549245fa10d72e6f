"""ControlNet (arXiv:2302.05543): a copy of the UNet's encoder that reads a control picture, one or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError
from calotype.diffusion.controls.control import Control, Steering
from calotype.diffusion.controls.network import beside, fitted, is_group, networks, prepared_picture, seeing
from calotype.diffusion.inputs import Controlled
from calotype.image_processor import as_list

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
        if any("num_control_type" in net.config for net in networks(family)):
            raise InputError(
                "A ControlNetUnionModel needs the pipeline with Union in its name, where control_mode says of which "
                "kind the picture is."
            )
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
        several = is_group(family)
        given = self.pictures(call.arguments, len(nets)) if several else [call.arguments[self.picture]]
        branches = seeing(call.guidance.branches, guess)
        prepared = [prepared_picture(call, task, one, nets[0].dtype, len(branches)) for one in given]
        scales = controlled.scales(len(nets), path.whole)

        def own(index: int, rows: int, state: State) -> dict[str, Any]:
            pictures = [state.tensors[self.picture]] if not several else prepared
            pictures = [fitted(one, rows) for one in pictures]
            return {
                "controlnet_cond": pictures if several else pictures[0],
                "conditioning_scale": scales[index] if several else scales[index][0],
            }

        return Steering(beside(call, guess, own), {} if several else {self.picture: prepared[0]})
