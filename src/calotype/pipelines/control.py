"""Controls as values: a model bound to a picture, a strength and a part of the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.controls.bound import Bound
from calotype.diffusion.controls.controlnet import ControlNet
from calotype.diffusion.controls.controlnet_union import ControlNetUnion
from calotype.diffusion.controls.t2i_adapter import T2IAdapterControl
from calotype.models.controlnet import ControlNetModel
from calotype.models.controlnet_union import ControlNetUnionModel
from calotype.models.model_group import ModelGroup
from calotype.models.t2i_adapter import T2IAdapter
from calotype.pipelines.auto import UNIONS

COMPONENTS = ("controlnet", "adapter")
"""The components that steer, in the order in which pictures for them are given."""


@dataclass(frozen=True)
class PictureControl:
    """What :func:`control` makes: a model with what it reads, how strongly it steers and where."""

    model: Any
    picture: Any
    scale: float | None = None
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    kind: int | Sequence[int] | None = None

    def as_hint(self) -> Any:
        """The picture, for a denoiser that reads it by itself: at full strength and in all steps."""
        if self.picture is None:
            raise InputError("The control by the denoiser itself has no picture; pass the one that it reads.")
        if (self.scale, self.start, self.end, self.guess_mode, self.kind) != (None, 0.0, 1.0, False, None):
            raise InputError(
                "This denoiser reads its control picture by itself, at full strength and in all steps: scale, start, "
                "end, guess_mode and kind have no meaning for it."
            )
        return self.picture

    @property
    def reads_kinds(self) -> bool:
        """Whether the model is told of which kind its pictures are."""
        return isinstance(unwrapped(self.model), ControlNetUnionModel)

    def bound(self, number: int, usual_scale: float) -> Bound:
        """The control as a part of a call, the ``number``-th of it; its picture has a name of its own there."""
        name = "control_image" if number == 0 else f"control_image_{number + 1}"
        model = unwrapped(self.model)
        if self.picture is None:
            raise InputError(
                f"A control by {type(model).__name__} has no picture; pass the one that it reads."
            )
        if self.reads_kinds != (self.kind is not None):
            needs = (
                "needs the number of its picture's kind"
                if self.reads_kinds
                else "knows of no kinds of pictures"
            )
            raise InputError(
                f"A {type(model).__name__} {needs}; see kind in calotype.control(model, picture, kind=…)."
            )
        if isinstance(model, ControlNetModel | ControlNetUnionModel):
            return Bound(
                ControlNetUnion(name) if self.reads_kinds else ControlNet(name),
                {"controlnet": self.model},
                {
                    "control_mode": self.kind,
                    name: self.picture,
                    "controlnet_conditioning_scale": usual_scale if self.scale is None else self.scale,
                    "control_guidance_start": self.start,
                    "control_guidance_end": self.end,
                    "guess_mode": self.guess_mode,
                },
            )
        if isinstance(model, T2IAdapter):
            if self.guess_mode:
                raise InputError("guess_mode is for ControlNets; a T2IAdapter has no such mode.")
            return Bound(
                T2IAdapterControl(self.start),
                {"adapter": self.model},
                {
                    "image": self.picture,
                    "adapter_conditioning_scale": 1.0 if self.scale is None else self.scale,
                    "adapter_conditioning_factor": self.end,
                },
            )
        raise InputError(
            f"A control needs a ControlNetModel, ControlNetUnionModel or T2IAdapter, not {type(model).__name__}; "
            f"several are a list of controls."
        )


def control(
    model: Any,
    picture: Any,
    scale: float | None = None,
    start: float = 0.0,
    end: float = 1.0,
    guess_mode: bool = False,
    kind: int | Sequence[int] | None = None,
) -> PictureControl:
    """A ControlNet or T2I-Adapter that reads ``picture``, for ``control=`` of what :func:`calotype.load` returns.

    ``scale`` says how strongly it steers (by default as in the task's public pipeline), ``start`` and ``end`` in which
    part of the steps, as fractions. In ``guess_mode`` a ControlNet guesses the content, also without a prompt. For a
    batch ``picture`` may be a list of one for each prompt. A ControlNetUnionModel is told the picture's ``kind``; a
    list of kinds goes with a list of pictures for it. Controls add up: give a list of them.
    """
    return PictureControl(model, picture, scale, start, end, guess_mode, kind)


def unwrapped(model: Any) -> Any:
    """The model itself, where it is compiled."""
    return getattr(model, "_orig_mod", model)


def control_of(given: Any) -> str:
    """The kind of control that a model, a list of them or a class's name stands for."""
    first = given[0] if isinstance(given, list | tuple) else given
    name = first if isinstance(first, str) else type(unwrapped(first)).__name__
    if "Adapter" in name:
        return "adapter"
    return "controlnet-union" if name in UNIONS else "controlnet"


def stored_models(pipe: Any) -> list[Any]:
    """The models of a pipeline that steer, one by one, and a denoiser that reads a control picture by itself."""
    beside = [model for name in COMPONENTS for model in _members(getattr(pipe, name, None))]
    return [*beside, pipe.unet] if pipe.bound_family().reads_hint else beside


def _members(model: Any) -> Iterator[Any]:
    inside = unwrapped(model)
    if isinstance(inside, ModelGroup):
        yield from getattr(inside, inside._members_name)
    elif model is not None:
        yield model


def controls_for(given: Any, stored: Sequence[Any]) -> list[PictureControl]:
    """The controls that ``control=`` asks for: pictures for the ``stored`` models in their order, or whole controls.

    ``None`` in the list leaves a stored model out. Raises ``InputError`` where pictures and models do not match.
    """
    if given is None:
        return []
    items = list(given) if isinstance(given, list | tuple) else [given]
    whole = [item for item in items if isinstance(item, PictureControl)]
    pictures = [item for item in items if not isinstance(item, PictureControl)]
    if len(pictures) != (len(stored) if pictures else 0):
        raise InputError(
            f"control has {len(pictures)} pictures, and the pipeline {len(stored)} models that read one: give a "
            f"picture or None for each of them, and calotype.control(model, picture) for any other model. A picture "
            f"for each prompt is a list in the list."
        )
    pairs = zip(stored, pictures, strict=bool(pictures))
    return [PictureControl(model, picture) for model, picture in pairs if picture is not None] + whole
