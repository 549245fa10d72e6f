"""Guidance: which predictions a step needs, and how they combine into one.

A guidance is a value: the names of its branches, whose conditions the family stacks along the batch in that order,
and a pure function of the branches' predictions. Guidances add (``ClassifierFree(7.5) + PerturbedAttention(3)``), and
``Rescaled`` and ``Interval`` change another one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar

import torch

from calotype.core.errors import InputError

COND, UNCOND, IMAGE, PERTURBED = "cond", "uncond", "image", "perturbed"
"""The branches: told the prompt; told nothing; told the picture alone; told the prompt, its attention perturbed."""

TOLD_THE_PROMPT = (COND, PERTURBED)
"""The branches whose text is the prompt; that of the others is the negative prompt."""


@dataclass(frozen=True)
class Moment:
    """Where a run stands: the step's number, the count of steps, the timestep, and what tells its noise level σ."""

    index: int
    steps: int
    timestep: torch.Tensor
    noise: Callable[[], float] | None = None

    def within(self, start: float, end: float) -> bool:
        """Whether the whole step lies between two fractions of the way."""
        return self.index / self.steps >= start and (self.index + 1) / self.steps <= end


class Guidance(ABC):
    """How the predictions of several branches become one."""

    @property
    @abstractmethod
    def branches(self) -> tuple[str, ...]:
        """The names of the predictions that a step needs."""

    @abstractmethod
    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One prediction from those of ``branches``, in that order; all have the latents' shape."""

    def at(self, moment: Moment) -> Guidance:
        """What guides in this step; most guidances are the same in all."""
        return self

    @property
    def perturbed_layers(self) -> tuple[str, ...]:
        """The names, or patterns of names, of the attention layers that are perturbed in the branch of that name."""
        return ()

    def __add__(self, other: Guidance) -> Guidance:
        return total((self, other))


@dataclass(frozen=True)
class Unguided(Guidance):
    """The model's own prediction, once."""

    branches: ClassVar[tuple[str, ...]] = (COND,)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The prediction as it is."""
        (prediction,) = predictions
        return prediction


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """ε = ε_uncond + s·(ε_cond − ε_uncond) (arXiv:2207.12598), rescaled by φ (arXiv:2305.08891, eq. 15, 16)."""

    scale: float = 7.5
    rescale: float = 0.0

    branches: ClassVar[tuple[str, ...]] = (UNCOND, COND)

    def __post_init__(self) -> None:
        _finite("scale", self.scale)
        _fraction("rescale", self.rescale)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Extrapolate from the unconditional prediction through the conditional one."""
        uncond, cond = predictions
        guided = uncond + self.scale * (cond - uncond)
        return rescaled(guided, cond, self.rescale) if self.rescale > 0 else guided


@dataclass(frozen=True)
class FrameRamp(Guidance):
    """Classifier-free guidance of videos with a scale that goes evenly from the first frame's to the last's.

    ``axis`` is where the latents have their frames. arXiv:2311.15127, appendix D.
    """

    first: float = 1.0
    last: float = 3.0
    axis: int = 1

    branches: ClassVar[tuple[str, ...]] = (UNCOND, COND)

    def __post_init__(self) -> None:
        _finite("first", self.first)
        _finite("last", self.last)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Extrapolate each frame by its own scale; ``InputError`` for predictions that are no videos."""
        uncond, cond = predictions
        if cond.ndim != 5:
            raise InputError(
                f"FrameRamp guides videos; these latents have {cond.ndim} axes and no frames among them."
            )
        shape = [1] * cond.ndim
        shape[self.axis] = cond.shape[self.axis]
        scales = torch.linspace(self.first, self.last, cond.shape[self.axis], device=cond.device)
        return uncond + scales.to(cond.dtype).view(shape) * (cond - uncond)


@dataclass(frozen=True)
class TextAndImage(Guidance):
    """ε = ε(∅,∅) + s_I·(ε(i,∅) − ε(∅,∅)) + s_T·(ε(i,t) − ε(i,∅)) for a text t and a picture i (arXiv:2211.09800)."""

    scale: float = 7.5
    image_scale: float = 1.5

    branches: ClassVar[tuple[str, ...]] = (COND, IMAGE, UNCOND)

    def __post_init__(self) -> None:
        _finite("scale", self.scale)
        _finite("image_scale", self.image_scale)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """From nothing to the picture by ``image_scale``, and on to the text by ``scale``."""
        cond, image, uncond = predictions
        return uncond + self.image_scale * (image - uncond) + self.scale * (cond - image)


@dataclass(frozen=True)
class PerturbedAttention(Guidance):
    """ε = ε_cond + s·(ε_cond − ε̂), with ε̂ from identity in place of some self-attention (arXiv:2403.17377).

    ``layers`` are parts of the layers' names in the denoiser or regular expressions for them, such as "mid" or
    "up_blocks.1". With ``adaptive`` above 0 the scale falls with the timestep t, as max(0, s − adaptive·(1000 − t)).
    """

    scale: float | torch.Tensor = 3.0
    layers: str | Sequence[str] = ("mid",)
    adaptive: float = 0.0

    branches: ClassVar[tuple[str, ...]] = (COND, PERTURBED)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, torch.Tensor):
            _finite("scale", self.scale)
        _finite("adaptive", self.adaptive)
        object.__setattr__(self, "layers", layer_names(self.layers))

    @property
    def perturbed_layers(self) -> tuple[str, ...]:
        return tuple(self.layers)

    def at(self, moment: Moment) -> Guidance:
        """The guidance with the scale of this step, which stays on the timestep's device so that nothing waits."""
        if self.adaptive <= 0:
            return self
        scale = (self.scale - self.adaptive * (1000 - moment.timestep)).clamp(min=0)
        return replace(self, scale=scale, adaptive=0.0)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Away from the perturbed prediction."""
        cond, perturbed = predictions
        return cond + self.scale * (cond - perturbed)


@dataclass(frozen=True)
class Sum(Guidance):
    """What all of several guidances add to the prompt's prediction; made with ``+``."""

    terms: tuple[Guidance, ...]

    @property
    def branches(self) -> tuple[str, ...]:
        """Each branch of the terms once, in their order, and the perturbed one last."""
        names = dict.fromkeys(name for term in self.terms for name in term.branches)
        return tuple(sorted(names, key=lambda name: name == PERTURBED))

    @property
    def perturbed_layers(self) -> tuple[str, ...]:
        return next((term.perturbed_layers for term in self.terms if term.perturbed_layers), ())

    def at(self, moment: Moment) -> Guidance:
        return total([term.at(moment) for term in self.terms])

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The first term's prediction and how far the others go from the prompt's; summed in float32 or better."""
        exact = [one.float() if one.itemsize < 4 else one for one in predictions]
        named = dict(zip(self.branches, exact, strict=True))
        first, *others = (term.combine(tuple(named[name] for name in term.branches)) for term in self.terms)
        return sum((other - named[COND] for other in others), first).to(predictions[0].dtype)


@dataclass(frozen=True)
class Around(Guidance):
    """A guidance around another, with the branches of that; abstract."""

    guidance: Guidance

    @property
    def branches(self) -> tuple[str, ...]:
        return self.guidance.branches

    @property
    def perturbed_layers(self) -> tuple[str, ...]:
        return self.guidance.perturbed_layers


@dataclass(frozen=True)
class Rescaled(Around):
    """Any guidance with the contrast that it changed moved back by φ in [0, 1] (arXiv:2305.08891, eq. 15, 16)."""

    phi: float = 0.7

    def __post_init__(self) -> None:
        _fraction("phi", self.phi)

    def at(self, moment: Moment) -> Guidance:
        now = self.guidance.at(moment)
        return now if isinstance(now, Unguided) else Rescaled(now, self.phi)

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        cond = predictions[self.branches.index(COND)]
        return rescaled(self.guidance.combine(predictions), cond, self.phi)


@dataclass(frozen=True)
class Interval(Around):
    """Any guidance in a part of the way, from the fraction ``start`` of the steps to ``end`` (arXiv:2404.07724).

    In the other steps the denoiser predicts for the prompt alone, which saves the work of the other branches.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _fraction("start", self.start)
        _fraction("end", self.end)
        if self.start >= self.end:
            raise InputError(f"An interval cannot go from start={self.start} to end={self.end} of the steps.")

    def at(self, moment: Moment) -> Guidance:
        return self.guidance.at(moment) if moment.within(self.start, self.end) else Unguided()

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.guidance.combine(predictions)


@dataclass(frozen=True)
class NoiseInterval(Around):
    """Any guidance where the noise level is in (``low``, ``high``] (arXiv:2404.07724, section 3).

    The level σ is that of latents x + σ·n, as the paper has it: √((1 − ᾱ)/ᾱ) of models that keep the variance. In the
    other steps the denoiser predicts for the prompt alone, which saves the work of the other branches.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
                raise InputError(f"An interval of noise levels has numbers as ends, not {value!r}.")
        if not 0 <= self.low < self.high:
            raise InputError(
                f"An interval of noise levels cannot go from low={self.low} to high={self.high}."
            )

    def at(self, moment: Moment) -> Guidance:
        """The guidance, or none; ``InputError`` where the run's steps have no noise level that is known."""
        if moment.noise is None:
            raise InputError("This run does not tell the noise levels of its steps; use Interval in place.")
        return self.guidance.at(moment) if self.low < moment.noise() <= self.high else Unguided()

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.guidance.combine(predictions)


def total(guidances: Sequence[Guidance]) -> Guidance:
    """Several guidances as one; ``InputError`` where two perturb different layers."""
    flat = [term for one in guidances for term in (one.terms if isinstance(one, Sum) else (one,))]
    terms = tuple(term for term in flat if not isinstance(term, Unguided))
    if len({term.perturbed_layers for term in terms} - {()}) > 1:
        raise InputError("A sum of guidances has one perturbed branch; give all its terms the same layers.")
    return Sum(terms) if len(terms) > 1 else terms[0] if terms else Unguided()


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


def perturbed(base: Guidance, scale: float, layers: str | Sequence[str], adaptive: float = 0.0) -> Guidance:
    """``base`` with perturbed-attention guidance, or without where ``scale`` is 0 or there is no layer to perturb."""
    names = layer_names(layers)
    return base + PerturbedAttention(scale, names, adaptive) if scale > 0 and names else base


def layer_names(layers: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several as a tuple; ``InputError`` for what is no name."""
    names = (layers,) if isinstance(layers, str) else layers
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"The layers to perturb must be a name or a list of names, not {layers!r}.")
    return tuple(names)


def _finite(name: str, value: float) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} of a guidance must be a finite number, not {value!r}.")


def _fraction(name: str, value: float) -> None:
    _finite(name, value)
    if not 0 <= value <= 1:
        raise InputError(f"{name} of a guidance must be between 0 and 1, not {value!r}.")
