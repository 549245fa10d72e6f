"""What trainings of networks for a task of their own are told: few steps, control pictures, holes."""

from __future__ import annotations

from dataclasses import dataclass

from calotype.core.errors import InputError
from calotype.training.fine_tuning.settings import CaptionedSettings, option


@dataclass(frozen=True, kw_only=True)
class LcmSettings(CaptionedSettings):
    """A student that draws in a few steps what the checkpoint draws in many with guidance."""

    lora: bool = option(True, "Train low-rank weights; otherwise a whole UNet, which is told the guidance.")
    rank: int = option(64, "Of the low-rank weights.", 1)
    target_modules: str = option(
        "",
        "Layers of the UNet that get them, separated by commas; by default all that its blocks are made of.",
    )
    w_min: float = option(5.0, "The teacher's guidance is drawn from here; its scale is one more.", 0.0)
    w_max: float = option(15.0, "To here.", 0.0)
    num_ddim_timesteps: int = option(50, "Steps of the teacher that the student learns to skip.", 1)
    loss_type: str = option("huber", "Distance from the target.", choices=("huber", "l2"))
    huber_c: float = option(0.001, "Where the pseudo-Huber loss goes over from a parabola to a line.", 0.0)
    timestep_scaling_factor: float = option(10.0, "As LCMScheduler's timestep_scaling.", 0.0)
    unet_time_cond_proj_dim: int = option(256, "Width in which a whole UNet is told the guidance.", 2)
    target_decay: float = option(0.95, "Of the whole UNet's moving average, which is its target.", 0.0)
    validation_inference_steps: int = option(4, "Denoising steps of samples.", 1)
    validation_guidance_scale: float = option(
        1.0,
        "Guidance of samples: 1 with low-rank weights, which have it in them, otherwise what is told.",
        0.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_max < self.w_min:
            raise InputError(f"w_max must be at least w_min, {self.w_min}, not {self.w_max}.")
        if self.target_decay >= 1:
            raise InputError(f"target_decay must be below 1, not {self.target_decay}.")
        if self.huber_c <= 0:
            raise InputError(f"huber_c must be above 0, not {self.huber_c}.")
        if self.snr_gamma is not None:
            raise InputError("snr_gamma weighs the loss of denoising, which a distillation does not have.")


@dataclass(frozen=True, kw_only=True)
class ShownSettings(CaptionedSettings):
    """What is sampled from a prompt and pictures; abstract."""

    validation_images: tuple[str, ...] = option((), "Picture files, one for each validation prompt.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shown("validation_images")

    def check_shown(self, name: str) -> None:
        """``InputError`` unless there are as many of these as prompts."""
        if len(getattr(self, name)) != len(self.validation_prompts):
            raise InputError(
                f"Each of the {len(self.validation_prompts)} validation prompts needs one of {name}, of which there "
                f"are {len(getattr(self, name))}."
            )


@dataclass(frozen=True, kw_only=True)
class ControlNetSettings(ShownSettings):
    """A ControlNet for the checkpoint, which stays as it is."""

    controlnet_model_name_or_path: str | None = option(
        None, "A ControlNet to go on from; by default one is made of the UNet's encoder."
    )
    conditioning_image_column: str = option(
        "conditioning_image", "The column of the control pictures in the folder's metadata."
    )
    learning_rate: float = option(1e-5, "Of AdamW.", 0.0)


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings(ShownSettings):
    """A whole UNet that reads a mask and what is around it."""

    whole_mask: float = option(0.1, "How often all of a picture is masked, 0 to 1.", 0.0)
    validation_masks: tuple[str, ...] = option(
        (), "Mask files, one for each validation prompt; white is new."
    )
    learning_rate: float = option(1e-5, "Of AdamW.", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shown("validation_masks")
        if self.whole_mask > 1:
            raise InputError(f"whole_mask is from 0 to 1, not {self.whole_mask}.")
