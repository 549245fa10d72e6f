"""Checkpoints in one file: written in the original layout by the inverse map, recognised by their keys, read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import calotype
from calotype.core.errors import InputError, ModelFilesError, UnknownClassError, WeightsError
from calotype.core.safetensors_header import TensorInfo
from calotype.single_file.keys import unet_names, vae_names
from calotype.single_file.recognise import controlnet_config, family_of, text_parts, unet_config, vae_config
from tests.tiny import VAE, randomise, stable_diffusion_parts, stable_diffusion_xl_parts

State = dict[str, torch.Tensor]


# -- the inverse: from a folder's networks to one file ---------------------------------------------------------


def original(model: torch.nn.Module, names: Callable[[Iterable[str]], dict[str, str]], prefix: str) -> State:
    """A network's weights under their original keys."""
    theirs = names(model.state_dict())
    return {prefix + theirs[key]: tensor for key, tensor in model.state_dict().items()}


def original_vae(model: torch.nn.Module, prefix: str = "first_stage_model.") -> State:
    """As :func:`original`; the attention's projections are convolutions there."""
    state = original(model, vae_names, prefix)
    return {k: v[:, :, None, None] if "attn_1" in k and v.ndim == 2 else v for k, v in state.items()}


def original_clip(model: torch.nn.Module, prefix: str) -> State:
    """A text encoder as transformers named it."""
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in model.state_dict().items()}


def original_open_clip(model: torch.nn.Module, prefix: str, more_layers: int = 0) -> State:
    """A text encoder as OpenCLIP names it, with layers behind the last one that are not used."""
    state = {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside["self_attn.out_proj"] = "attn.out_proj"
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.ones(()),
    }
    if "text_projection.weight" in state:
        result["text_projection"] = state["text_projection.weight"].T
    layers = model.config.num_hidden_layers
    for number in range(layers + more_layers):
        ours = f"encoder.layers.{min(number, layers - 1)}"
        theirs = f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            parts = [state[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            result[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(parts)
            for name, other in inside.items():
                result[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    return {prefix + key: tensor for key, tensor in result.items()}


TRAINING = {"alphas_cumprod": torch.ones(3), "model_ema.decay": torch.ones(())}
"""What training leaves in such files."""


def saved(state: State, path: Path) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return path


def whole(parts: dict[str, Any], kind: str) -> State:
    """A pipeline's checkpoint in one file."""
    state = {
        **original(parts["unet"], unet_names, "model.diffusion_model."),
        **original_vae(parts["vae"]),
        **TRAINING,
    }
    if kind.startswith("sd1"):
        return {**state, **original_clip(parts["text_encoder"], "cond_stage_model.transformer.")}
    if kind.startswith("sd2"):
        return {**state, **original_open_clip(parts["text_encoder"], "cond_stage_model.model.", 1)}
    place = 0
    if parts["text_encoder"] is not None:
        state |= original_clip(parts["text_encoder"], "conditioner.embedders.0.transformer.")
        place = 1
    return {**state, **original_open_clip(parts["text_encoder_2"], f"conditioner.embedders.{place}.model.")}


KINDS = {
    "sd1": ("StableDiffusionPipeline", {}),
    "sd1-inpainting": ("StableDiffusionInpaintPipeline", {"in_channels": 9}),
    "sd2": ("StableDiffusionPipeline", {"use_linear_projection": True}),
    "sd2-inpainting": ("StableDiffusionInpaintPipeline", {"use_linear_projection": True, "in_channels": 9}),
    "sdxl": ("StableDiffusionXLPipeline", {}),
    "sdxl-inpainting": ("StableDiffusionXLInpaintPipeline", {"in_channels": 9}),
    "sdxl-refiner": ("StableDiffusionXLImg2ImgPipeline", {}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, Path]]:
    """Kind -> the pipeline, its folder and its file; made once."""
    made: dict[str, tuple[Any, Path, Path]] = {}

    def get(kind: str) -> tuple[Any, Path, Path]:
        if kind not in made:
            place = tmp_path_factory.mktemp(kind)
            class_name, unet = KINDS[kind]
            if "xl" in kind:
                parts = stable_diffusion_xl_parts(calotype, place, refiner="refiner" in kind, unet=unet)
            else:
                parts = stable_diffusion_parts(calotype, place, unet=unet)
            pipe = getattr(calotype, class_name)(**parts)
            pipe.save_pretrained(place / "folder")
            made[kind] = pipe, place / "folder", saved(whole(parts, kind), place / "one.safetensors")
        return made[kind]

    return get


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_checkpoint_is_the_same_to_the_bit(kind: str, checkpoints: Any) -> None:
    pipe, folder, file = checkpoints(kind)
    read = calotype.DiffusionPipeline.from_single_file(file, config=folder)
    assert type(read) is type(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            assert equal(part, getattr(read, name)), name
            assert not getattr(read, name).training
        else:
            assert type(part) is type(getattr(read, name)), name
    if "xl" in kind:
        assert read.config.get("requires_aesthetics_score", False) == ("refiner" in kind)


def test_it_makes_the_same_picture(checkpoints: Any) -> None:
    pipe, folder, file = checkpoints("sd1")
    read = calotype.StableDiffusionPipeline.from_single_file(file, config=folder)
    images = []
    for one in (pipe, read):
        one.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        images.append(one("a red ball", num_inference_steps=2, generator=seed, output_type="pt").images)
    assert torch.equal(*images)


def test_the_one_door_takes_a_file(checkpoints: Any) -> None:
    _, folder, file = checkpoints("sd1")
    pipe = calotype.load(file, device="cpu", config=folder)
    pipe.set_progress_bar_config(disable=True)
    assert set(pipe.tasks) >= {"text-to-image", "image-to-image"}
    assert pipe("a red ball", num_inference_steps=1).images[0].size == (64, 64)


def test_types_and_components_of_ones_own(checkpoints: Any) -> None:
    pipe, folder, file = checkpoints("sd1")
    read = calotype.StableDiffusionPipeline.from_single_file(
        file, config=folder, torch_dtype=torch.float16, vae=pipe.vae, scheduler=None or pipe.scheduler
    )
    assert read.unet.dtype == read.text_encoder.dtype == torch.float16
    assert read.vae is pipe.vae


def test_a_pickle_is_read_without_running_it(checkpoints: Any, tmp_path: Path) -> None:
    pipe, folder, _ = checkpoints("sd1")
    parts = pipe.components
    torch.save({"state_dict": whole(parts, "sd1"), "epoch": 3}, tmp_path / "old.ckpt")
    read = calotype.StableDiffusionPipeline.from_single_file(tmp_path / "old.ckpt", config=folder)
    assert equal(read.unet, pipe.unet)


# -- single networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_unet_alone(prefix: str, checkpoints: Any, tmp_path: Path) -> None:
    pipe, folder, _ = checkpoints("sdxl")
    path = saved(original(pipe.unet, unet_names, prefix), tmp_path / "unet.safetensors")
    assert equal(
        calotype.UNet2DConditionModel.from_single_file(path, config=folder, subfolder="unet"), pipe.unet
    )


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_alone_needs_no_configuration(prefix: str, tmp_path: Path) -> None:
    model = randomise(
        calotype.AutoencoderKL(**{**VAE, "norm_num_groups": 32, "block_out_channels": (32, 64, 64, 64)})
    )
    path = saved({**original_vae(model, prefix), "loss.logvar": torch.ones(())}, tmp_path / "vae.safetensors")
    read = calotype.AutoencoderKL.from_single_file(path)
    assert equal(read, model)
    assert read.config.scaling_factor == 0.18215
    assert calotype.AutoencoderKL.from_single_file(path, scaling_factor=0.5).config.scaling_factor == 0.5


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_a_controlnet_alone(prefix: str, checkpoints: Any, tmp_path: Path) -> None:
    pipe, _, _ = checkpoints("sd1")
    model = randomise(
        calotype.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 24)), seed=5
    )
    path = saved(original(model, unet_names, prefix), tmp_path / "control.safetensors")
    model.save_pretrained(tmp_path / "folder")
    assert equal(calotype.ControlNetModel.from_single_file(path, config=tmp_path / "folder"), model)


# -- recognition -----------------------------------------------------------------------------------------------

SD1 = {
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "sample_size": 64,
}
SD2 = {
    **SD1,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
XL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
REFINER = {
    **XL,
    "cross_attention_dim": 1280,
    "block_out_channels": (384, 768, 1536, 1536),
    "attention_head_dim": (6, 12, 24, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}
PUBLISHED = {
    "sd1": SD1,
    "sd1-inpainting": {**SD1, "in_channels": 9},
    "sd2": {**SD2, "sample_size": 96},
    "sd2-inpainting": {**SD2, "sample_size": 96, "in_channels": 9},
    "sdxl": XL,
    "sdxl-inpainting": {**XL, "in_channels": 9},
    "sdxl-refiner": REFINER,
}
"""The U-Nets of the published families, as their config.json has them."""


def header(state: State) -> dict[str, TensorInfo]:
    return {key: TensorInfo(tuple(tensor.shape), "F16", 2 * tensor.numel()) for key, tensor in state.items()}


def on_meta(cls: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return cls(**config)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_families_are_told_from_names_and_shapes(kind: str) -> None:
    model = on_meta(calotype.UNet2DConditionModel, **PUBLISHED[kind])
    infos = header(original(model, unet_names, "model.diffusion_model."))
    assert family_of(infos, "here").name == kind
    told = calotype.UNet2DConditionModel.from_config
    with torch.device("meta"):
        again = told(unet_config(infos, "model.diffusion_model."))
    own = {k: v for k, v in model.config.items() if not k.startswith("_")}
    assert {k: v for k, v in again.config.items() if not k.startswith("_")} == own


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_published_controlnets_are_told(kind: str) -> None:
    config = {k: v for k, v in PUBLISHED[kind].items() if k not in ("up_block_types", "sample_size")}
    model = on_meta(calotype.ControlNetModel, **config)
    infos = header(original(model, unet_names, "control_model."))
    told = controlnet_config(infos, "control_model.")
    assert {key: told[key] for key in config} == config
    assert told["conditioning_embedding_out_channels"] == (16, 32, 96, 256)
    with torch.device("meta"):
        again = calotype.ControlNetModel.from_config(told)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("scale", [0.18215, 0.13025])
def test_the_published_autoencoder_is_told(scale: float) -> None:
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    infos = header(original_vae(on_meta(calotype.AutoencoderKL, **config)))
    told = vae_config(infos, "first_stage_model.")
    assert {key: told[key] for key in config} == config
    assert text_parts(infos) == {}


# -- refusals --------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_why(checkpoints: Any, tmp_path: Path) -> None:
    _, folder, file = checkpoints("sd1")
    read = calotype.StableDiffusionPipeline.from_single_file
    with pytest.raises(ModelFilesError, match="holds no tokenizer.*Pass config=, a folder with tokenizer/"):
        read(file)
    with pytest.raises(ModelFilesError, match="neither an existing file nor the address"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(ModelFilesError, match="is a folder, not a file"):
        read(folder)
    with pytest.raises(ModelFilesError, match="layout but in that of a model folder"):
        calotype.UNet2DConditionModel.from_single_file(folder / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelFilesError, match="has no vae in the original layout"):
        calotype.AutoencoderKL.from_single_file(saved({"a": torch.ones(1)}, tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="UNet2DModel is not read from single files"):
        calotype.UNet2DModel.from_single_file(file)
    with pytest.raises(InputError, match="has no argument and no component unett"):
        read(file, config=folder, unett=None)
    with pytest.raises(InputError, match="original_config"):
        read(file, original_config="v1.yaml")


def test_weights_that_are_missing_are_named_by_their_own_names(checkpoints: Any, tmp_path: Path) -> None:
    pipe, folder, _ = checkpoints("sd1")
    state = whole(pipe.components, "sd1")
    for key, words in (
        ("model.diffusion_model.out.2.bias", "conv_out.bias is missing"),
        ("first_stage_model.decoder.conv_out.bias", "decoder.conv_out.bias is missing"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "lacks 1 of CLIPTextModel's"),
    ):
        path = saved({k: v for k, v in state.items() if k != key}, tmp_path / "less.safetensors")
        with pytest.raises(WeightsError, match=words):
            calotype.StableDiffusionPipeline.from_single_file(path, config=folder)
    path = saved({**state, "model.diffusion_model.extra": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match=r"model\.diffusion_model\.extra is not part of the model"):
        calotype.StableDiffusionPipeline.from_single_file(path, config=folder)


def test_an_address_of_the_hub_is_looked_up_there() -> None:
    with pytest.raises(
        ModelFilesError, match=r"x/y\.safetensors of 'owner/model' at revision 'main' is not in"
    ):
        calotype.StableDiffusionPipeline.from_single_file(
            "https://huggingface.co/owner/model/blob/main/x/y.safetensors"
        )
    assert issubclass(UnknownClassError, ValueError)
