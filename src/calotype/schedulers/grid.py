"""Time grids: at which training steps and noise levels a run evaluates the network.

A grid is first *spaced* over the training steps; its noise levels may then be *converted* to another spacing between
the same ends. Everything here is float64; a grid's levels are cast to float32 once, when it is finished.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError

SPACINGS = ("linspace", "leading", "trailing")


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


Levels = TypeVar("Levels", np.ndarray, Tensor)


def karras(low: float, high: float, ramp: Levels, rho: float = 7.0) -> Levels:
    """Evenly spaced in σ^(1/ρ), ``ramp`` of the way down (Karras et al., arXiv:2206.00364, equation 5)."""
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def exponential(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    """Evenly spaced in ln σ."""
    return lu(math.log(low), math.log(high), ramp)


def lu(low: float, high: float, ramp: np.ndarray) -> np.ndarray:
    """The same between −λ, which are ln σ (Lu et al., arXiv:2206.00927, section 4)."""
    return np.exp(high + ramp * (low - high))


def beta(low: float, high: float, ramp: np.ndarray, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """σ at the quantiles of a Beta(a, b) distribution, dense at both ends (Lee et al., arXiv:2407.12173)."""
    return low + _beta_places(ramp.astype(np.float64).tobytes(), a, b) * (high - low)


@lru_cache(maxsize=32)
def _beta_places(ramp: bytes, a: float, b: float) -> np.ndarray:
    """The quantiles at a ramp's float64 values: slow to find, and the same in every run of as many steps."""
    return beta_quantile(1 - np.frombuffer(ramp), a, b)


CONVERSIONS: dict[str, Callable[..., np.ndarray]] = {
    "karras": karras,
    "exponential": exponential,
    "lu": lu,
    "beta": beta,
}


def converted(kind: str, low: float, high: float, steps: int) -> np.ndarray:
    """One of the ``CONVERSIONS`` between two levels, falling."""
    return CONVERSIONS[kind](low, high, np.linspace(0, 1, steps))


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Flow levels moved towards noise: s·σ/(1 + (s−1)·σ) (Esser et al., arXiv:2403.03206, section 5.3.2)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretched(sigmas: Levels, terminal: float) -> Levels:
    """Flow levels stretched away from 1 so that the last is ``terminal``; the level 1 alone stays."""
    return sigmas if sigmas[-1] == 1 else 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])


def beta_quantile(p: np.ndarray, a: float, b: float) -> np.ndarray:
    """x with I_x(a, b) = p: bisection in ln x, from the nearer end, on the regularised incomplete beta function."""
    p = np.asarray(p, dtype=np.float64)
    upper = p > 0.5
    target = np.where(upper, 1.0 - p, p)
    shape = np.where(upper, b, a), np.where(upper, a, b)
    low, high = np.full(p.shape, -745.0), np.zeros(p.shape)
    for _ in range(60):
        middle = (low + high) / 2
        below = _incomplete_beta(np.exp(middle), *shape) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = np.where(target <= 0, 0.0, np.exp((low + high) / 2))
    return np.where(upper, 1.0 - x, x)


def _incomplete_beta(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """I_x(a, b) by its continued fraction (modified Lentz; DLMF 8.17.22), mirrored where that converges slowly."""
    mirrored = x > (a + 1) / (a + b + 2)
    x, a, b = np.where(mirrored, 1.0 - x, x), np.where(mirrored, b, a), np.where(mirrored, a, b)
    x = np.maximum(x, 1e-320)
    scale = np.vectorize(lambda u, v: math.lgamma(u + v) - math.lgamma(u) - math.lgamma(v), otypes=[float])
    front = np.exp(scale(a[:1], b[:1]) + a * np.log(x) + b * np.log1p(-x)) / a
    c, d = np.ones_like(x), 1.0 / (1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 24):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + top * d)
            c = 1.0 + top / c
            value = value * d * c
    return np.where(mirrored, 1.0 - front * value, front * value)
