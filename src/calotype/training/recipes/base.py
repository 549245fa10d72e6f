"""What recipes begin with: the device, and a checkpoint whose parts are read from its folder and left as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.training.tokenizer import Encoder


@dataclass(frozen=True)
class Base:
    """A checkpoint of the pocket model in float32 on ``device``."""

    unet: Any
    vae: Any
    text_encoder: Any
    scheduler: Any
    encoder: Encoder
    tokenizer: Path
    """the folder of the tokenizer"""
    device: torch.device

    @property
    def length(self) -> int:
        """Tokens of a caption."""
        return int(self.text_encoder.config.max_position_embeddings)

    @property
    def pixels(self) -> int:
        """Side of a picture."""
        return int(self.vae.config.sample_size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    def ids(self, texts: list[str] | tuple[str, ...]) -> torch.Tensor:
        """Token ids of captions, int64 [B, L]."""
        rows = [self.encoder.encode(text, self.length) for text in texts]
        return torch.tensor(rows, device=self.device)

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The text encoder's states (B, L, channels) of token ids [B, L]."""
        states: torch.Tensor = self.text_encoder(input_ids=ids).last_hidden_state
        return states

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """Standardised latents of pictures [B, 3, H, W] in [0, 1]."""
        factor = self.vae.config.scaling_factor
        return self.vae.encode(pictures * 2 - 1).latent_dist.mean.float() * factor

    @torch.no_grad()
    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """The reverse of :meth:`latents`."""
        decoded = self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample
        return ((decoded + 1) / 2).clamp(0, 1)


def check_base(folder: Path) -> None:
    """``InputError`` if there is no checkpoint in the folder."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"There is no checkpoint in {folder}: name a folder with model_index.json.")


def load_base(folder: Path, device: torch.device) -> Base:
    """Read a checkpoint; nothing in it is trained."""
    from transformers import CLIPTextModel

    from calotype import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
        "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
    }
    for part in parts.values():
        part.to(device).eval().requires_grad_(False)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    words = folder / "tokenizer"
    return Base(**parts, scheduler=scheduler, encoder=Encoder(words), tokenizer=words, device=device)


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one. Raises ``InputError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"There is no device {name!r}; use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device here; use --device cpu or auto.")
    return device
