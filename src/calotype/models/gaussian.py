"""The distribution over latents that a variational encoder predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor

_ALL_BUT_BATCH = (1, 2, 3)


class DiagonalGaussianDistribution:
    """N(mean, diag(var)) with mean and log-variance stacked along dimension 1 of ``parameters``.

    The log-variance is clamped to [-30, 20]. With ``deterministic`` the variance is zero.
    """

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.var = self.std = torch.zeros_like(self.mean)
        else:
            self.var, self.std = self.logvar.exp(), (self.logvar / 2).exp()

    def sample(self, generator: Generators = None) -> torch.Tensor:
        """mean + std * noise, with noise from ``generator`` (or one generator for each item of the batch)."""
        noise = randn_tensor(
            self.mean.shape, generator, device=self.parameters.device, dtype=self.parameters.dtype
        )
        return self.mean + self.std * noise

    def mode(self) -> torch.Tensor:
        """The most likely value, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """KL(self ‖ other) in nats for each item of the batch; ``other`` is N(0, 1) if not given."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            divergence = self.mean.square() + self.var - 1 - self.logvar
        else:
            divergence = (self.mean - other.mean).square() / other.var + self.var / other.var
            divergence = divergence - 1 - self.logvar + other.logvar
        return divergence.sum(_ALL_BUT_BATCH) / 2

    def nll(self, sample: torch.Tensor, dims: Sequence[int] = _ALL_BUT_BATCH) -> torch.Tensor:
        """-log p(sample) in nats, summed over ``dims``."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        surprise = math.log(2 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return surprise.sum(tuple(dims)) / 2


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """``latent_dist``: the distribution that images were encoded into."""

    latent_dist: DiagonalGaussianDistribution
