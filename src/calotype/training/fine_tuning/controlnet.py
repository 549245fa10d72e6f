"""A ControlNet (https://arxiv.org/abs/2302.05543) for a user's checkpoint, from pairs of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.training.controlled import Controlled, controlnet_of
from calotype.training.data.beside import check_shapes, control_pictures
from calotype.training.data.folder import check_readable, open_picture, read_captioned
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.network_settings import ControlNetSettings
from calotype.training.fine_tuning.run import Lesson, Say, begin, dtype_of, objective_for, picture_set, teach

_WIDTHS = (16, 32, 96, 256)
"""Of the network that reads the control picture; it halves the picture once for each but the first."""


def train_controlnet(*, say: Say = print, **options: Any) -> Path:
    """Train a ControlNet for a checkpoint on captioned pictures with a control picture beside each; writes its files.

    ``options`` are the fields of :class:`ControlNetSettings`; the rest is as for ``train_text_to_image``.
    """
    settings = ControlNetSettings.of(options)
    examples = read_captioned(
        settings.train_data_dir, settings.caption_column, settings.conditioning_image_column
    )
    shown = [Path(name) for name in settings.validation_images]
    check_readable(shown)
    base = begin(settings, examples)
    check_shapes(examples)
    controlnet = _controlnet(settings, base).to(base.device).train().requires_grad_(True)
    base.lighten(dtype_of(settings))
    pipe = _pipe(base, controlnet)
    if settings.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
    lesson = Lesson(
        kind="controlnet",
        objective=objective_for(settings, base, reads=False, denoiser=Controlled(base.pipe.unet, controlnet)),
        read=base.states,
        read_identity=base.text_identity,
        write=lambda folder: _write(controlnet, folder),
        usage=f"controlnet = calotype.ControlNetModel.from_pretrained({settings.output.name!r})\n"
        f"pipe = calotype.{type(pipe).__name__}.from_pretrained({base.name!r}, controlnet=controlnet)\n"
        f'pipe("…", image=picture).images[0]',
        facts={"begun with": settings.controlnet_model_name_or_path or "the UNet's encoder"},
        extras=[control_pictures],
        pipe=pipe,
        told=[{"image": open_picture(path)} for path in shown],
    )
    return teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], say)


def _controlnet(settings: ControlNetSettings, base: Base) -> Any:
    """A ControlNet in float32. ``InputError`` for one that the UNet cannot have."""
    from calotype.models.controlnet import ControlNetModel

    if settings.controlnet_model_name_or_path is None:
        unet, embedding = base.pipe.unet, widths(base.pipe.vae_scale_factor)
        if unet.config.time_embedding_dim is not None:
            return controlnet_of(unet, embedding)
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=embedding)
    name = settings.controlnet_model_name_or_path
    found: Any = ControlNetModel.from_pretrained(name, torch_dtype=torch.float32)
    for entry in ("in_channels", "block_out_channels", "cross_attention_dim", "addition_embed_type"):
        mine, its = base.pipe.unet.config.get(entry), found.config.get(entry)
        if mine != its:
            raise InputError(
                f"The ControlNet {name} has {entry} {its} and the UNet of {base.name} has {mine}: it is for "
                f"another model."
            )
    return found


def widths(factor: int) -> tuple[int, ...]:
    """Those of the network that makes a picture as small as the latents, ``factor`` times."""
    halvings = factor.bit_length() - 1
    return (*_WIDTHS[: halvings + 1], *_WIDTHS[-1:] * (halvings + 1 - len(_WIDTHS)))


def _pipe(base: Base, controlnet: Any) -> Any:
    """The checkpoint's pipeline with the ControlNet, for samples."""
    import calotype

    kind = (
        calotype.StableDiffusionXLControlNetPipeline
        if base.xl
        else calotype.StableDiffusionControlNetPipeline
    )
    pipe = kind.from_pipe(base.pipe, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _write(controlnet: Any, folder: Path) -> Sequence[str]:
    """Write the ControlNet's files; its configuration comes last, which marks it as whole."""
    controlnet.save_pretrained(folder)
    return sorted((path.name for path in folder.iterdir()), key=lambda name: name == "config.json")
