"""What a network says at a noise level, and family A, its transfer to another level.

With x = α·x0 + σ·ε every parametrisation is linear in the sample and the output, so the clean sample x̂0 and the noise ε̂
are pairs of coefficients. From level s to t

    x_t = α_t·x̂0 + √(σ_t² − ς²)·ε̂ + ς·z with ς = η·σ_t·√(1 − κ_t²/κ_s²), κ = σ/α

(Song et al., arXiv:2010.02502, equations 12 and 16): η = 0 is DDIM and, in other coordinates, Euler; η = 1 is DDPM's
posterior and ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.affine import Value, affine, evaluate

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = tuple(
    "fixed_small fixed_small_log fixed_large fixed_large_log learned learned_range".split()
)
"""DDPM's variances. Other solvers have no use for a fixed one, and leave out the channels of a learned one."""


class Level(NamedTuple):
    """A noise level: x = alpha·x0 + sigma·ε."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """λ = ln(α/σ); infinite where no noise is left, or no signal."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0 else -math.inf


def level_of_alpha_bar(alpha_bar: float) -> Level:
    """The variance-preserving level of ᾱ."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))


def exploding(kappa: float) -> Level:
    """The level whose samples are x0 + κ·ε."""
    return Level(1.0, kappa)


def preserving(kappa: float) -> Level:
    """The level whose samples are (x0 + κ·ε)/√(κ² + 1), as networks of discrete time want them."""
    alpha = 1.0 / math.sqrt(kappa**2 + 1.0)
    return Level(alpha, kappa * alpha)


def flow(sigma: float) -> Level:
    """The level whose samples are (1 − σ)·x0 + σ·ε, σ in [0, 1]."""
    return Level(1.0 - sigma, sigma)


class Coordinates(NamedTuple):
    """What a run's ``sigmas`` mean: the ``level`` of its samples, and ``data``, that of the data where networks take
    the sample divided by √(σ² + data²) (None: the sample itself)."""

    level: Callable[[float], Level]
    data: float | None = None


def transfer(s: Level, t: Level, eta: float = 0.0) -> tuple[float, float, float]:
    """Weights of x̂0, ε̂ and new noise at ``t``, coming from ``s``; raises ``InputError`` if that is more new noise than
    the level holds."""
    if eta == 0 or t.sigma == 0:
        return t.alpha, t.sigma, 0.0
    ratio = (t.sigma / t.alpha) * (s.alpha / s.sigma)
    fresh = eta * t.sigma * math.sqrt(max(1.0 - ratio**2, 0.0))
    left = t.sigma**2 - fresh**2
    if left < -1e-9 * t.sigma**2:
        raise InputError(
            f"The step would add new noise of {fresh:.4g} to a level that holds {t.sigma:.4g}: choose eta in [0, 1]."
        )
    return t.alpha, math.sqrt(max(left, 0.0)), fresh


def posterior(s: Level, t: Level, beta: float) -> tuple[float, float, float]:
    """Weights of x and x̂0 in DDPM's posterior mean, and its variance (Ho et al., arXiv:2006.11239, equation 7).

    β = 1 − ᾱ_s/ᾱ_t is given: it is rounded to float32 where the model was trained with float32.
    """
    left = (t.sigma / s.sigma) ** 2
    return math.sqrt(1.0 - beta) * left, t.alpha * beta / s.sigma**2, left * beta


class Linear(NamedTuple):
    """y = (x·sample + m·output)/divisor.

    The division comes last: x̂0 of an ε-prediction is a small difference of large terms divided by a small α, and
    where α = 0 (zero terminal SNR) it is infinite, which a clip brings back.
    """

    x: float
    m: float
    divisor: float = 1.0

    def of(self, sample: Value, output: Value, limits: Limits | None = None) -> Value:
        """Evaluate, within ``limits``."""
        bound = None if limits is None else limits.clip
        y = affine((self.x, sample), (self.m, output), divisor=self.divisor, bound=bound)
        if limits is None or limits.ratio is None:
            return y
        return threshold(evaluate(y)[0], limits.ratio, limits.largest)

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the sample and the output."""
        return divide(self.x, self.divisor), divide(self.m, self.divisor)


def divide(a: float, b: float) -> float:
    """a/b with IEEE's infinities in the place of an error."""
    return a / b if b else a * math.inf


def clean(kind: str, alpha: float, sigma: float) -> Linear:
    """x̂0: ε-prediction (DDPM), x0-prediction, v-prediction (Salimans & Ho, arXiv:2202.00512), flow (velocity)."""
    if kind == "epsilon":
        return Linear(1.0, -sigma, alpha)
    if kind == "v_prediction":
        return Linear(alpha, -sigma)
    if kind == "flow_prediction":
        return Linear(1.0, -sigma)
    return Linear(0.0, 1.0)


def noise(kind: str, alpha: float, sigma: float) -> Linear:
    """ε̂ of the same four parametrisations."""
    if kind == "epsilon":
        return Linear(0.0, 1.0)
    if kind == "v_prediction":
        return Linear(sigma, alpha)
    if kind == "flow_prediction":
        return Linear(1.0, 1.0 - sigma)
    return noise_from_clean(alpha, sigma)


def noise_from_clean(alpha: float, sigma: float) -> Linear:
    """ε̂ = (x − α·x̂0)/σ, with x̂0 in the place of the output."""
    return Linear(1.0, -alpha, sigma)


class Lines(NamedTuple):
    """x̂0, ε̂, and ε̂ by way of x̂0 (which may have been clipped)."""

    clean: Linear
    noise: Linear
    from_clean: Linear


def lines(kind: str, alpha: float, sigma: float) -> Lines:
    """All that is predicted at a level by a network of one of the ``PREDICTION_TYPES``, or of a flow's velocity."""
    return Lines(clean(kind, alpha, sigma), noise(kind, alpha, sigma), noise_from_clean(alpha, sigma))


def threshold(x0: Tensor, ratio: float, largest: float) -> Tensor:
    """Dynamic thresholding (Imagen, arXiv:2205.11487, section 2.3): clip each item at its quantile s, divide by s."""
    flat = x0.reshape(len(x0), -1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.float()
    s = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=1, max=largest)
    return (flat.clamp(-s, s) / s).reshape(x0.shape).to(x0.dtype)


class Limits(NamedTuple):
    """What is done to x̂0 after prediction: nothing, a clip to ±``clip``, or dynamic thresholding."""

    clip: float | None = None
    ratio: float | None = None
    largest: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any], options: Collection[str]) -> Limits:
        """What a configuration wants, of a class with these ``options``: an entry may have come along from another."""
        if config.get("thresholding") and "thresholding" in options:
            return cls(ratio=config["dynamic_thresholding_ratio"], largest=config["sample_max_value"])
        clips = config.get("clip_sample") and "clip_sample" in options
        return cls(clip=config.get("clip_sample_range", 1.0)) if clips else cls()

    @property
    def active(self) -> bool:
        """Whether x̂0 is changed at all."""
        return self != (None, None, 1.0)

    def apply(self, x0: Tensor) -> Tensor:
        """x̂0 within its limits."""
        if self.ratio is not None:
            return threshold(x0, self.ratio, self.largest)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
