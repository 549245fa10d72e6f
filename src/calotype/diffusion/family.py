"""What a model family is to the rest of the library: how it reads a prompt, calls its denoiser and shows its latents.

A family is a frozen value whose fields are a pipeline's components, in the order and with the defaults of the public
constructor. It is bound to the components anew for each call, so that replacing ``pipe.unet`` takes effect at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.guidance import COND, UNCOND, Guidance
from calotype.diffusion.rounds import Once, Rounds
from calotype.image_processor import VaeImageProcessor
from calotype.video_processor import VideoProcessor

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals


def component(default: Any = MISSING) -> Any:
    """A field that is a component of the pipeline: a model, tokenizer, scheduler or processor."""
    return field(default=default, metadata={"component": True, "recorded": True})


def option(default: Any) -> Any:
    """A field that is a plain value recorded in ``model_index.json``."""
    return field(default=default, metadata={"component": False, "recorded": True})


def setting(default: Any) -> Any:
    """A field that is a plain value of the pipeline object, an attribute that is not saved with it."""
    return field(default=default, metadata={"component": False, "recorded": False})


class Components:
    """Base of the frozen dataclasses whose fields are components and options of a pipeline; abstract."""

    @classmethod
    def components(cls) -> tuple[str, ...]:
        """The names of the fields that are components."""
        return tuple(f.name for f in fields(cls) if f.metadata["component"])  # type: ignore[arg-type]

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """The names of the fields that are attributes of the pipeline and in no file."""
        return tuple(f.name for f in fields(cls) if not f.metadata["recorded"])  # type: ignore[arg-type]

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The constructor's values after the family's own checks and repairs of old configurations."""
        return values

    @classmethod
    def bound(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """These components and options; a field ``x`` is taken from ``prefix_x`` where there is one, or else ``x``.

        A family that has ``prefix_x`` as a field of its own may do without: None is as if it was not there.
        """
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        absent = {name for name in names if name.startswith(f"{prefix}_") and values.get(name) is None}
        found = {}
        for name in names:
            for key in (f"{prefix}_{name}", name):
                if key in values and (key == name or key not in absent):
                    found[name] = values[key]
                    break
        return cls(**found)


class Family(Components, ABC):
    """Base of the families, which are frozen dataclasses; abstract."""

    scheduler: Any
    tensor_names: ClassVar[tuple[str, ...]] = ("latents",)
    """The tensors that a callback may ask for between steps."""
    beside: ClassVar[tuple[str, ...]] = ()
    """The arguments that a call takes beside the public signature."""

    @abstractmethod
    def subject(self, arguments: Mapping[str, Any]) -> Any:
        """The input group that says what to make and, as ``pictures``, how many."""

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse what the components cannot work with, before anything is computed; most work with anything."""

    @property
    def reads_hint(self) -> bool:
        """Whether the denoiser reads a control picture by itself, the argument ``hint``; most do not."""
        return False

    def rows(self, arguments: Mapping[str, Any]) -> int:
        """How many of the subject's ``pictures`` are for one and the same picture that the user gets; mostly 1."""
        return 1

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What height and width must divide by."""

    @abstractmethod
    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """The guidance that a call's arguments ask for."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of guidance that its denoiser can predict for, in any task."""
        return COND, UNCOND

    @abstractmethod
    def encode(self, call: Call) -> Conditions:
        """What the denoiser is told, with the guidance's branches stacked along the batch."""

    @property
    @abstractmethod
    def scale_factor(self) -> int:
        """Pixels a latent, along one side; 1 where the latents are the picture."""

    @property
    def picture_step(self) -> int:
        """What the sides of pictures are rounded down to."""
        return self.scale_factor

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of a picture's latents."""

    @property
    @abstractmethod
    def input_channels(self) -> int:
        """Channels that the denoiser reads: the latents' and what a task puts beside them."""

    def latent_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of the latents of so many pictures of this size in pixels."""
        return pictures, self.latent_channels, height // self.scale_factor, width // self.scale_factor

    def video_shape(self, shape: tuple[int, ...], frames: int) -> tuple[int, ...]:
        """The shape of the latents of videos whose frames have latents of this ``shape``."""
        return *shape[:2], frames, *shape[2:]

    @property
    def solver(self) -> Any:
        """What steps the latents in the loop: the scheduler, or the scheduler at work on each part of them."""
        return self.scheduler

    @property
    def rounds(self) -> Rounds:
        """How often a call samples; mostly once."""
        return Once()

    @property
    def video_processor(self) -> VideoProcessor:
        """Prepares videos: RGB in [-1, 1], in a size that the latents divide."""
        return VideoProcessor(
            vae_scale_factor=self.scale_factor, vae_latent_channels=self.latent_channels, do_convert_rgb=True
        )

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Prepares pictures: RGB in [-1, 1], in a size that the latents divide."""
        return VaeImageProcessor(
            vae_scale_factor=self.scale_factor, vae_latent_channels=self.latent_channels, do_convert_rgb=True
        )

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Prepares masks: one channel, 0 or 1."""
        return VaeImageProcessor(
            vae_scale_factor=self.scale_factor,
            do_normalize=False,
            do_binarize=True,
            do_convert_grayscale=True,
        )

    @abstractmethod
    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Latents of pictures in [-1, 1], shape (batch, channels, height, width)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type that latents are drawn in."""

    @abstractmethod
    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        """The denoiser's output for the stacked latents, with what the controls add inside it."""

    @abstractmethod
    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        """Pictures in [-1, 1], shape (batch, channels, height, width), from latents."""

    def precise(self) -> Self | None:
        """The family with its decoder in float32; None where it decodes in that already, or cannot."""
        return None

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """Pictures in [0, 1] after the safety check, and which of them it blanked; None where there is no check."""
        return images, None
