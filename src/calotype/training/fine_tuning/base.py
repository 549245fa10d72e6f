"""The checkpoint that is taught: its parts, what it reads, and the noise that it was trained with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.families import clip_text
from calotype.training.objectives import PREDICTIONS, Prediction

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""The pipelines whose checkpoints can be taught."""


def _reads_text_alone(name: str, pipe: Any) -> Any:
    """The pipeline; ``InputError`` for one whose UNet reads more than latents."""
    taken, made = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if taken != made:
        raise InputError(
            f"The UNet of {name} takes {taken} channels and latents have {made}: it reads more than text, and "
            f"can't be fine-tuned with captions alone."
        )
    return pipe


_NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""What of a scheduler's configuration concerns the training."""


@dataclass(frozen=True)
class Base:
    """A pipeline in float32 on its device, nothing in it trained yet."""

    name: str
    pipe: Any
    device: torch.device

    @classmethod
    def load(
        cls,
        name: str,
        device: torch.device,
        kinds: Sequence[str] = KINDS,
        prepare: Callable[[str, Any], Any] = _reads_text_alone,
    ) -> Base:
        """Read a checkpoint. ``InputError`` for one of another kind than Stable Diffusion's, or these.

        ``prepare`` takes its name and pipeline, and refuses the pipeline or gives the one that is taught.
        """
        from calotype.pipelines.bundled import locate
        from calotype.pipelines.pipeline import DiffusionPipeline

        pipe: Any = DiffusionPipeline.from_pretrained(locate(name), torch_dtype=torch.float32)
        kind = type(pipe).__name__
        if kind not in kinds:
            raise InputError(f"{name} is a {kind}; checkpoints of {' and '.join(kinds)} can be fine-tuned.")
        pipe = prepare(name, pipe)
        pipe.set_progress_bar_config(disable=True)
        base = cls(name, pipe.to(device), device)
        if base.prediction not in PREDICTIONS:
            raise InputError(f"The scheduler of {name} predicts {base.prediction!r}, which can't be trained.")
        for part in base.models:
            part.requires_grad_(False)
        return base

    @property
    def xl(self) -> bool:
        """Whether it has two text encoders and is told sizes."""
        return hasattr(self.pipe, "text_encoder_2")

    @property
    def models(self) -> list[Any]:
        """All networks."""
        return [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]

    @cached_property
    def training_scheduler(self) -> Any:
        """The scheduler's noise, without its way of sampling."""
        from calotype.schedulers.ddpm import DDPMScheduler

        config = self.pipe.scheduler.config
        return DDPMScheduler(**{name: config[name] for name in _NOISE if name in config})

    @property
    def prediction(self) -> Prediction:
        """What the UNet predicts."""
        return self.training_scheduler.config.prediction_type

    @property
    def size_step(self) -> int:
        """What heights and widths are multiples of."""
        halvings = len(self.pipe.unet.config.block_out_channels) - 1
        return int(self.pipe.vae_scale_factor * 2**halvings)

    @property
    def resolution(self) -> int:
        """Side of the pictures that the model was made for."""
        return int(self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor)

    @cached_property
    def vae_identity(self) -> str:
        """A digest of what the autoencoder makes of pictures."""
        return _digest(self.pipe.vae)

    @cached_property
    def text_identity(self) -> str:
        """A digest of what the text encoders make of texts."""
        pipe = self.pipe
        return _digest(pipe.text_encoder) + (_digest(pipe.text_encoder_2) if self.xl else "")

    def lighten(self, dtype: torch.dtype | None) -> None:
        """Keep UNet and text encoders, which are not saved and not trained, in a smaller type."""
        if dtype is None:
            return
        for name in ("unet", "text_encoder", "text_encoder_2"):
            part = getattr(self.pipe, name, None)
            if part is not None:
                part.to(dtype)

    def states(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the UNet reads in texts, from the text encoders as they are."""
        if not self.xl:
            return {"states": self.pipe.encode_prompt(list(texts), self.device, 1, False)[0]}
        found = self.pipe.encode_prompt(
            list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"states": found[0], "text_embeds": found[2]}

    def ids(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the text encoder reads in texts, where it is trained."""
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        clip_text.warn_of_cut(tokenizer, texts, tokenizer.model_max_length)
        tokens = clip_text.tokenize(tokenizer, texts, tokenizer.model_max_length)
        read: Mapping[str, torch.Tensor] = {"input_ids": tokens.input_ids}
        if getattr(encoder.config, "use_attention_mask", False):
            return {**read, "attention_mask": tokens.attention_mask}
        return dict(read)


def _digest(module: Any) -> str:
    """Of a module's names, shapes and a few numbers of each tensor."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        numbers = [value.double().sum().item(), value.double().abs().sum().item()]
        digest.update(json.dumps([name, list(value.shape), numbers]).encode())
    return digest.hexdigest()[:16]
