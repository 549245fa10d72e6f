"""The objective of a latent text-to-image model: its text encoder learns with it, is frozen, or has read already."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.guidance import ClassifierFree
from calotype.diffusion.loop import State, denoise
from calotype.training.objectives import (
    Prediction,
    denoising_loss,
    diffuse,
    min_snr_weight,
    prediction_target,
)


class TextToImageObjective(nn.Module):
    """Denoising loss of a UNet that reads a text encoder's last hidden states.

    ``alphas_cumprod`` [T] is the noise table of the scheduler that the model is made for. ``min_snr_gamma`` weighs
    the noise levels; ``None`` leaves them alike. Without a ``text_encoder`` batches have its states instead of ids.
    """

    unet: Any
    text_encoder: Any
    alphas_cumprod: torch.Tensor

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module | None,
        alphas_cumprod: torch.Tensor,
        prediction: Prediction = "v_prediction",
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.prediction = prediction
        self.min_snr_gamma = min_snr_gamma
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``latents`` and ``noise`` [B, C, H, W], ``timesteps`` [B], ``input_ids`` [B, L] or ``states`` [B, L, D].

        Further, where there are any: ``attention_mask`` [B, L] for the text encoder; ``text_embeds`` [B, P] and
        ``time_ids`` [B, 6], which the UNet is told beside the states, ``class_labels`` [B] and ``controlnet_cond``
        [B, 3, fH, fW]; ``beside`` [B, C', H, W], channels that the UNet reads after the noisy latents; ``weights`` [B]
        of the samples and ``emphasis`` [B, 1, H, W], the weight of each place; ``target`` [B, C, H, W], a teacher's
        prediction that is to be matched in place of what the noise and the latents say.
        """
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        level = self.alphas_cumprod[timesteps]
        states = batch.get("states")
        if states is None:
            told = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
            states = self.text_encoder(**told).last_hidden_state
        more: dict[str, Any] = {
            name: batch[name] for name in ("class_labels", "controlnet_cond") if name in batch
        }
        added = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
        if added:
            more["added_cond_kwargs"] = added
        noisy = diffuse(latents, noise, level)
        if "beside" in batch:
            noisy = torch.cat([noisy, batch["beside"]], dim=1)
        predicted = self.unet(noisy, timesteps, states, return_dict=False, **more)[0]
        target = batch.get("target")
        if target is None:
            target = prediction_target(latents, noise, level, self.prediction)
        weight = batch.get("weights")
        if self.min_snr_gamma is not None:
            by_level = min_snr_weight(level, self.min_snr_gamma, self.prediction)
            weight = by_level if weight is None else weight * by_level
        return {"loss": denoising_loss(predicted, target, weight, batch.get("emphasis"))}


@dataclass(frozen=True)
class Told(Conditions):
    """The text encoder's states (2·batch, tokens, channels), those of the empty prompt first."""

    states: torch.Tensor


@torch.no_grad()
def sample_latents(
    unet: Any,
    text_encoder: Any,
    scheduler: Any,
    input_ids: torch.Tensor,
    empty_ids: torch.Tensor,
    shape: Sequence[int],
    *,
    steps: int,
    guidance: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Latents for tokenised prompts [B, L] by classifier-free guidance, to look at a model while it trains.

    ``scheduler`` is any with ``set_timesteps``, ``scale_model_input`` and ``step``; ``empty_ids`` [1, L] is the
    empty prompt. All noise is of ``generator``.
    """
    device = input_ids.device
    both = torch.cat([empty_ids.expand_as(input_ids), input_ids])
    states = text_encoder(input_ids=both).last_hidden_state
    scheduler.set_timesteps(steps, device=device)
    noise = torch.randn((len(input_ids), *shape), generator=generator, device=generator.device).to(device)
    latents = noise * scheduler.init_noise_sigma

    def predict(index: int, x: torch.Tensor, timestep: torch.Tensor, state: State) -> torch.Tensor:
        return unet(x, timestep, state.conditions.tensors()["states"], return_dict=False)[0].float()

    start = State(latents, Told(states), ClassifierFree(guidance))
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return denoise(
        start, scheduler.timesteps, scheduler=scheduler, predict=predict, step_arguments=draws
    ).latents
