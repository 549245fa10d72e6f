"""AnimateDiff (arXiv:2307.04725): Stable Diffusion that moves, with motion modules between the layers of its UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError
from calotype.diffusion.family import component
from calotype.diffusion.inputs import Prompt
from calotype.families.stable_diffusion import StableDiffusionFamily
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_motion_model import UNetMotionModel

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.motion_adapter import MotionAdapter
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class AnimateDiff(StableDiffusionFamily):
    """The family bound to its components; its latents are (videos, channels, frames, height, width)."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel | UNetMotionModel = component()  # type: ignore[assignment]
    motion_adapter: MotionAdapter = component()
    scheduler: SchedulerMixin = component()
    feature_extractor: CLIPImageProcessor | None = component(None)
    image_encoder: CLIPVisionModelWithProjection | None = component(None)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A UNet over pictures becomes one over videos, with the adapter's motion."""
        unet, adapter = values["unet"], values["motion_adapter"]
        if not isinstance(unet, UNet2DConditionModel):
            return values
        if adapter is None:
            raise InputError(
                "The UNet is for pictures; pass motion_adapter=MotionAdapter.from_pretrained(…), without which nothing "
                "moves."
            )
        return {**values, "unet": UNetMotionModel.from_unet2d(unet, adapter)}

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of({**arguments, "num_images_per_prompt": arguments.get("num_videos_per_prompt", 1)})
