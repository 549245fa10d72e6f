"""FreeInit: sampled again from noise that keeps the low frequencies of what was sampled (arXiv:2312.07537)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs.base import finite, positive
from calotype.diffusion.rounds import Rounds
from calotype.diffusion.timesteps import planned

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.tasks.task import Path, Start, Task

_VIDEO = (-3, -2, -1)
"""The axes of frames, height and width."""


def butterworth(square: torch.Tensor, stop: float, order: int) -> torch.Tensor:
    """1 / (1 + (d/D₀)²ⁿ), of the squared distance d² from frequency zero."""
    return 1 / (1 + (square / stop**2) ** order)


def gaussian(square: torch.Tensor, stop: float, order: int) -> torch.Tensor:
    """exp(−d²/2D₀²); there is no order."""
    return torch.exp(-square / (2 * stop**2))


def ideal(square: torch.Tensor, stop: float, order: int) -> torch.Tensor:
    """1 up to d² = 2D₀, the radius as it has always been measured here, and 0 beyond; there is no order."""
    return (square <= 2 * stop).to(square.dtype)


FILTERS: dict[str, Callable[[torch.Tensor, float, int], torch.Tensor]] = {
    "butterworth": butterworth,
    "gaussian": gaussian,
    "ideal": ideal,
}
"""What passes low frequencies, by name."""


@dataclass(frozen=True)
class FreeInit(Rounds):
    """Sample ``count`` times; each time but the first begins with low frequencies of the sampling before, noised.

    With ``fast`` the samplings before the last take fewer steps, in even growth. ``method`` (of :data:`FILTERS`, with
    ``order``) is the filter; ``spatial_stop`` and ``temporal_stop`` are where it ends, as fractions of the highest
    frequency. Raises ``InputError`` for what is no filter.
    """

    count: int = 3
    fast: bool = False
    method: str = "butterworth"
    order: int = 4
    spatial_stop: float = 0.25
    temporal_stop: float = 0.25

    def __post_init__(self) -> None:
        positive("num_iters", self.count, "samplings")
        positive("order", self.order, "orders of a filter")
        if self.method not in FILTERS:
            raise InputError(f"method must be one of {', '.join(FILTERS)}, not {self.method!r}.")
        for name in ("spatial_stop", "temporal_stop"):
            if finite(f"{name}_frequency", getattr(self, name)) < 0:
                raise InputError(f"{name}_frequency must be 0 or more, not {getattr(self, name)!r}.")

    def begin(
        self, number: int, call: Call, task: Task, path: Path, start: Start, latents: torch.Tensor
    ) -> tuple[Path, torch.Tensor]:
        """The call's way gone anew, and its beginning or the latents noised again with fresh high frequencies.

        Where the way begins with noise alone, what was sampled is noised as far as the last training step; otherwise
        as far as the way's first timestep, and the noise is what is mixed.
        """
        if self.fast:
            if call.steps.timesteps is not None or call.steps.sigmas is not None:
                raise InputError(
                    "FreeInit's fast sampling chooses how many steps to take; leave timesteps and sigmas out, or "
                    "enable_free_init without use_fast_sampling."
                )
            fewer = max(1, call.steps.num_inference_steps * (number + 1) // self.count)
            call = call.told({"num_inference_steps": fewer})
        again, is_whole = planned(call, task)
        if number == 0:
            return again, start.latents
        scheduler, dtype = call.scheduler, latents.dtype
        fresh = randn_tensor(latents.shape, call.noise.generator, call.device, torch.float32)
        passed = self.low_pass(latents.shape, latents.device)
        first = again.timesteps[:1]
        if not is_whole:
            noise = mixed(start.latents if start.noise is None else start.noise, fresh, passed)
            return again, scheduler.add_noise(latents.float(), noise, first.repeat(len(latents))).to(dtype)
        if not hasattr(scheduler, "sigmas"):  # others know the levels of their own timesteps alone
            first = torch.full_like(first, scheduler.config.num_train_timesteps - 1)
        unit = float(scheduler.init_noise_sigma)
        noised = scheduler.add_noise(latents, start.latents / unit, first.repeat(len(latents)))
        return again, mixed(noised, fresh * unit, passed).to(dtype)

    def low_pass(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """How much of each frequency passes, (frames, height, width) with frequency zero in the middle."""
        if not self.spatial_stop or not self.temporal_stop:
            return torch.zeros(shape[-3:], device=device)
        weights = (self.spatial_stop / self.temporal_stop, 1.0, 1.0)
        square = torch.zeros((), dtype=torch.float64, device=device)
        for axis, weight in zip(_VIDEO, weights, strict=True):
            size = shape[axis]
            places = 2 * torch.arange(size, dtype=torch.float64, device=device) / size - 1
            square = square + ((weight * places) ** 2).view(-1, *(1,) * (-1 - axis))
        return FILTERS[self.method](square, self.spatial_stop, self.order).float()


def mixed(low: torch.Tensor, high: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """Low frequencies of one tensor (…, frames, height, width) and high ones of another, in float32."""
    low, high = (
        torch.fft.fftshift(torch.fft.fftn(one.float(), dim=_VIDEO), dim=_VIDEO) for one in (low, high)
    )
    spectrum = torch.fft.ifftshift(low * passed + high * (1 - passed), dim=_VIDEO)
    return torch.fft.ifftn(spectrum, dim=_VIDEO).real
