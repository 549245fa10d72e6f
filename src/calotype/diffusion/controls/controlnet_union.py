"""ControlNet Union: one network that reads pictures of several kinds (https://github.com/xinsir6/ControlNetPlus)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

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


class Shown(NamedTuple):
    """What one network is shown: pictures, and the kind of each."""

    pictures: list[Any]
    kinds: list[int]


@dataclass(frozen=True)
class ControlNetUnion(Control):
    """The family's ``controlnet``, shown the argument called ``picture``; ``control_mode`` says what is of which kind.

    One network has pictures, each with its kind, scale and range. Several have one entry each, with the network's
    scale and range: a picture and its kind, or a list of pictures and a list of kinds.
    """

    picture: str = "control_image"

    @property
    def tensor_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The control pictures, which are a list."""
        return (self.picture,)

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture, kind, scale or range where there must be one."""
        nets, controlled = networks(family), Controlled.of(arguments)
        if any("num_control_type" not in net.config for net in nets):
            raise InputError(
                "This pipeline takes a ControlNetUnionModel; use the pipeline of the same name without Union for any "
                "other ControlNet."
            )
        shown = self._shown(family, arguments)
        for one, net in zip(shown, nets, strict=True):
            for kind in one.kinds:
                if (
                    isinstance(kind, bool)
                    or not isinstance(kind, int)
                    or not 0 <= kind < net.config.num_control_type
                ):
                    raise InputError(
                        f"control_mode has {kind!r}; the kinds of this model are the numbers 0 to "
                        f"{net.config.num_control_type - 1}."
                    )
            for picture in one.pictures:
                as_list(picture)
        count = len(shown) if is_group(family) else len(shown[0].kinds)
        scales = controlled.controlnet_conditioning_scale
        if isinstance(scales, list | tuple) and len(scales) != count:
            raise InputError(
                f"There are {len(scales)} values of controlnet_conditioning_scale for {count} "
                f"{'networks' if is_group(family) else 'pictures'}."
            )
        controlled.ranges(count)

    def _shown(self, family: Any, arguments: Mapping[str, Any]) -> list[Shown]:
        """What each network is shown; ``InputError`` where pictures and kinds do not go together."""
        pictures, kinds = arguments.get(self.picture), arguments.get("control_mode")
        if pictures is None or kinds is None:
            name, what = (
                (self.picture, "picture") if pictures is None else ("control_mode", "number of its kind")
            )
            raise InputError(
                f"{name} is not given; the ControlNet needs a picture and its kind: pass the {what}."
            )
        pictures, kinds = _listed(pictures), _listed(kinds)
        if len(pictures) != len(kinds):
            raise InputError(
                f"There are {len(pictures)} pictures in {self.picture} and {len(kinds)} kinds in control_mode; give as "
                f"many of one as of the other."
            )
        if not is_group(family):
            return [Shown(pictures, kinds)]
        nets = networks(family)
        if len(pictures) != len(nets):
            raise InputError(
                f"There are {len(nets)} ControlNets; {self.picture} must be a list of one entry for each."
            )
        shown = [
            Shown(_listed(picture), _listed(kind))
            if isinstance(kind, list | tuple)
            else Shown([picture], [kind])
            for picture, kind in zip(pictures, kinds, strict=True)
        ]
        for index, one in enumerate(shown):
            if len(one.pictures) != len(one.kinds):
                raise InputError(
                    f"ControlNet {index} is given {len(one.pictures)} pictures and {len(one.kinds)} kinds of them."
                )
        return shown

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """Prepare the pictures, and the networks' or pictures' scale in every step."""
        family: Any = call.family
        controlled, nets, several = Controlled.of(call.arguments), networks(family), is_group(family)
        guess = controlled.guess_mode or nets[0].config.global_pool_conditions
        branches = len(seeing(call.guidance.branches, guess))
        shown = self._shown(family, call.arguments)
        prepared = [
            [prepared_picture(call, task, picture, net.dtype, branches) for picture in one.pictures]
            for one, net in zip(shown, nets, strict=True)
        ]
        types = [_indicators(one.kinds, net, call.device) for one, net in zip(shown, nets, strict=True)]
        kinds = [one.kinds for one in shown]
        scales = controlled.scales(len(nets) if several else len(kinds[0]), path.whole)

        def own(index: int, rows: int, state: State) -> dict[str, Any]:
            now: Any = state.tensors[self.picture]
            pictures = [[fitted(one, rows) for one in each] for each in (now if several else [now])]
            return {
                "controlnet_cond": pictures if several else pictures[0],
                "control_type": types if several else types[0],
                "control_type_idx": kinds if several else kinds[0],
                "conditioning_scale": scales[index],
            }

        tensors: dict[str, Any] = {self.picture: prepared if several else prepared[0]}
        return Steering(beside(call, guess, own), tensors)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _indicators(kinds: list[int], net: Any, device: torch.device) -> torch.Tensor:
    """Which kinds are given, as the network takes it: (1, kinds), 1 for those that are."""
    row = torch.zeros(1, net.config.num_control_type, dtype=net.dtype, device=device)
    row[0, kinds] = 1
    return row
