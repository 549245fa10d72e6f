"""Coordinates: what a level of a run's ``sigmas`` means, and so how samples are noised and fed to a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from calotype.schedulers.transfer import Level


class Coordinates(NamedTuple):
    """``level``: that of the run's samples, x = alpha·x0 + sigma·ε; ``preserving``: that of the network's input;
    ``data``: the input is the sample divided by √(σ² + data²), or where it is None the sample itself."""

    level: Callable[[float], Level]
    preserving: Callable[[float], Level]
    data: float | None = None

    def input_scale(self, sigma: float) -> float:
        """What a sample is multiplied with to become the network's input."""
        return 1.0 if self.data is None else 1.0 / math.sqrt(sigma**2 + self.data**2)


def _exploding(sigma: float) -> Level:
    return Level(1.0, sigma)


def _preserving(sigma: float) -> Level:
    alpha = 1.0 / math.sqrt(sigma**2 + 1.0)
    return Level(alpha, sigma * alpha)


def _mixing(sigma: float) -> Level:
    return Level(1.0 - sigma, sigma)


VARIANCE_EXPLODING = Coordinates(_exploding, _preserving, 1.0)
"""σ = κ: samples are x0 + κ·ε; the network wants them variance preserving."""

VARIANCE_PRESERVING = Coordinates(_preserving, _preserving)
"""σ = κ, but samples are (x0 + κ·ε)/√(κ² + 1), as the network wants them."""

FLOW = Coordinates(_mixing, _mixing)
"""σ in [0, 1]: samples are (1 − σ)·x0 + σ·ε."""

edm = partial(Coordinates, _exploding, _exploding)
"""σ of Karras et al. (arXiv:2206.00364): samples are x0 + σ·ε with data of standard deviation ``data``."""
