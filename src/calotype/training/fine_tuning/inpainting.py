"""UNets for inpainting, which read a mask and the latents of what is around it beside the noisy latents."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.training.data.beside import Holes
from calotype.training.data.folder import check_readable, open_picture, read_captioned
from calotype.training.fine_tuning import whole
from calotype.training.fine_tuning.base import KINDS, Base
from calotype.training.fine_tuning.network_settings import InpaintingSettings
from calotype.training.fine_tuning.run import Lesson, Say, begin, objective_for, picture_set, teach

FILLING = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
"""The pipelines of checkpoints that were made for inpainting, as :data:`KINDS`."""


def train_inpainting(*, say: Say = print, **options: Any) -> Path:
    """Train a checkpoint to fill holes in captioned pictures; writes a whole checkpoint for inpainting.

    A checkpoint that reads text alone gets a UNet with channels for the mask and what is around it. ``options`` are
    the fields of :class:`InpaintingSettings`; the rest is as for ``train_text_to_image``.
    """
    settings = InpaintingSettings.of(options)
    examples = read_captioned(settings.train_data_dir, settings.caption_column)
    shown = [Path(name) for name in (*settings.validation_images, *settings.validation_masks)]
    check_readable(shown)
    base = begin(settings, examples, partial(Base.load, kinds=(*KINDS, *FILLING), prepare=reading_holes))
    base.pipe.unet.requires_grad_(True)
    pairs = zip(settings.validation_images, settings.validation_masks, strict=True)
    lesson = Lesson(
        kind="inpainting",
        objective=objective_for(settings, base, reads=False),
        read=base.states,
        read_identity=base.text_identity,
        write=lambda folder: whole.write(base, folder),
        usage=f"pipe = calotype.load({settings.output.name!r})\n"
        f'pipe("…", image=picture, mask_image=mask).images[0]',
        facts={"pictures masked as a whole": settings.whole_mask},
        extras=[Holes(base.pipe.vae, settings.whole_mask)],
        told=[
            {"image": open_picture(Path(picture)), "mask_image": open_picture(Path(mask)), "strength": 1.0}
            for picture, mask in pairs
        ],
    )
    return teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], say)


def reading_holes(name: str, pipe: Any) -> Any:
    """The pipeline for inpainting with a checkpoint's parts; a UNet that reads latents alone is widened.

    ``InputError`` for one that reads something else.
    """
    import calotype

    latents, taken = pipe.vae.config.latent_channels, pipe.unet.config.in_channels
    wanted = 2 * latents + 1
    if taken not in (latents, wanted):
        raise InputError(
            f"The UNet of {name} takes {taken} channels: for inpainting it has {wanted}, or {latents} to begin with."
        )
    kind = getattr(calotype, FILLING[hasattr(pipe, "text_encoder_2")])
    unet = pipe.unet if taken == wanted else widened(pipe.unet, wanted)
    return kind.from_pipe(pipe, unet=unet)


def widened(unet: Any, channels: int) -> Any:
    """A UNet that takes so many channels and makes of the first what ``unet`` does, and of the others nothing yet."""
    from calotype.models.unet_2d_condition import UNet2DConditionModel

    wide = UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    weights = unet.state_dict()
    kernel = weights["conv_in.weight"]
    more = torch.zeros(kernel.shape[0], channels - kernel.shape[1], *kernel.shape[2:], dtype=kernel.dtype)
    wide.load_state_dict({**weights, "conv_in.weight": torch.cat([kernel, more.to(kernel.device)], dim=1)})
    return wide.to(unet.device)
