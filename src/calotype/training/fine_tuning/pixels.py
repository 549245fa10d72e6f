"""Trainings on pixels that users call: an unconditional model from scratch, and the autoencoder of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.training.checkpoint import Position
from calotype.training.data.batches import Drawing, PictureSet
from calotype.training.data.folder import Example, check_readable, fingerprint, same_for_all
from calotype.training.data.pixels import PixelBatches
from calotype.training.fine_tuning.card import Subject
from calotype.training.fine_tuning.pixel_settings import PixelSettings, UnconditionalSettings, VaeSettings
from calotype.training.fine_tuning.run import Say, check_output, dtype_of, finish, learn
from calotype.training.gradients import precision
from calotype.training.loop import Inspection
from calotype.training.processes import current, join
from calotype.training.sheets import write_sheet
from calotype.training.unconditional import UnconditionalObjective
from calotype.training.vae import AutoencoderObjective, psnr

_BLOCKS = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
_WIDTHS = (128, 128, 256, 256, 512, 512)
_ATTENDING = 4
"""The stage of the model that is made unless a configuration is named, in which pixels attend to one another."""


def train_unconditional(*, say: Say = print, **options: Any) -> Path:
    """Train a ``UNet2DModel`` from random weights on pictures without captions; writes a ``DDPMPipeline``.

    ``options`` are the fields of :class:`UnconditionalSettings`; ``train_data_dir`` and ``output_dir`` are needed.
    Returns the output folder. Raises ``InputError`` for what cannot be, before anything is written.
    (https://arxiv.org/abs/2006.11239)
    """
    from calotype.pipelines.unconditional import DDPMPipeline
    from calotype.schedulers.ddpm import DDPMScheduler

    settings = UnconditionalSettings.of(options)
    examples, device = _begin(settings)
    torch.manual_seed(settings.seed)
    unet = _unet(settings).to(device)
    scheduler: Any = DDPMScheduler(
        num_train_timesteps=settings.ddpm_num_steps,
        beta_schedule=settings.ddpm_beta_schedule,
        prediction_type=settings.prediction_type,
    )
    pipe = DDPMPipeline(unet=unet, scheduler=scheduler)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    gamma = settings.snr_gamma
    if gamma is None and settings.prediction_type == "sample":
        gamma = math.inf  # the error in the noise, which an error in the sample is at the SNR as its weight
    side = settings.resolution
    batches = _batches(settings, examples, side, (3, side, side), device, settings.ddpm_num_steps)
    learn(
        settings,
        UnconditionalObjective(
            unet, scheduler.alphas_cumprod.to(device), scheduler.config.prediction_type, gamma
        ).to(device),
        batches,
        lambda folder: _written(pipe, folder, "model_index.json"),
        identity={"kind": "unconditional", "data": fingerprint(examples)},
        inspect=_drawn(settings, unet, scheduler, say) if settings.num_validation_images else None,
        say=say,
    )
    _card(
        settings,
        Subject("unconditional", None, "unconditional-image-generation", ("unconditional-image-generation",)),
        examples,
        f"pipe = calotype.DDIMPipeline.from_pretrained({settings.output.name!r})\npipe().images[0]",
        {"prediction": settings.prediction_type, "parameters": _count(unet)},
        say,
    )
    return settings.output


def train_vae(*, say: Say = print, **options: Any) -> Path:
    """Fine-tune the ``AutoencoderKL`` of a checkpoint on pictures; writes it as a folder of its own.

    ``options`` are the fields of :class:`VaeSettings`; ``pretrained_model_name_or_path``, ``train_data_dir`` and
    ``output_dir`` are needed. The loss has no adversary and no perceptual network: L1, the multi-scale error of
    differences and the KL divergence. The rest is as for :func:`train_unconditional`.
    """
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.pipelines.bundled import locate

    settings = VaeSettings.of(options)
    examples, device = _begin(settings)
    name = settings.pretrained_model_name_or_path
    vae: Any = AutoencoderKL.from_pretrained(
        locate(name), subfolder=settings.subfolder or None, torch_dtype=torch.float32
    )
    side = settings.resolution or int(vae.config.sample_size)
    halvings = len(vae.config.block_out_channels) - 1
    _check_side(side, halvings)
    torch.manual_seed(settings.seed)
    vae.to(device)
    for part in (vae.encoder, vae.quant_conv) if settings.decoder_only else ():
        if part is not None:
            part.requires_grad_(False)
    if settings.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    latent = side >> halvings
    batches = _batches(
        settings, examples, side, (int(vae.config.latent_channels), latent, latent), device, None
    )
    learn(
        settings,
        AutoencoderObjective(vae, settings.sharpness, settings.kl_scale, settings.color),
        batches,
        lambda folder: _written(vae, folder, "config.json"),
        identity={"kind": "vae", "data": fingerprint(examples)},
        inspect=_decoded(settings, vae, batches, say) if settings.num_validation_images else None,
        say=say,
    )
    _card(
        settings,
        Subject("vae", name, "image-to-image", ("autoencoder",)),
        examples,
        f"pipe = calotype.load({name!r})\n"
        f"pipe.vae = calotype.AutoencoderKL.from_pretrained({settings.output.name!r})",
        {"encoder": "as it was" if settings.decoder_only else "trained"},
        say,
    )
    return settings.output


def _begin(settings: PixelSettings) -> tuple[list[Example], torch.device]:
    """Check the output, the pictures and the device. Nothing is written."""
    from calotype.training.recipes.base import pick_device

    examples = same_for_all(settings.train_data_dir, [])
    check_output(settings)
    device = join(pick_device(settings.device))
    check_readable(example.path for example in examples)
    current().wait()
    return examples, device


def _unet(settings: UnconditionalSettings) -> Any:
    """The model with random weights. ``InputError`` for a resolution that it cannot have."""
    from calotype.models.unet_2d import UNet2DModel

    side, place = settings.resolution, settings.model_config_name_or_path
    if place is None:
        _check_side(side, len(_WIDTHS) - 1)
        (down, down_attending), (up, up_attending) = _BLOCKS
        stages = range(len(_WIDTHS))
        return UNet2DModel(
            sample_size=side,
            block_out_channels=_WIDTHS,
            down_block_types=tuple(down_attending if i == _ATTENDING else down for i in stages),
            up_block_types=tuple(up_attending if i == _ATTENDING else up for i in reversed(stages)),
        )
    config = UNet2DModel.load_config(place)
    wanted = {"sample_size": side, "in_channels": 3, "out_channels": 3}
    unet = UNet2DModel.from_config({**config, **wanted})
    _check_side(side, len(unet.config.block_out_channels) - 1)
    return unet


def _check_side(side: int, halvings: int) -> None:
    if side % 2**halvings:
        raise InputError(f"The resolution must be a multiple of {2**halvings}, not {side}.")


def _count(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _batches(
    settings: PixelSettings,
    examples: Sequence[Example],
    side: int,
    noise: tuple[int, ...],
    device: torch.device,
    timesteps: int | None,
) -> PixelBatches:
    pictures = PictureSet(
        tuple(examples), ((side, side),) * len(examples), settings.train_batch_size, settings.seed
    )
    return PixelBatches(
        pictures,
        noise,
        device,
        Drawing(not settings.center_crop, settings.random_flip),
        timesteps,
        settings.cache_pictures,
        settings.seed,
    )


def _written(result: Any, folder: Path, mark: str) -> list[str]:
    """Save into the folder; the names of what is there, that which marks it as whole last."""
    result.save_pretrained(folder)
    return sorted((path.name for path in folder.iterdir()), key=lambda name: name == mark)


def _sheet(settings: PixelSettings, position: Position) -> Path:
    return settings.output / "samples" / f"step-{position.step:06d}.png"


def _drawn(settings: UnconditionalSettings, unet: Any, scheduler: Any, say: Say) -> Inspection:
    """An inspection that draws pictures, always from the same noise."""
    from calotype.pipelines.unconditional import DDIMPipeline

    def inspect(position: Position) -> dict[str, float]:
        pipe: Any = DDIMPipeline(unet=unet, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        if settings.fsdp:
            pipe.acceleration = None
        count = settings.num_validation_images
        with precision(unet.device, dtype_of(settings)):
            made = pipe(
                batch_size=count,
                generator=[torch.Generator().manual_seed(settings.seed + i) for i in range(count)],
                num_inference_steps=min(settings.ddpm_num_inference_steps, settings.ddpm_num_steps),
                output_type="pt",
            )
        path = _sheet(settings, position)
        if not current().main:
            return {}
        write_sheet(path, made.images.float(), [""] * count, columns=min(4, count))
        say(f"samples at step {position.step:,}: {path}")
        return {}

    return inspect


def _decoded(settings: VaeSettings, vae: Any, batches: PixelBatches, say: Say) -> Inspection:
    """An inspection that shows some of the pictures beside what the autoencoder makes of them."""

    def inspect(position: Position) -> dict[str, float]:
        count = min(settings.num_validation_images, len(batches.pictures.examples))
        shown = torch.cat([batches.middle(index) for index in range(count)]).to(vae.device)
        with precision(vae.device, dtype_of(settings)):
            decoded = torch.cat(
                [vae.decode(vae.encode(one).latent_dist.mean).sample for one in shown.split(1)]
            )
            value = sum(psnr(vae, one) for one in shown.split(1)) / count
        if not current().main:
            return {}
        pairs = torch.stack([shown, decoded.float()], dim=1).flatten(0, 1)
        path = _sheet(settings, position)
        write_sheet(path, (pairs + 1) / 2, ["picture", "decoded"] * count, columns=2)
        say(f"samples at step {position.step:,}: {path}")
        return {"psnr": value}

    return inspect


def _card(
    settings: PixelSettings,
    subject: Subject,
    examples: Sequence[Example],
    usage: str,
    facts: dict[str, Any],
    say: Say,
) -> None:
    finish(settings, subject, len(examples), usage, facts, current().voice(say))
