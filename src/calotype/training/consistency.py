"""Latent consistency distillation (Luo et al., "Latent consistency models", arXiv:2310.04378): a student learns to
jump from any point of its teacher's guided path to the path's end.

Along N of the training steps the teacher and a DDIM step lead from z_n to ẑ_{n-1}; what the student makes of z_n shall
be what its target makes of ẑ_{n-1}. The target is the student itself, or its moving average.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from calotype.core.errors import InputError
from calotype.families.guided_unet import guidance_embedding
from calotype.training.objectives import Prediction, diffuse, like, predicted_noise, predicted_sample

LOSSES = ("huber", "l2")


@dataclass(frozen=True)
class Distillation:
    """``steps`` of the teacher are learned; ``timestep_scaling`` and ``sigma_data`` are those of ``LCMScheduler``.

    ``guidance`` is the teacher's scale as pipelines have it (w + 1 in the paper), where a batch brings none.
    """

    steps: int = 50
    guidance: float = 5.0
    loss: str = "huber"
    huber_c: float = 1e-3
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"The loss of a distillation can be {' or '.join(LOSSES)}, not {self.loss!r}.")
        if self.steps < 1:
            raise InputError(f"A teacher takes at least 1 step, not {self.steps}.")


def boundary_scalings(
    timesteps: torch.Tensor, timestep_scaling: float = 10.0, sigma_data: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out [B] of f = c_skip·z + c_out·x̂0: 1 and 0 at step 0, so that f is the identity there.

    Song et al., "Consistency models", arXiv:2303.01469, appendix C.
    """
    scaled = timesteps.float() * timestep_scaling
    spread = scaled.square() + sigma_data**2
    return sigma_data**2 / spread, scaled / spread.sqrt()


def consistency_loss(found: torch.Tensor, wanted: torch.Tensor, loss: str, c: float) -> torch.Tensor:
    """Mean of √(d² + c²) − c (pseudo-Huber, Song & Dhariwal, arXiv:2310.14189), or of d², in float32."""
    squared = (found.float() - wanted.float()).square()
    return squared.mean() if loss == "l2" else ((squared + c * c).sqrt() - c).mean()


def frozen_twin(unet: nn.Module) -> Any:
    """A model of the same parameters, the tensors themselves, in evaluation: what ``unet`` is without adapters.

    Make it before the adapters are put in.
    """
    shared = {id(p): p for p in unet.parameters()}
    twin = copy.deepcopy(unet, shared)
    return twin.eval()


class ConsistencyObjective(nn.Module):
    """Consistency loss of a student UNet against a frozen teacher, which may share the student's parameters.

    ``alphas_cumprod`` [T] is the teacher's noise table, ``empty`` what its text encoder makes of the empty prompt:
    ``states`` [1, L, D] and for SDXL ``text_embeds`` [1, P]. With ``target_decay`` the target is a moving average of
    the student's trained weights, which :meth:`follow` takes a step on. A student with ``time_cond_proj_dim`` is
    told the guidance.
    """

    unet: Any
    steps: torch.Tensor
    before: torch.Tensor
    alphas_cumprod: torch.Tensor

    def __init__(
        self,
        unet: nn.Module,
        teacher: nn.Module,
        alphas_cumprod: torch.Tensor,
        prediction: Prediction,
        empty: Mapping[str, torch.Tensor],
        chosen: Distillation | None = None,
        target_decay: float | None = None,
    ) -> None:
        super().__init__()
        self.chosen = chosen = chosen or Distillation()
        if chosen.steps > len(alphas_cumprod):
            raise InputError(f"{chosen.steps} steps of the teacher are more than its {len(alphas_cumprod)}.")
        self.unet = unet
        # no child: it is not trained, moved or saved with the student
        self.__dict__["teacher"] = teacher
        self.prediction = prediction
        self.target_decay = target_decay
        self.told_width: int | None = self.unet.config.get("time_cond_proj_dim")
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        stride = len(alphas_cumprod) // chosen.steps
        steps = torch.arange(1, chosen.steps + 1, device=alphas_cumprod.device) * stride - 1
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("before", torch.cat([steps.new_zeros(1), steps[:-1]]), persistent=False)
        self._empty = {name: f"empty_{name}" for name in empty}
        for name, value in empty.items():
            self.register_buffer(self._empty[name], value.detach(), persistent=False)
        self._followed = {}
        if target_decay is not None:
            if not 0 <= target_decay < 1:
                raise InputError(f"The decay of the target must be in [0, 1), not {target_decay}.")
            trained = [(name, p) for name, p in unet.named_parameters() if p.requires_grad]
            self._followed = {name: f"target_{number}" for number, (name, _) in enumerate(trained)}
            for name, parameter in trained:
                self.register_buffer(self._followed[name], parameter.detach().clone())

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``latents`` and ``noise`` [B, C, H, W], ``timesteps`` [B] in [0, T), ``states`` [B, L, D].

        Further, where there are any: ``text_embeds`` [B, P] and ``time_ids`` [B, 6], and ``guidance`` [B], the
        teacher's scale for each sample.
        """
        latents, noise = batch["latents"], batch["noise"]
        index = batch["timesteps"] * self.chosen.steps // len(self.alphas_cumprod)
        at, to = self.steps[index], self.before[index]
        scale = batch.get("guidance")
        if scale is None:
            scale = torch.full_like(latents[:, 0, 0, 0], self.chosen.guidance)
        noisy = diffuse(latents, noise, self.alphas_cumprod[at])
        told = {name: batch[name] for name in ("states", "text_embeds", "time_ids") if name in batch}
        # first with a gradient: autocast keeps its copies of the weights, and those made without have none
        found = self._jump(self._student, noisy, at, told, scale)
        with torch.no_grad():
            earlier = self._step_of_teacher(noisy, at, to, told, scale)
            target = self._student if self.target_decay is None else self._target
            wanted = self._jump(target, earlier, to, told, scale)
        return {"loss": consistency_loss(found, wanted, self.chosen.loss, self.chosen.huber_c)}

    @torch.no_grad()
    def follow(self) -> None:
        """Take the student's weights into the target; where that is the student itself there is nothing to do."""
        if self.target_decay is None:
            return
        live = dict(self.unet.named_parameters())
        own = [self.get_buffer(name) for name in self._followed.values()]
        torch._foreach_lerp_(own, [live[name].detach() for name in self._followed], 1 - self.target_decay)

    def _jump(
        self,
        network: Any,
        z: torch.Tensor,
        timesteps: torch.Tensor,
        told: Mapping[str, torch.Tensor],
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """The consistency function f(z, t)."""
        skip, out = boundary_scalings(timesteps, self.chosen.timestep_scaling, self.chosen.sigma_data)
        output = network(z, timesteps, told, scale)
        clean = predicted_sample(z, output.float(), self.alphas_cumprod[timesteps], self.prediction)
        return like(skip, z) * z + like(out, z) * clean

    def _step_of_teacher(
        self,
        z: torch.Tensor,
        at: torch.Tensor,
        to: torch.Tensor,
        told: Mapping[str, torch.Tensor],
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """ẑ at the steps ``to``: DDIM with classifier-free guidance."""
        both = {name: torch.cat([self._without(name, value), value]) for name, value in told.items()}
        output = _ask(self.__dict__["teacher"], torch.cat([z, z]), torch.cat([at, at]), both).float()
        empty, full = output.chunk(2)
        guided = empty + like(scale, z) * (full - empty)
        level = self.alphas_cumprod[at]
        clean = predicted_sample(z, guided, level, self.prediction)
        noise = predicted_noise(z, guided, level, self.prediction)
        return diffuse(clean, noise, self.alphas_cumprod[to])

    def _without(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What stands for ``value`` where there is no prompt; sizes are the same."""
        if name not in self._empty:
            return value
        return self.get_buffer(self._empty[name]).to(value.dtype).expand_as(value)

    def _student(
        self,
        z: torch.Tensor,
        timesteps: torch.Tensor,
        told: Mapping[str, torch.Tensor],
        scale: torch.Tensor,
    ) -> torch.Tensor:
        return _ask(self.unet, z, timesteps, told, self._told_scale(scale))

    def _target(
        self,
        z: torch.Tensor,
        timesteps: torch.Tensor,
        told: Mapping[str, torch.Tensor],
        scale: torch.Tensor,
    ) -> torch.Tensor:
        weights = {name: self.get_buffer(kept) for name, kept in self._followed.items()}
        return _ask(
            lambda *args, **more: functional_call(self.unet, weights, args, more),
            z,
            timesteps,
            told,
            self._told_scale(scale),
        )

    def _told_scale(self, scale: torch.Tensor) -> torch.Tensor | None:
        return None if self.told_width is None else guidance_embedding(scale, self.told_width)


def _ask(
    unet: Any,
    z: torch.Tensor,
    timesteps: torch.Tensor,
    told: Mapping[str, torch.Tensor],
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """A UNet's output, told what stands in ``told`` and, if it can be, the guidance."""
    beside = {name: told[name] for name in ("text_embeds", "time_ids") if name in told}
    more: dict[str, Any] = {"added_cond_kwargs": beside} if beside else {}
    if scale is not None:
        more["timestep_cond"] = scale
    output: torch.Tensor = unet(z, timesteps, told["states"], return_dict=False, **more)[0]
    return output
