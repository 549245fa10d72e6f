"""Coordinates: what a level of a run's ``sigmas`` means, and so how samples are noised and fed to a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from calotype.schedulers.transfer import Level


class Coordinates(Protocol):
    """The meaning of a number in ``sigmas``; ``scales_input`` says whether the network's input is another scaling."""

    scales_input: ClassVar[bool]

    def level(self, sigma: float) -> Level:
        """The level that the run's samples have: x = alpha·x0 + sigma·ε."""

    def preserving(self, sigma: float) -> Level:
        """The level that the network sees."""

    def input_scale(self, sigma: float) -> float:
        """What a sample is multiplied with to become the network's input."""


@dataclass(frozen=True)
class VarianceExploding:
    """σ = κ: samples are x0 + κ·ε; the network wants them variance preserving."""

    scales_input: ClassVar[bool] = True

    def level(self, sigma: float) -> Level:
        return Level(1.0, sigma)

    def preserving(self, sigma: float) -> Level:
        return VariancePreserving().level(sigma)

    def input_scale(self, sigma: float) -> float:
        return 1.0 / math.sqrt(sigma**2 + 1.0)


@dataclass(frozen=True)
class VariancePreserving:
    """σ = κ, but samples are (x0 + κ·ε)/√(κ² + 1), as the network wants them."""

    scales_input: ClassVar[bool] = False

    def level(self, sigma: float) -> Level:
        alpha = 1.0 / math.sqrt(sigma**2 + 1.0)
        return Level(alpha, sigma * alpha)

    preserving = level

    def input_scale(self, sigma: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Flow:
    """σ in [0, 1]: samples are (1 − σ)·x0 + σ·ε."""

    scales_input: ClassVar[bool] = False

    def level(self, sigma: float) -> Level:
        return Level(1.0 - sigma, sigma)

    preserving = level

    def input_scale(self, sigma: float) -> float:
        return 1.0


@dataclass(frozen=True)
class EDM:
    """σ of Karras et al. (arXiv:2206.00364): samples are x0 + σ·ε with data of standard deviation ``data``."""

    scales_input: ClassVar[bool] = True
    data: float

    def level(self, sigma: float) -> Level:
        return Level(1.0, sigma)

    preserving = level

    def input_scale(self, sigma: float) -> float:
        return 1.0 / math.sqrt(sigma**2 + self.data**2)
