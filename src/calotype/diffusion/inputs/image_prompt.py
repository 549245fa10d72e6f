"""Pictures in the place of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument


@dataclass(frozen=True)
class ImagePrompt(Inputs):
    """What IP-Adapters read, and how strongly it acts."""

    ip_adapter_image: Any = argument(
        None,
        "The picture that an IP-Adapter reads; for several adapters a list of one for each, where a list of pictures "
        "may stand for one.",
    )
    ip_adapter_image_embeds: list[torch.Tensor] | None = argument(
        None,
        "In place of ip_adapter_image what an encoder made of it: a list of a tensor (1, pictures, …) for each "
        "adapter, with guidance (2, pictures, …), negatives first.",
    )
    ip_adapter_scale: Any = argument(
        None,
        "How strongly the IP-Adapters act in this call, in any form that set_ip_adapter_scale takes; by default as set "
        "there.",
        beside="ip_adapter_image",
    )

    def __post_init__(self) -> None:
        if self.ip_adapter_image is not None and self.ip_adapter_image_embeds is not None:
            raise InputError("Both ip_adapter_image and ip_adapter_image_embeds are given; give one of them.")
        embeds = self.ip_adapter_image_embeds
        if embeds is None:
            return
        if not isinstance(embeds, list | tuple):
            raise InputError(
                f"ip_adapter_image_embeds must be a list of a tensor for each IP-Adapter, not {type(embeds).__name__}."
            )
        for one in embeds:
            if not isinstance(one, torch.Tensor) or one.ndim not in (3, 4):
                found = tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__
                raise InputError(
                    f"ip_adapter_image_embeds must be tensors (batch, pictures, channels) or (batch, pictures, "
                    f"patches, channels), not {found}."
                )

    @property
    def given(self) -> bool:
        """Whether there is a picture in any form."""
        return self.ip_adapter_image is not None or self.ip_adapter_image_embeds is not None

    @property
    def pictures(self) -> list[list[Any]]:
        """The pictures of each adapter."""
        images = self.ip_adapter_image
        each = list(images) if isinstance(images, list | tuple) else [images]
        return [list(one) if isinstance(one, list | tuple) else [one] for one in each]
