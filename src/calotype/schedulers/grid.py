"""Time grids: at which training steps and noise levels a run evaluates the network.

A grid is first *spaced* over the training steps; its noise levels may then be *converted* to another spacing between
the same ends. Everything here is float64; a grid's levels are cast to float32 once, when it is finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calotype.core.errors import InputError

SPACINGS = ("linspace", "leading", "trailing")
CONVERSIONS = ("karras", "exponential", "beta")


@dataclass(frozen=True, eq=False)
class Grid:
    """Descending training steps, and the noise levels of the run including the one that it ends on (float32)."""

    timesteps: np.ndarray
    sigmas: np.ndarray


def spaced(
    spacing: str, steps: int, total: int, offset: int = 0, *, last: int | None = None, extra: int = 0
) -> np.ndarray:
    """``steps`` descending training steps out of ``total``, float64 and unrounded for ``linspace``.

    ``last`` ends the range before ``total``. ``extra`` = 1 is the DPM family's convention: one point more is spaced
    and the one at zero is dropped. (Lin et al., arXiv:2305.08891, table 2.) Raises ``InputError`` if the steps
    would repeat.
    """
    last = total if last is None else last
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + extra)[::-1][:steps].copy()
    if spacing == "leading":
        ratio = last // (steps + extra)
        if ratio == 0:
            raise InputError(
                f"num_inference_steps={steps} is too many for timestep_spacing='leading' over {last} training steps: "
                f"give at most {last - extra}, or another timestep_spacing."
            )
        return (np.arange(steps + extra) * ratio)[::-1][:steps].astype(np.float64) + offset
    if steps > total:
        raise InputError(
            f"num_inference_steps={steps} is more than the {total} training steps that timestep_spacing='trailing' "
            f"divides: give at most {total}."
        )
    # a step that does not divide evenly can leave one point too many, at -1
    return np.arange(last, 0, -total / steps).round()[:steps] - 1


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ), from ``high`` down to ``low`` (Karras et al., arXiv:2206.00364, equation 5)."""
    ramp = np.linspace(0, 1, steps)
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Evenly spaced in ln σ."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta(low: float, high: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """σ at the quantiles of a Beta(a, b) distribution, dense at both ends (Lee et al., arXiv:2407.12173)."""
    at = 1 - np.linspace(0, 1, steps)
    return np.array([low + beta_quantile(p, a, b) * (high - low) for p in at])


def lu(low: float, high: float, steps: int) -> np.ndarray:
    """Evenly spaced in λ between the log levels ``low`` and ``high``, as σ (Lu et al., arXiv:2206.00927, section 4)."""
    return np.exp(np.linspace(high, low, steps))


def converted(kind: str, low: float, high: float, steps: int) -> np.ndarray:
    """One of the ``CONVERSIONS`` between two levels."""
    return {"karras": karras, "exponential": exponential, "beta": beta}[kind](low, high, steps)


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Flow levels moved towards noise: s·σ/(1 + (s−1)·σ) (Esser et al., arXiv:2403.03206, section 5.3.2)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection on the regularised incomplete beta function."""
    if p <= 0 or p >= 1:
        return float(min(max(p, 0), 1))
    if p > 0.5:
        return 1.0 - beta_quantile(1.0 - p, b, a)
    low, high = -745.0, 0.0  # in ln x: quantiles near zero need relative precision
    for _ in range(64):
        middle = (low + high) / 2
        if _incomplete_beta(math.exp(middle), a, b) < p:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction (modified Lentz; DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(min(max(x, 0), 1))
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny, c, d = 1e-300, 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d or tiny)
    value = d
    for m in range(1, 300):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + top * d) or tiny)
            c = (1.0 + top / c) or tiny
            value *= d * c
        if abs(d * c - 1.0) < 1e-16:
            break
    return front * value / a
