"""Stable Video Diffusion (arXiv:2311.15127): a UNet on the latents of all frames, told CLIP's view of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion import codec
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component
from calotype.diffusion.guidance import UNCOND, FrameRamp, Guidance, Unguided
from calotype.diffusion.inputs import FrameGuide, Motion, Still
from calotype.families.clip_image import normed, smoothly_resized
from calotype.families.latent_unet import LatentFamily
from calotype.image_processor import as_list, as_rgb, numpy_to_pt, pil_to_numpy

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from calotype.models.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
    from calotype.schedulers.euler import EulerDiscreteScheduler

_NUMBERS = len(Motion().numbers)


@dataclass(frozen=True)
class VideoConditions(Conditions):
    """What the UNet takes, a row for each video and branch.

    The picture's embedding (…, 1, channels), the numbers about the video (…, 3), and the picture's latents (…,
    channels, height, width) to read beside those of each frame.
    """

    image_embeds: torch.Tensor
    added_time_ids: torch.Tensor
    image_latents: torch.Tensor | None = None


@dataclass(frozen=True)
class StableVideoDiffusion(LatentFamily):
    """The family bound to its components; its latents are (videos, frames, channels, height, width)."""

    vae: AutoencoderKLTemporalDecoder = component()  # type: ignore[assignment]
    image_encoder: CLIPVisionModelWithProjection = component()
    unet: UNetSpatioTemporalConditionModel = component()  # type: ignore[assignment]
    scheduler: EulerDiscreteScheduler = component()
    feature_extractor: CLIPImageProcessor = component()

    beside: ClassVar[tuple[str, ...]] = ()

    def subject(self, arguments: Mapping[str, Any]) -> Still:
        return Still.of(arguments)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a UNet that is told other numbers about a video than these."""
        Motion.of(arguments)
        config = self.unet.config
        width, told = config.addition_time_embed_dim, config.projection_class_embeddings_input_dim
        if width * _NUMBERS != told:
            raise InputError(
                f"The UNet reads {told / width:g} numbers about a video; this pipeline tells it {_NUMBERS}: frames a "
                f"second, motion and noise."
            )

    @property
    def default_size(self) -> tuple[int, int]:
        return 576, 1024

    def video_shape(self, shape: tuple[int, ...], frames: int) -> tuple[int, ...]:
        return shape[0], frames, *shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.image_encoder.dtype

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """A scale that rises from the first frame, which the picture determines, to the last."""
        guide = FrameGuide.of(arguments)
        if guide.max_guidance_scale <= 1:
            return Unguided()
        return FrameRamp(guide.min_guidance_scale, guide.max_guidance_scale)

    def encode(self, call: Call) -> VideoConditions:
        """The picture's embedding, zeros where the branch is told nothing; and the numbers, told in every branch."""
        embeds = repeated(self.embedding(call.subject.image, call.device), call.subject.repeats)[:, None]
        nothing = torch.zeros_like(embeds)
        branches = call.guidance.branches
        numbers = torch.tensor(Motion.of(call.arguments).numbers, dtype=embeds.dtype, device=call.device)
        return VideoConditions(
            torch.cat([nothing if name == UNCOND else embeds for name in branches]),
            numbers.expand(call.pictures * len(branches), -1),
        )

    def embedding(self, image: Any, device: torch.device) -> torch.Tensor:
        """CLIP's embeddings (batch, channels) of pictures, or of a tensor of them in [0, 1]."""
        config: Any = self.image_encoder.config
        size = (config.image_size, config.image_size)
        if isinstance(image, torch.Tensor):
            pixels = image.detach().cpu().float()
            if pixels.shape[2:] != size:
                pixels = smoothly_resized(pixels, size)
        else:
            each = (numpy_to_pt(pil_to_numpy([as_rgb(one)])) for one in as_list(image))
            pixels = torch.cat([smoothly_resized(one, size) for one in each])
        read = normed(self.feature_extractor, pixels)
        return self.image_encoder(read.to(device, self.dtype)).image_embeds

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """The likeliest latents of pictures in [-1, 1], in the autoencoder's own unit, as the UNet reads them."""
        coder = codec.accurate(self.vae)
        return codec.mode(coder, pixels.to(coder.dtype))

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, VideoConditions)
        assert conditions.image_latents is not None
        beside = conditions.image_latents[:, None].expand(-1, latents.shape[1], -1, -1, -1)
        return self.unet(
            torch.cat([latents, beside], dim=2),
            timestep,
            encoder_hidden_states=conditions.image_embeds,
            added_time_ids=conditions.added_time_ids,
            return_dict=False,
        )[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        """Videos (videos, frames, channels, height, width) in [-1, 1] from latents of the same order, in float32."""
        videos, frames = latents.shape[:2]
        unscaled = latents.flatten(0, 1).to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(unscaled, num_frames=frames, return_dict=False)[0]
        return pixels.float().unflatten(0, (videos, frames))
