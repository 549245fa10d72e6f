"""The pocket model's networks and scheduler, made from the recipe's settings with random weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from calotype.training.recipes.pocket.settings import PocketSettings

_BLOCKS = {True: ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), False: ("DownBlock2D", "UpBlock2D")}


def build_vae(settings: PocketSettings) -> Any:
    """An ``AutoencoderKL``."""
    from calotype import AutoencoderKL

    chosen = settings.vae
    stages = len(chosen.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=chosen.channels,
        layers_per_block=chosen.layers,
        latent_channels=chosen.latent_channels,
        norm_num_groups=chosen.groups,
        sample_size=settings.pixels,
        mid_block_add_attention=chosen.attention,
        force_upcast=False,
    )


def latent_shape(settings: PocketSettings) -> tuple[int, int, int]:
    """Channels, height and width of one picture's latents."""
    side = settings.pixels >> (len(settings.vae.channels) - 1)
    return settings.vae.latent_channels, side, side


def autocast_type(settings: PocketSettings, device: torch.device) -> torch.dtype | None:
    """The type in which the networks compute: bfloat16 on a GPU, and on a CPU if the settings say so."""
    return torch.bfloat16 if device.type == "cuda" or settings.on_cpu.bfloat16 else None


def attention_of(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU attention is spelled out: for sequences this short the fused kernel's gradient takes twice as long."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def build_unet(settings: PocketSettings) -> Any:
    """A ``UNet2DConditionModel`` that reads the text encoder's states."""
    from calotype import UNet2DConditionModel

    chosen = settings.unet
    down = tuple(_BLOCKS[attention][0] for attention in chosen.attention)
    up = tuple(_BLOCKS[attention][1] for attention in reversed(chosen.attention))
    channels, side, _ = latent_shape(settings)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=chosen.channels,
        layers_per_block=chosen.layers,
        # despite its name this is the number of heads, see the reference's UNet2DConditionModel
        attention_head_dim=tuple(max(1, width // chosen.head_width) for width in chosen.channels),
        cross_attention_dim=settings.text.hidden,
        norm_num_groups=chosen.groups,
        time_embedding_dim=chosen.time_width,
        use_linear_projection=True,
    )


def build_text_encoder(settings: PocketSettings, vocabulary: int) -> Any:
    """A ``transformers.CLIPTextModel``; start and end of text are the last two ids of the vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    chosen = settings.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=chosen.hidden,
            intermediate_size=4 * chosen.hidden,
            projection_dim=chosen.hidden,
            num_hidden_layers=chosen.layers,
            num_attention_heads=chosen.heads,
            max_position_embeddings=chosen.length,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def build_scheduler(settings: PocketSettings) -> Any:
    """The scheduler that ships with the model: DPM-Solver++ (2M) on a table like Stable Diffusion's, but noisier.

    At the last level 2e-4 of the signal's variance is left, not 5e-3, so that a picture can be as dark or as bright
    as its prompt asks (Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2023); it is not
    zero, for which many schedulers have no formula.
    """
    from calotype import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type=settings.unet.prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,
    )
