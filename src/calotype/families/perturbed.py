"""Stable Diffusion and Stable Diffusion XL with perturbed-attention guidance (arXiv:2403.17377)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calotype.diffusion.family import Family, setting
from calotype.diffusion.guidance import UNCOND, Guidance, Rescaled, layer_names, perturbed
from calotype.diffusion.inputs import Guide, Perturbed
from calotype.families.stable_diffusion import StableDiffusion, StableDiffusionWithControlNet
from calotype.families.stable_diffusion_xl import (
    StableDiffusionXL,
    StableDiffusionXLFromImage,
    StableDiffusionXLFromImageWithControlNet,
    StableDiffusionXLWithControlNet,
)


class PerturbedFamily(Family):
    """A family whose pipelines know which layers to perturb; abstract."""

    pag_applied_layers: str | list[str]

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """As without, and one layer's name becomes a list of names."""
        layers = list(layer_names(values["pag_applied_layers"]))
        return {**super().prepared(values), "pag_applied_layers": layers}

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """As without, and away from the perturbed prediction; the contrast is restored after both."""
        asked, rescale = Perturbed.of(arguments), Guide.of(arguments).guidance_rescale
        if asked.pag_scale <= 0 or not self.pag_applied_layers:
            return super().guidance(arguments)  # type: ignore[safe-super]  # of the family that this is mixed into
        plain = super().guidance({**arguments, "guidance_rescale": 0.0})  # type: ignore[safe-super]
        both = perturbed(plain, asked.pag_scale, self.pag_applied_layers, asked.pag_adaptive_scale)
        return Rescaled(both, rescale) if rescale > 0 and UNCOND in both.branches else both


@dataclass(frozen=True)
class StableDiffusionPAG(PerturbedFamily, StableDiffusion):
    """Stable Diffusion."""

    pag_applied_layers: str | list[str] = setting("mid")


@dataclass(frozen=True)
class StableDiffusionWithControlNetPAG(PerturbedFamily, StableDiffusionWithControlNet):
    """Stable Diffusion with ControlNets."""

    pag_applied_layers: str | list[str] = setting("mid")


@dataclass(frozen=True)
class StableDiffusionXLPAG(PerturbedFamily, StableDiffusionXL):
    """Stable Diffusion XL."""

    pag_applied_layers: str | list[str] = setting("mid")


@dataclass(frozen=True)
class StableDiffusionXLFromImagePAG(PerturbedFamily, StableDiffusionXLFromImage):
    """Stable Diffusion XL in the tasks that start from a picture."""

    pag_applied_layers: str | list[str] = setting("mid")


@dataclass(frozen=True)
class StableDiffusionXLWithControlNetPAG(PerturbedFamily, StableDiffusionXLWithControlNet):
    """Stable Diffusion XL with ControlNets."""

    pag_applied_layers: str | list[str] = setting("mid")


@dataclass(frozen=True)
class StableDiffusionXLFromImageWithControlNetPAG(PerturbedFamily, StableDiffusionXLFromImageWithControlNet):
    """Stable Diffusion XL with ControlNets in the tasks that start from a picture."""

    pag_applied_layers: str | list[str] = setting("mid")
