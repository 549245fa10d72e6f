"""What a member of the family is: what it learns from, its loss, and the files that are its own."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family.settings import MemberSettings
from calotype.training.recipes.pocket_family.views import ViewSet

MEMBERS = {
    "pocket-depth-estimator": "depth_estimator:DEPTH_ESTIMATOR",
    "pocket-inpaint": "inpaint:INPAINT",
    "pocket-segmenter": "segmenter:SEGMENTER",
    "pocket-tiny-vae": "tiny_vae:TINY_VAE",
    "pocket-unconditional": "unconditional:UNCONDITIONAL",
    "pocket-turbo": "turbo:TURBO",
    "pocket-depth": "depth:DEPTH",
    "pocket-upscale": "upscale:UPSCALE",
    "pocket-xl": "xl:POCKET_XL",
    "pocket-controlnet-canny": "controlnets:CANNY",
    "pocket-controlnet-depth": "controlnets:DEPTH",
    "pocket-controlnet-segmentation": "controlnets:SEGMENTATION",
}
"""Name -> module in ``members`` and the member in it; each is imported when it is asked for."""

Sheet = tuple[torch.Tensor, list[str], int]
"""Pictures [N, 3, P, P] in [0, 1], a caption for each, and how many stand in a row."""


class Member(ABC):
    """One small model of the family; it holds nothing of a training."""

    name: str
    summary: str
    """A few sentences for its model card."""
    fields: tuple[str, ...]
    """What it needs of :data:`views.FIELDS`."""
    also: tuple[str, ...] = ()
    """Names of others that are trained with it, whose folders stand beside its own."""
    begins_with: str = "new weights"
    """What its training begins with, for its model card, where that is not an earlier one."""

    @abstractmethod
    def settings(self, preset: str) -> MemberSettings:
        """Its numbers, of the preset ``full`` or ``tiny``."""

    @abstractmethod
    def objective(self, settings: Any, base: Base) -> nn.Module:
        """What maps a batch to its loss, on the base's device; only what is trained requires a gradient."""

    @abstractmethod
    def batches(self, views: ViewSet, base: Base, settings: Any) -> Batches:
        """Batches drawn on the device; once all views are there the same number gives the same batch."""

    @abstractmethod
    def save(self, objective: Any, base: Base, folder: Path) -> None:
        """Write its own parts in float16, in the reference's layout."""

    @abstractmethod
    def restore(self, objective: Any, folder: Path) -> None:
        """Begin with what :meth:`save` wrote. ``InputError`` where it is not there or of other sizes."""

    @abstractmethod
    def sheet(self, objective: Any, base: Base, views: ViewSet) -> Sheet:
        """What it makes of some of ``views``, to be looked at while it learns: a row an example."""


def member_of(name: str | None) -> Member:
    """The member of a name. ``InputError`` lists them if there is none of this one."""
    if name not in MEMBERS:
        said = "No member is named" if name is None else f"There is no member {name!r}"
        raise InputError(f"{said} of pocket-family; there are {', '.join(MEMBERS)}.")
    module, _, attribute = MEMBERS[name].partition(":")
    member: Member = getattr(import_module(f"{__package__}.members.{module}"), attribute)
    return member


@torch.no_grad()
def write_half(model: Any, folder: Path) -> None:
    """Write a model's weights and configuration in float16; the model itself stays as it is."""
    # a copy, because the model is being trained
    half = copy.deepcopy(model).half().to(memory_format=torch.contiguous_format)
    half.cpu().save_pretrained(folder)


@torch.no_grad()
def read_into(model: Any, folder: Path, leave: str | None = None) -> None:
    """Fill a model with the weights of a folder. ``InputError`` where there are none, or of other sizes.

    Those that the model does not have are left out where their name matches ``leave``.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"There is no {type(model).__name__} in {folder}: name a folder with its config.json."
        )
    stored = type(model).from_pretrained(folder, torch_dtype=torch.float32).state_dict()
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if leave is not None:
        stored = {name: v for name, v in stored.items() if name in mine or not re.search(leave, name)}
    if mine != {name: tuple(value.shape) for name, value in stored.items()}:
        raise InputError(f"The {type(model).__name__} in {folder} is not of this preset's sizes.")
    model.load_state_dict(stored)
