"""Consistency sampling of distilled rectified flows: predict x̂0, noise it anew, possibly at a larger size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import one_of
from calotype.schedulers.flow import FlowScheduler
from calotype.schedulers.outputs import SchedulerOutput as FlowMatchLCMSchedulerOutput

UPSCALE_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")


class FlowMatchLCMScheduler(FlowScheduler):
    """x' = (1 − σ')·x̂0 + σ'·z. With ``scale_factors``, one for each step but the last, x̂0 is first resized to that
    multiple of its first size (scale-wise distillation, Starodubcev et al., arXiv:2503.16397)."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        scale_factors: Sequence[float] | None = None,
        upscale_mode: str = "bicubic",
    ) -> None:
        self._prepare()
        self.set_scale_factors(scale_factors, upscale_mode)

    def set_scale_factors(self, scale_factors: Sequence[float] | None, upscale_mode: str) -> None:
        """Other sizes for the runs to come."""
        one_of("upscale_mode", upscale_mode, UPSCALE_MODES)
        self._factors, self._mode = tuple(scale_factors or ()), upscale_mode

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these levels or timesteps. ``mu`` shifts them (dynamic shifting)."""
        self._begin_schedule(num_inference_steps, device, sigmas, mu, timesteps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> FlowMatchLCMSchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on; draws noise at every step, the last included."""
        self._refuse_index(timestep)
        run, i = self._locate(timestep)
        if self._factors and len(self._factors) != len(run.plan.t) - 1:
            raise InputError(
                f"scale_factors has {len(self._factors)} entries for a run of {len(run.plan.t)} steps: give one for "
                f"each step but the last."
            )
        sigma, following = run.plan.kappa[i : i + 2]
        if run.stage is None:
            run.stage = model_output.shape[2:]  # the size of the first sample
        x0 = affine((1.0, sample.to(torch.float32)), (-sigma, model_output))
        if i < len(self._factors):
            size = [round(self._factors[i] * n) for n in run.stage]
            x0 = torch.nn.functional.interpolate(x0, size=size, mode=self._mode)
        z = randn_tensor(x0.shape, generator, x0.device, x0.dtype)
        prev_sample = affine((1 - following, x0), (following, z)).to(model_output.dtype)
        run.index = i + 1
        return FlowMatchLCMSchedulerOutput(prev_sample) if return_dict else (prev_sample,)
