"""Guidance as values, for the argument ``guidance`` that every pipeline takes.

>>> from calotype.guidance import ClassifierFree, Interval, PerturbedAttention
>>> Interval(ClassifierFree(7.5), start=0.1, end=0.8) + PerturbedAttention(3.0, layers="mid")  # doctest: +SKIP
"""

from __future__ import annotations

from calotype.diffusion.guidance import (
    ClassifierFree,
    FrameRamp,
    Guidance,
    Interval,
    NoiseInterval,
    PerturbedAttention,
    Rescaled,
    TextAndImage,
    Unguided,
)

__all__ = [
    "ClassifierFree",
    "FrameRamp",
    "Guidance",
    "Interval",
    "NoiseInterval",
    "PerturbedAttention",
    "Rescaled",
    "TextAndImage",
    "Unguided",
]
