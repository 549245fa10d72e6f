"""What the trainings on pixels are told: an unconditional model from scratch, and an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from calotype.training.fine_tuning.settings import LearningSettings, option, required


@dataclass(frozen=True, kw_only=True)
class PixelSettings(LearningSettings):
    """What they have in common; abstract."""

    train_data_dir: str = required("Folder of pictures; captions are not read.")
    cache_pictures: bool = option(
        True, "Read each picture once and keep it in memory; only where the middle is cut out."
    )
    num_validation_images: int = option(4, "Pictures on a sample sheet; 0 makes none.", 0)


@dataclass(frozen=True, kw_only=True)
class UnconditionalSettings(PixelSettings):
    """A model of pictures alone, from random weights."""

    model_config_name_or_path: str | None = option(
        None,
        "Folder or repository with the config.json of a UNet2DModel to make; by default one of 114 million parameters.",
    )
    resolution: int = option(64, "Side of the square that pictures are cut to, in pixels.", 8)
    ddpm_num_steps: int = option(1000, "Levels of noise.", 1)
    ddpm_beta_schedule: str = option(
        "linear", "How noise grows.", choices=("linear", "scaled_linear", "squaredcos_cap_v2")
    )
    ddpm_num_inference_steps: int = option(50, "Denoising steps of samples, by DDIM.", 1)
    prediction_type: str = option(
        "epsilon", "What the model predicts.", choices=("epsilon", "v_prediction", "sample")
    )
    snr_gamma: float | None = option(None, "Weigh noise levels by min-SNR with this gamma; 5 is usual.", 0.0)
    train_batch_size: int = option(16, "Pictures in a batch.", 1)
    max_train_steps: int = option(10_000, "Steps.", 1)
    lr_scheduler: str = option("cosine", "How the learning rate goes on.", choices=("constant", "cosine"))
    lr_warmup_steps: int = option(500, "Steps in which the learning rate rises from 0.", 0)
    adam_beta1: float = option(0.95, "Of AdamW.", 0.0)
    adam_weight_decay: float = option(1e-6, "Of AdamW.", 0.0)


@dataclass(frozen=True, kw_only=True)
class VaeSettings(PixelSettings):
    """The autoencoder of a checkpoint."""

    pretrained_model_name_or_path: str = required(
        "A checkpoint: a folder, a repository of the Hub, or 'pocket'."
    )
    subfolder: str | None = option("vae", "Where in it the autoencoder is; '' for one that stands alone.")
    resolution: int | None = option(
        None,
        "Side of the square that pictures are cut to, in pixels; by default what the autoencoder was made for.",
        8,
    )
    decoder_only: bool = option(
        False, "Leave the encoder as it is, so that the latents, and what was trained on them, stay right."
    )
    kl_scale: float = option(1e-6, "Weight of the latents' distance from a normal distribution.", 0.0)
    sharpness: float = option(
        1.0, "Weight of the error of the pictures' differences beside that of pixels.", 0.0
    )
    color: float = option(0.0, "Weight of the squared error, that of small areas' means included.", 0.0)
    learning_rate: float = option(4.5e-6, "Of AdamW.", 0.0)
