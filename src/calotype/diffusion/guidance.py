"""Guidance: which predictions a step needs, and how they combine into one.

A guidance is a value: the names of its branches, whose conditions the family stacks along the batch in that order,
and a pure function of the branches' predictions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch


class Guidance(ABC):
    """How the predictions of several branches become one."""

    branches: ClassVar[tuple[str, ...]]
    """The names of the predictions that a step needs."""

    @abstractmethod
    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One prediction from those of ``branches``, in that order; all have the latents' shape."""


@dataclass(frozen=True)
class Unguided(Guidance):
    """The model's own prediction, once."""

    branches: ClassVar[tuple[str, ...]] = ("cond",)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The prediction as it is."""
        (prediction,) = predictions
        return prediction


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """ε = ε_uncond + s·(ε_cond − ε_uncond) (arXiv:2207.12598), rescaled by φ (arXiv:2305.08891, eq. 15, 16)."""

    scale: float
    rescale: float = 0.0

    branches: ClassVar[tuple[str, ...]] = ("uncond", "cond")

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Extrapolate from the unconditional prediction through the conditional one."""
        uncond, cond = predictions
        guided = uncond + self.scale * (cond - uncond)
        return rescaled(guided, cond, self.rescale) if self.rescale > 0 else guided


@dataclass(frozen=True)
class TextAndImage(Guidance):
    """ε = ε(∅,∅) + s_I·(ε(i,∅) − ε(∅,∅)) + s_T·(ε(i,t) − ε(i,∅)) for a text t and a picture i (arXiv:2211.09800)."""

    scale: float
    image_scale: float

    branches: ClassVar[tuple[str, ...]] = ("cond", "image", "uncond")

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """From nothing to the picture by ``image_scale``, and on to the text by ``scale``."""
        cond, image, uncond = predictions
        return uncond + self.image_scale * (image - uncond) + self.scale * (cond - image)


def rescaled(guided: torch.Tensor, cond: torch.Tensor, phi: float) -> torch.Tensor:
    """``guided`` with its per-picture standard deviation moved by ``phi`` toward that of ``cond``."""
    axes = tuple(range(1, cond.ndim))
    ratio = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return phi * (guided * ratio) + (1 - phi) * guided


def classifier_free(scale: float, rescale: float = 0.0) -> Guidance:
    """Classifier-free guidance, or none where ``scale`` is 1 or less and the unconditional branch has no say."""
    return ClassifierFree(scale, rescale) if scale > 1 else Unguided()


def text_and_image(scale: float, image_scale: float) -> Guidance:
    """Guidance by text and picture, or none where either scale is too low to have a say."""
    return TextAndImage(scale, image_scale) if scale > 1 and image_scale >= 1 else Unguided()
