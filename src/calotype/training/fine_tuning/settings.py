"""What a fine-tuning is told, one option a field: the same words in Python and on the command line.

The names are those that users know from the training scripts of Diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

from calotype.core.errors import InputError

LORA_TARGETS = "to_k,to_q,to_v,to_out.0"
"""The layers of a UNet that get low-rank weights unless others are named."""
TEXT_TARGETS = "q_proj,k_proj,v_proj,out_proj"
"""Those of a text encoder."""
_ONE_SIZE = (
    "{} trains pictures of two folders together, which needs one size: leave aspect_ratio_buckets out."
)


def option(default: Any, text: str, least: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field with its help, its smallest value, or the values that it may have."""
    return field(default=default, metadata={"help": text, "least": least, "choices": choices})


def required(text: str) -> Any:
    """A field that has no default."""
    return field(metadata={"help": text, "least": None, "choices": ()})


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """What every training on a folder of pictures has in common; abstract."""

    operational: ClassVar[frozenset[str]] = frozenset(
        "output_dir resume device cache_dir report_every checkpointing_steps checkpoint_every validation_prompts "
        "validation_images "
        "validation_masks validation_steps num_validation_images validation_inference_steps validation_guidance_scale "
        "sample_batch_size cache_pictures".split()
    )
    """The options that change nothing in what is learned, so that a resumed run may have others."""

    output_dir: str = required("Folder for the results.")
    center_crop: bool = option(True, "Cut out the middle; otherwise a place that is drawn each time.")
    random_flip: bool = option(False, "Mirror half of the samples left to right.")

    train_batch_size: int = option(4, "Pictures in a batch.", 1)
    gradient_accumulation_steps: int = option(1, "Batches in a step.", 1)
    max_train_steps: int = option(1000, "Steps.", 1)
    learning_rate: float = option(1e-4, "Of AdamW.", 0.0)
    lr_scheduler: str = option("constant", "How the learning rate goes on.", choices=("constant", "cosine"))
    lr_warmup_steps: int = option(0, "Steps in which the learning rate rises from 0.", 0)
    adam_beta1: float = option(0.9, "Of AdamW.", 0.0)
    adam_beta2: float = option(0.999, "Of AdamW.", 0.0)
    adam_weight_decay: float = option(1e-2, "Of AdamW.", 0.0)
    max_grad_norm: float = option(1.0, "Longer gradients are shortened to this.", 0.0)
    use_ema: bool = option(False, "Write the moving average of the weights.")
    ema_decay: float = option(0.9999, "Of the moving average.", 0.0)
    mixed_precision: str = option("no", "Type to compute in.", choices=("no", "fp16", "bf16"))
    gradient_checkpointing: bool = option(False, "Save memory by computing activations twice.")
    fsdp: bool = option(False, "Spread the weights over the processes that a launcher started.")
    seed: int = option(0, "Of all that is drawn.", 0)

    validation_steps: int | None = option(None, "Steps between sheets; there is always one at the end.", 1)
    checkpointing_steps: int | None = option(500, "Steps between checkpoints.", 1)
    checkpoint_every: float | None = option(None, "Seconds between checkpoints.", 0.0)
    report_every: float = option(10.0, "Seconds between lines of the log; 0 is each step.", 0.0)
    resume: bool = option(False, "Go on from the checkpoint in the output folder.")
    device: str = option("auto", "auto, cpu or cuda.")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), entry.metadata["least"]
            if least is not None and value is not None and not (math.isfinite(value) and value >= least):
                raise InputError(f"{entry.name} must be at least {least}, not {value}.")
            choices = entry.metadata["choices"]
            if choices and value not in choices:
                raise InputError(f"{entry.name} can be {', '.join(choices)}, not {value!r}.")
        if self.fsdp and self.mixed_precision == "fp16":
            raise InputError(
                "fsdp goes with mixed_precision bf16 or no: the scale of fp16 losses is not spread."
            )
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} must be below 1, not {getattr(self, name)}.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Settings from options by name; ``InputError`` for one that there is none of or that is of another type."""
        own = {entry.name: entry for entry in fields(cls)}
        for name in options:
            if name not in own:
                near = get_close_matches(name, own, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(own)}."
                raise InputError(f"There is no option {name!r}{hint}")
        missing = [n for n, e in own.items() if e.default is MISSING and options.get(n) in (None, "")]
        if missing:
            raise InputError(f"The option {missing[0]!r} is needed: {own[missing[0]].metadata['help']}")
        return cls(**{name: _typed(own[name], value) for name, value in options.items()})

    @property
    def output(self) -> Path:
        """The folder for the results."""
        return Path(self.output_dir)

    @property
    def identity(self) -> dict[str, Any]:
        """The options that a resumed run must have again; how long it is, if that rules the learning rate."""
        leave = {*self.operational, *(["max_train_steps"] if self.lr_scheduler == "constant" else [])}
        return {name: value for name, value in asdict(self).items() if name not in leave}


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """What all ways of fine-tuning a text-to-image checkpoint have in common; abstract."""

    pretrained_model_name_or_path: str = required(
        "A checkpoint: a folder, a repository of the Hub, or 'pocket'."
    )

    resolution: int | None = option(
        None,
        "Side of the square that pictures are cut to, in pixels; by default what the model was made for.",
        8,
    )
    aspect_ratio_buckets: bool = option(
        False,
        "Keep the pictures' shapes: each is cut to the nearest of several sizes of about resolution² pixels.",
    )
    cache_latents: bool = option(True, "Encode each picture once; only where the middle is cut out.")
    cache_dir: str | None = option(None, "Folder to keep latents and read captions in; by default in memory.")
    proportion_empty_prompts: float = option(0.0, "How often a caption is left away, 0 to 1.", 0.0)

    snr_gamma: float | None = option(None, "Weigh noise levels by min-SNR with this gamma; 5 is usual.", 0.0)
    noise_offset: float = option(0.0, "Noise common to all pixels, for darker and brighter pictures.", 0.0)

    validation_prompts: tuple[str, ...] = option((), "Prompts of sample sheets; may be repeated.")
    num_validation_images: int = option(1, "Pictures of each of these prompts.", 1)
    validation_inference_steps: int = option(25, "Denoising steps of samples and class pictures.", 1)
    validation_guidance_scale: float = option(7.5, "Guidance of samples and class pictures.", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proportion_empty_prompts > 1:
            raise InputError(f"proportion_empty_prompts is from 0 to 1, not {self.proportion_empty_prompts}.")
        if self.cache_dir is not None and not (self.cache_latents and self.center_crop):
            raise InputError("cache_dir is for cached latents: it goes with cache_latents and center_crop.")


@dataclass(frozen=True, kw_only=True)
class CaptionedSettings(Settings):
    """What is learned from pictures with captions; abstract."""

    train_data_dir: str = required("Folder of pictures with captions.")
    caption_column: str = option("text", "The column of the captions in the folder's metadata.")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """What changes the models; abstract."""

    train_text_encoder: bool = option(False, "Train the text encoder too.")


@dataclass(frozen=True, kw_only=True)
class LowRankSettings(ModelSettings):
    """What changes them by low-rank weights; abstract."""

    rank: int = option(4, "Of the low-rank weights.", 1)
    lora_alpha: float | None = option(None, "They act by alpha / rank; by default alpha is the rank.", 0.0)
    target_modules: str = option(LORA_TARGETS, "Layers of the UNet that get them, separated by commas.")
    text_encoder_target_modules: str = option(TEXT_TARGETS, "Those of the text encoder.")


@dataclass(frozen=True, kw_only=True)
class TextToImageSettings(CaptionedSettings, ModelSettings):
    """All weights of the UNet."""

    learning_rate: float = option(1e-5, "Of AdamW.", 0.0)


@dataclass(frozen=True, kw_only=True)
class LoraSettings(CaptionedSettings, LowRankSettings):
    """Low-rank weights beside the model's, which stay as they are."""

    prior_data_dir: str | None = option(
        None,
        "Folder of captioned pictures of what shall not be forgotten, such as the checkpoint's own; each batch has as "
        "many of them beside.",
    )
    prior_loss_weight: float = option(1.0, "Weight of their loss.", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_data_dir is not None and self.aspect_ratio_buckets:
            raise InputError(_ONE_SIZE.format("prior_data_dir"))


@dataclass(frozen=True, kw_only=True)
class TextualInversionSettings(Settings):
    """The vectors of a new word; all else stays as it is."""

    train_data_dir: str = required("Folder of pictures of one thing or in one style.")
    placeholder_token: str = required("The new word, such as <my-cat>.")
    initializer_token: str = required("A word that the text encoder has, whose vector is the beginning.")
    num_vectors: int = option(1, "Vectors of the word.", 1)
    learnable_property: str = option("object", "What the pictures show.", choices=("object", "style"))
    learning_rate: float = option(5e-4, "Of AdamW.", 0.0)


@dataclass(frozen=True, kw_only=True)
class DreamBoothSettings(LowRankSettings):
    """One thing or person by a rare word, with pictures of its class beside, so that the class is not forgotten."""

    instance_data_dir: str = required("Folder of pictures of the thing.")
    instance_prompt: str = required("What is said of them, such as 'a photo of sks dog'.")
    with_prior_preservation: bool = option(False, "Train with pictures of the class beside.")
    class_data_dir: str | None = option(
        None, "Folder of pictures of the class; those that are lacking are made."
    )
    class_prompt: str | None = option(None, "What is said of them, such as 'a photo of a dog'.")
    num_class_images: int = option(100, "Pictures of the class.", 1)
    prior_loss_weight: float = option(1.0, "Weight of their loss.", 0.0)
    sample_batch_size: int = option(4, "Class pictures made at a time.", 1)
    lora: bool = option(False, "Train low-rank weights in place of all.")
    learning_rate: float = option(5e-6, "Of AdamW; 1e-4 is usual with --lora.", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.with_prior_preservation:
            for name in ("class_data_dir", "class_prompt"):
                if not getattr(self, name):
                    raise InputError(f"with_prior_preservation needs {name}.")
            if self.aspect_ratio_buckets:
                raise InputError(_ONE_SIZE.format("with_prior_preservation"))
        elif self.class_data_dir or self.class_prompt:
            raise InputError(
                "class_data_dir and class_prompt are for with_prior_preservation, which is not set."
            )


def _typed(entry: Any, value: Any) -> Any:
    """The value in the type of its field; ``InputError`` if it is of another."""
    kinds: dict[str, Any] = {
        "int": int,
        "float": (int, float),
        "str": (str, Path),
        "bool": bool,
        "tuple[str, ...]": (str, list, tuple),
    }
    wanted, _, optional = entry.type.partition(" | ")
    if value is None and optional:
        return None
    right = isinstance(value, kinds[wanted]) and (wanted == "bool" or not isinstance(value, bool))
    if not right:
        raise InputError(f"{entry.name} is of type {entry.type}, not {value!r}.")
    if wanted == "str":
        return str(value)
    if wanted == "float":
        return float(value)
    if wanted == "tuple[str, ...]":
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    return value
