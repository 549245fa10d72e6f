"""The UNet over videos that is trained: the base's, frozen, with motion modules and low-rank updates that are not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.adapters import model as adapters
from calotype.core.errors import InputError
from calotype.pipelines.bundled import LORA_FILE
from calotype.training.low_rank import add_trainable, make_trainable
from calotype.training.objectives import denoising_loss, diffuse, like, prediction_target
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_motion.settings import MotionSettings

FIRST = 0.1
"""How much, of its features, a motion module that was never trained adds to a frame."""
MODULES = "motion_modules."
UPDATES = "motion"
"""The name of the low-rank adapter."""


class Following(nn.Module):
    """Reads the way of the main object, from its middle, in the mean features behind each motion module.

    Which way something goes is a product of the word for it and the number of the frame, and where it is then a
    product of that and its place: nothing of the second is learned before the first, and nothing asks for the first
    but the second. This asks. It is not a part of the adapter.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        modules = [part for name, part in unet.named_modules() if re.search(r"motion_modules\.\d+$", name)]
        heads = [nn.Linear(part.norm.num_channels, 3) for part in modules]
        for head in heads:
            # ways are small: what random heads say would have to be unlearned first
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)
        self._seen: list[torch.Tensor] = []
        for part in modules:
            part.register_forward_hook(self._see)

    def forget(self) -> None:
        """Before a call that is to be read: the UNet may have been called by others since."""
        self._seen = []

    def _see(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self._seen.append(output)

    def forward(self, ways: torch.Tensor) -> torch.Tensor:
        """Squared error for ``ways`` [B, F, 3] of the call that the UNet has just answered, 1 for saying nothing."""
        seen, self._seen = self._seen, []
        asked = ways - ways.mean(1, keepdim=True)
        read = []
        for head, features in zip(self.heads, seen, strict=True):
            means = features.mean((2, 3)).float()
            read.append(head(nn.functional.layer_norm(means, means.shape[-1:])).unflatten(0, ways.shape[:2]))
        error = torch.stack([(each.float() - asked).square().mean() for each in read]).mean()
        return error / asked.square().mean().clamp_min(1e-3)


class ClipObjective(nn.Module):
    """Denoising loss of a UNet over clips whose prompt is read already.

    Some clips are faint, down to noise alone. The last timestep's noise leaves a fifteenth of the signal, in sixteen
    frames together enough to see which way something moves, so that little would be learned from the words for it.
    But a sampler begins with noise alone, where only the words say (Lin et al., "Common diffusion noise schedules and
    sample steps are flawed", 2023). Nearly all of a faint clip that cannot be known stays as it is from its first frame
    to its last and would drown the rest, so that what changes counts by itself.
    """

    unet: Any
    alphas_cumprod: torch.Tensor

    def __init__(
        self, unet: nn.Module, scheduler: Any, changing: float = 0.0, following: float = 0.0
    ) -> None:
        super().__init__()
        self.unet = unet
        self.following = Following(unet) if following > 0 else None
        self.prediction = scheduler.config.prediction_type
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)
        self._changing, self._following = changing, following

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``latents`` and ``noise`` [B, C, F, H, W], ``timesteps`` [B], ``states`` [B, L, D], ``signal`` [B] in [0, 1],
        ``ways`` [B, F, 3].

        ``signal`` is the share of the timestep's signal-to-noise ratio that a clip is seen with. ``changing`` is the
        squared error in what differs from the mean of all frames, of the faint clips, 1 for a still.
        """
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        level = self.alphas_cumprod[timesteps] * batch["signal"]
        if self.following is not None:
            self.following.forget()
        predicted = self.unet(diffuse(latents, noise, level), timesteps, batch["states"], return_dict=False)[
            0
        ]
        target = prediction_target(latents, noise, level, self.prediction)
        denoising = denoising_loss(predicted, target)
        faint = like((batch["signal"] < 1).float(), latents)
        moved = [each.float() - each.float().mean(2, keepdim=True) for each in (predicted - target, latents)]
        missed, there = ((faint * each.square()).mean() for each in moved)
        changing = missed / there.clamp_min(1e-3)
        told = {"denoising": denoising, "changing": changing}
        loss = denoising + self._changing * changing
        if self.following is not None:
            told["following"] = self.following(batch["ways"])
            loss = loss + self._following * told["following"]
        return {"loss": loss, **told}


def build_adapter(settings: MotionSettings, base: Base) -> Any:
    """A ``MotionAdapter`` for the base that changes next to nothing yet."""
    from calotype import MotionAdapter

    chosen, config = settings.adapter, base.unet.config
    channels = tuple(config.block_out_channels)
    adapter = MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=config.layers_per_block,
        motion_transformer_layers_per_block=chosen.depth,
        motion_num_attention_heads=tuple(max(1, width // chosen.head_width) for width in channels),
        motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=chosen.positions,
    )
    for name, parameter in adapter.named_parameters():
        if name.endswith(".proj_out.bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(".proj_out.weight"):
            # not zeros: a product of three factors that all begin with nothing has no slope to go down
            nn.init.normal_(parameter, std=FIRST / math.sqrt(parameter.shape[-1]))
    return adapter


def build_unet(settings: MotionSettings, base: Base, init: Path | None) -> Any:
    """The UNet over videos, with random motion or that of the folder ``init``; all else in it is frozen.

    Low-rank updates in that folder are gone on with as well; without them there are new ones.

    Raises ``InputError`` if there is no adapter in the folder.
    """
    from calotype import MotionAdapter, UNetMotionModel

    torch.manual_seed(settings.seed)
    if init is not None and not (init / "config.json").is_file():
        raise InputError(f"There is no motion adapter in {init}: name a folder with config.json.")
    adapter = (
        build_adapter(settings, base)
        if init is None
        else MotionAdapter.from_pretrained(init, torch_dtype=torch.float32)
    )
    unet = UNetMotionModel.from_unet2d(base.unet, adapter).to(base.device)
    unet.freeze_unet2d_params()
    if init is not None and (init / LORA_FILE).is_file():
        unet.load_lora_adapter(init, prefix="unet", adapter_name=UPDATES)
        make_trainable(unet, UPDATES)
        return unet
    paths = [
        name
        for name, part in unet.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
        and MODULES not in name
        and name.endswith(settings.adapter.updates)
    ]
    add_trainable(unet, UPDATES, paths, settings.adapter.rank)
    return unet


def write_adapter(unet: Any, settings: MotionSettings, base: Base, folder: Path) -> None:
    """Motion modules as a ``MotionAdapter`` and the low-rank updates beside it, both float16."""
    from calotype import AnimateDiffPipeline

    adapter = build_adapter(settings, base)
    weights = {name: value for name, value in unet.state_dict().items() if MODULES in name}
    adapter.load_state_dict({name: value.detach().cpu() for name, value in weights.items()})
    adapter.half().save_pretrained(folder)
    updates = adapters.tensors(unet, UPDATES)
    AnimateDiffPipeline.save_lora_weights(
        folder,
        unet_lora_layers={name: value.detach().half().cpu().contiguous() for name, value in updates.items()},
    )
