"""T2I-Adapter (arXiv:2302.08453): a small network whose features of a picture are added inside the UNet's way down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.controls.control import Control, Residuals, Steering
from calotype.diffusion.inputs import Adapted
from calotype.diffusion.tasks.from_image import repeated_to
from calotype.image_processor import VaeImageProcessor, as_list

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State
    from calotype.diffusion.tasks.task import Path, Task


@dataclass(frozen=True)
class T2IAdapterControl(Control):
    """The family's ``adapter``, steered by the argument ``image``; its features are the same in every step.

    It begins to steer at the fraction ``start`` of the steps.
    """

    start: float = 0.0

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture and a scale for each adapter."""
        adapted, count = Adapted.of(arguments), adapters(family)
        if adapted.image is None:
            raise InputError("image is not given; pass the picture that the adapter reads.")
        if count is not None and (not isinstance(adapted.image, list | tuple) or len(adapted.image) != count):
            raise InputError(f"There are {count} adapters; image must be a list of one picture for each.")
        for one in [adapted.image] if count is None else adapted.image:
            as_list(one)
        if not 0 <= self.start <= adapted.adapter_conditioning_factor:
            raise InputError(
                f"An adapter cannot steer from {self.start} to {adapted.adapter_conditioning_factor} of the steps; the "
                f"beginning must not lie below 0 or behind the end."
            )
        scale = adapted.adapter_conditioning_scale
        if isinstance(scale, list | tuple) and len(scale) != (count or 1):
            raise InputError(
                f"There are {len(scale)} values of adapter_conditioning_scale for {count or 1} adapters."
            )

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """Compute the features."""
        family: Any = call.family
        adapted, count = Adapted.of(call.arguments), adapters(family)
        given = adapted.adapter_conditioning_scale
        scales = list(given) if isinstance(given, list | tuple) else [given] * (count or 1)
        if count is None:
            features = [
                scales[0] * feature for feature in family.adapter(self._pixels(call, task, adapted.image))
            ]
        else:
            features = family.adapter([self._pixels(call, task, one) for one in adapted.image], scales)
        features = [self._placed(call, feature) for feature in features]
        since, until = (int(path.steps * part) for part in (self.start, adapted.adapter_conditioning_factor))

        def steer(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> Residuals:
            if not since <= index < until:
                return Residuals()
            # guidance may have ended since the features were stacked
            return Residuals(intrablock=tuple(feature[-len(latents) :] for feature in features))

        return Steering(steer, {})

    def _pixels(self, call: Call, task: Task, picture: Any) -> torch.Tensor:
        """A control picture in [0, 1] at the call's size; tensors as they are."""
        family: Any = call.family
        if isinstance(picture, torch.Tensor):
            pixels = picture if picture.ndim == 4 else picture[None]
        else:
            processor = VaeImageProcessor(vae_scale_factor=family.scale_factor, do_normalize=False)
            options = {"height": call.height, "width": call.width, **task.picture_options(call)}
            pixels = processor.preprocess(picture, **options)
        return pixels.to(call.device, family.adapter.dtype)

    def _placed(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        """One item for each picture of the call, and the branches stacked."""
        if len(feature) > 1:
            feature = feature.repeat_interleave(call.subject.repeats, dim=0)
        each = repeated_to(feature, call.pictures).to(call.family.dtype)
        return torch.cat([each] * len(call.guidance.branches))


def adapters(family: Any) -> int | None:
    """How many adapters the family has in a group; None for one by itself."""
    return getattr(family.adapter, "num_adapter", None)
