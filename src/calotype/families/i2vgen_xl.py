"""I2VGen-XL (arXiv:2311.04145): a UNet on the latents of all frames, told a text and what is seen in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component
from calotype.diffusion.frame_by_frame import FrameByFrame
from calotype.diffusion.guidance import UNCOND
from calotype.diffusion.images import numpy_to_pil, to_numpy
from calotype.diffusion.inputs import Pace, Picture, Prompt
from calotype.diffusion.tasks.from_image import copies
from calotype.families.clip_image import normed
from calotype.families.latent_unet import UNetConditions
from calotype.families.stable_diffusion import StableDiffusionFamily
from calotype.image_processor import as_list, as_rgb, is_pil, numpy_to_pt, pil_to_numpy

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_i2vgen_xl import I2VGenXLUNet
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class MovingConditions(UNetConditions):
    """What the UNet takes, a row for each video and branch.

    Beside the text: the picture's embedding (…, 1, channels), its latents in the first frame (…, channels, frames,
    height, width), and frames a second (…,).
    """

    image_embeddings: torch.Tensor | None = None
    fps: torch.Tensor | None = None
    image_latents: torch.Tensor | None = None


@dataclass(frozen=True)
class I2VGenXL(StableDiffusionFamily):
    """The family bound to its components; its latents are (videos, channels, frames, height, width)."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    feature_extractor: CLIPImageProcessor = component()
    unet: I2VGenXLUNet = component()  # type: ignore[assignment]
    scheduler: SchedulerMixin = component()

    skips_in_negatives: ClassVar[bool] = True

    @property
    def solver(self) -> Any:
        return FrameByFrame(self.scheduler)

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of({**arguments, "num_images_per_prompt": arguments.get("num_videos_per_prompt", 1)})

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a pace that is none."""
        Pace.of(arguments)

    def encode(self, call: Call) -> MovingConditions:
        """Text; the picture's embedding, zeros where the branch is told nothing; and the pace, told in every branch."""
        text = super().encode(call)
        branches = call.guidance.branches
        pictures = self.stills(Picture.of(call.arguments).image)
        embeds = self.embedding(pictures, call.width, call.device)
        embeds = repeated(embeds, copies(len(embeds), call.pictures))[:, None]
        nothing = torch.zeros_like(embeds)
        pace = torch.tensor([Pace.of(call.arguments).target_fps], device=call.device)
        return MovingConditions(
            **vars(text),
            image_embeddings=torch.cat([nothing if name == UNCOND else embeds for name in branches]),
            fps=pace.expand(call.pictures * len(branches)),
        )

    def told(self, conditions: Conditions) -> dict[str, Any]:
        assert isinstance(conditions, MovingConditions)
        return {
            "encoder_hidden_states": conditions.prompt_embeds,
            "image_embeddings": conditions.image_embeddings,
            "image_latents": conditions.image_latents,
            "fps": conditions.fps,
        }

    def embedding(self, pictures: list[Image], side: int, device: torch.device) -> torch.Tensor:
        """CLIP's embeddings (batch, channels) of the squares of so many pixels in the pictures' middle."""
        from PIL.Image import Resampling

        size = self.feature_extractor.crop_size
        shown = [
            middle(one, side, side).resize((size["width"], size["height"]), Resampling.BILINEAR)
            for one in pictures
        ]
        pixels = normed(self.feature_extractor, numpy_to_pt(pil_to_numpy(shown)))
        return self.image_encoder(pixels.to(device, self.image_encoder.dtype)).image_embeds

    def first_frames(self, call: Call) -> torch.Tensor:
        """The call's pictures in its size, (pictures, 3, height, width) in [-1, 1]."""
        pictures = self.stills(Picture.of(call.arguments).image)
        return self.image_processor.preprocess([middle(one, call.width, call.height) for one in pictures])

    def stills(self, image: Any) -> list[Image]:
        """The pictures that are to move; ``InputError`` where there is none."""
        if image is None:
            raise InputError("image is not given; pass the picture that is to move.")
        found: list[Image] = []
        for one in as_list(image):
            if is_pil(one):
                found.append(as_rgb(one))
            elif isinstance(one, torch.Tensor) and one.ndim in (3, 4) and one.shape[-3] == 3:
                found += numpy_to_pil(to_numpy(one if one.ndim == 4 else one[None]))
            else:
                raise InputError(
                    f"image must be a PIL image, a tensor (batch, 3, height, width) in [0, 1], or a list of these, not "
                    f"{type(one).__name__} of the shape {getattr(one, 'shape', None)}."
                )
        return found


def middle(picture: Image, width: int, height: int) -> Image:
    """The picture scaled to cover so many pixels, and cut to them about its middle."""
    from PIL.Image import Resampling

    scale = min(Fraction(picture.width, width), Fraction(picture.height, height))
    covering = picture.resize((int(picture.width / scale), int(picture.height / scale)), Resampling.BOX)
    left, top = (covering.width - width) // 2, (covering.height - height) // 2
    return covering.crop((left, top, left + width, top + height))
