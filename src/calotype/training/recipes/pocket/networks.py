"""The pocket model's networks and scheduler, made from the recipe's settings with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from calotype.core.files import replacing, write_text
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


class UNetShape(Protocol):
    """The widths of a UNet, and on which of its levels it attends."""

    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def attention(self) -> tuple[bool, ...]: ...
    @property
    def layers(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def time_width(self) -> int: ...


def build_unet(settings: PocketSettings) -> Any:
    """A ``UNet2DConditionModel`` that reads the text encoder's states."""
    return unet_of(settings.unet, latent_shape(settings), settings.text.hidden)


def unet_of(
    shape: UNetShape, latents: tuple[int, int, int], context: int, *, beside: int = 0, **entries: Any
) -> Any:
    """A ``UNet2DConditionModel`` for ``latents`` (channels, height, width) that reads states ``context`` wide.

    ``beside`` further channels stand beside the latents; ``entries`` are those of its configuration.
    """
    from calotype import UNet2DConditionModel

    channels, side, _ = latents
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels + beside,
        out_channels=channels,
        down_block_types=tuple(_BLOCKS[attention][0] for attention in shape.attention),
        up_block_types=tuple(_BLOCKS[attention][1] for attention in reversed(shape.attention)),
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        # despite its name this is the number of heads, see the reference's UNet2DConditionModel
        attention_head_dim=tuple(max(1, width // shape.head_width) for width in shape.channels),
        cross_attention_dim=context,
        norm_num_groups=shape.groups,
        time_embedding_dim=shape.time_width,
        use_linear_projection=True,
        **entries,
    )


def build_text_encoder(settings: PocketSettings, vocabulary: int) -> Any:
    """A ``transformers.CLIPTextModel``; start and end of text are the last two ids of the vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    chosen = settings.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=chosen.hidden,
            intermediate_size=chosen.inner,
            projection_dim=chosen.hidden,
            num_hidden_layers=chosen.layers,
            num_attention_heads=chosen.heads,
            max_position_embeddings=chosen.length,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def save_text_encoder(text_encoder: Any, folder: Path) -> None:
    """Write a ``CLIPTextModel`` in float16 under the key names that every release of transformers reads.

    Releases from 5 on write them without the prefix ``text_model.``, which earlier ones need.
    """
    prefix = "text_model."
    named = {
        key if key.startswith(prefix) else prefix + key: value
        for key, value in text_encoder.state_dict().items()
    }
    save_transformer(text_encoder, {k: v for k, v in named.items() if not k.endswith("position_ids")}, folder)


def save_transformer(model: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a model of transformers in float16, ``weights`` under the keys that they have here."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith("_") and key not in ("dtype", "torch_dtype", "transformers_version")
    }
    # transformers loads in the type that stands here, the other parts load in float32 unless told otherwise; the
    # older name of the entry is understood by newer releases too
    config |= {"architectures": [type(model).__name__], "torch_dtype": "float32"}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    half = {key: value.detach().half().cpu().contiguous() for key, value in weights.items()}
    with replacing(folder / "model.safetensors") as temporary:
        save_file(half, str(temporary), metadata={"format": "pt"})


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
