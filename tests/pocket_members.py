"""Members of the pocket family with random weights: the folders that training leaves, made in a moment."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import calotype
from calotype.core.config import read_json
from calotype.pipelines.bundled import BUNDLED, LORA_FILE
from tests.tiny import randomise

WEIGHTS = BUNDLED["pocket"]
UNET = {
    name: value
    for name, value in read_json(WEIGHTS / "unet" / "config.json").items()
    if not name.startswith("_")
}
SMALL = {"block_out_channels": (32, 32, 64), "attention_head_dim": (2, 2, 4)}


def _unet(folder: Path, channels: int, **options: Any) -> None:
    model = calotype.UNet2DConditionModel(**{**UNET, **SMALL, "in_channels": channels, **options})
    randomise(model).half().save_pretrained(folder / "unet")


def _depth_estimator(folder: Path) -> None:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    randomise(DPTForDepthEstimation(config)).half().save_pretrained(folder / "depth_estimator")
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "feature_extractor")


def _controlnet(folder: Path) -> None:
    signature = inspect.signature(calotype.ControlNetModel.__init__).parameters
    config = {name: value for name, value in UNET.items() if name in signature}
    model = calotype.ControlNetModel(**config, conditioning_embedding_out_channels=(8, 16, 16))
    randomise(model).half().save_pretrained(folder / "controlnet")


def _low_rank(folder: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in calotype.UNet2DConditionModel.from_pretrained(WEIGHTS / "unet").state_dict().items():
        if name.endswith("to_q.weight"):
            layer = f"unet.{name.removesuffix('.weight')}"
            state[f"{layer}.lora_A.weight"] = 0.1 * torch.randn(4, value.shape[1], generator=generator)
            state[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(value.shape[0], 4, generator=generator)
    folder.mkdir(parents=True)
    save_file(state, folder / LORA_FILE)


def _unconditional(folder: Path) -> None:
    model = calotype.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    pipe = calotype.DDIMPipeline(unet=randomise(model).half(), scheduler=calotype.DDIMScheduler())
    pipe.save_pretrained(folder)


def _derived(folder: Path, name: str, **options: Any) -> None:
    """A part made of the checkpoint's UNet or autoencoder: in its file only what is not that one's."""
    from safetensors.torch import save_file

    kind: Any = {"unet": calotype.UNet2DConditionModel, "vae": calotype.AutoencoderKL}[name]
    shared = kind.from_pretrained(WEIGHTS / name)
    config = {key: value for key, value in shared.config.items() if not key.startswith("_")}
    model = kind.from_config({**config, **options})
    model.save_config(folder / name)
    theirs = {key: value.shape for key, value in shared.state_dict().items()}
    own = {
        key: value.half()
        for key, value in randomise(model).state_dict().items()
        if theirs.get(key) != value.shape or key.startswith(("conv_out", "decoder.conv_out"))
    }
    save_file(own, folder / name / "diffusion_pytorch_model.safetensors")


def _upscale(folder: Path) -> None:
    _derived(folder, "unet", in_channels=7, num_class_embeds=1000)
    _derived(folder, "vae", scaling_factor=0.08333)
    calotype.DDPMScheduler().save_pretrained(folder / "low_res_scheduler")


def _tiny_vae(folder: Path) -> None:
    model = calotype.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3,
        decoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=1.0,
    )
    randomise(model).half().save_pretrained(folder / "vae")


def _xl(folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_pretrained(WEIGHTS / "text_encoder", num_hidden_layers=5, projection_dim=16)
    encoder = randomise(CLIPTextModelWithProjection(config))
    encoder.save_pretrained(folder / "text_encoder_2")
    shared = set(CLIPTextModel.from_pretrained(WEIGHTS / "text_encoder").state_dict())
    own = {
        key if key.startswith("text_") else f"text_model.{key}": value.half()
        for key, value in encoder.state_dict().items()
        if key not in shared and key.removeprefix("text_model.") not in shared
    }
    save_file(own, folder / "text_encoder_2" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(WEIGHTS / "tokenizer", folder / "tokenizer_2")
    _derived(folder, "unet", cross_attention_dim=2 * 160, **_numbers(6))


def _numbers(count: int) -> dict[str, Any]:
    """Entries of a UNet that is told so many numbers beside the pooled text."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * count + 16,
    }


MAKERS: dict[str, Callable[[Path], None]] = {
    "pocket-inpaint": lambda folder: _unet(folder, 9),
    "pocket-depth": lambda folder: _unet(folder, 5),
    "pocket-depth-estimator": _depth_estimator,
    "pocket-controlnet-canny": _controlnet,
    "pocket-controlnet-depth": _controlnet,
    "pocket-controlnet-segmentation": _controlnet,
    "pocket-turbo": _low_rank,
    "pocket-lora-heart": _low_rank,
    "pocket-unconditional": _unconditional,
    "pocket-upscale": _upscale,
    "pocket-tiny-vae": _tiny_vae,
    "pocket-xl": _xl,
    "pocket-xl-refiner": lambda folder: _derived(folder, "unet", cross_attention_dim=160, **_numbers(5)),
}


def random_members(folder: Path) -> Path:
    """Write all members to the folder, each in one of its name."""
    for name, make in MAKERS.items():
        make(folder / name)
    return folder
