"""Which files of a repository a pipeline needs, on listings as those of released models."""

from __future__ import annotations

import pytest

from calotype.core.errors import ModelFilesError
from calotype.core.selection import needed_files, select_files

SD15_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "requires_safety_checker": True,
}
SD15 = [
    ".gitattributes",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/config.json",
    "safety_checker/model.fp16.safetensors",
    "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin",
    "safety_checker/pytorch_model.fp16.bin",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-inference.yaml",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
SD15_SETTINGS = {
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
}

SDXL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
}
SDXL = [
    "01.png",
    "LICENSE.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder_2/config.json",
    "text_encoder_2/flax_model.msgpack",
    "text_encoder_2/model.fp16.safetensors",
    "text_encoder_2/model.onnx",
    "text_encoder_2/model.onnx_data",
    "text_encoder_2/model.safetensors",
    "text_encoder_2/openvino_model.bin",
    "text_encoder_2/openvino_model.xml",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/model.onnx",
    "unet/model.onnx_data",
    "unet/openvino_model.bin",
    "unet/openvino_model.xml",
    "vae/config.json",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/config.json",
    "vae_decoder/model.onnx",
    "vae_encoder/model.onnx",
]


@pytest.mark.parametrize(
    ("variant", "use_safetensors", "middle", "ending", "stem"),
    [
        (None, None, "", "safetensors", "model"),
        (None, True, "", "safetensors", "model"),
        ("fp16", None, ".fp16", "safetensors", "model"),
        (None, False, "", "bin", "pytorch_model"),
        ("fp16", False, ".fp16", "bin", "pytorch_model"),
    ],
)
def test_stable_diffusion_1_5(variant, use_safetensors, middle: str, ending: str, stem: str) -> None:
    files = needed_files(SD15, SD15_INDEX, variant, use_safetensors)
    assert set(files) == SD15_SETTINGS | {
        f"safety_checker/{stem}{middle}.{ending}",
        f"text_encoder/{stem}{middle}.{ending}",
        f"unet/diffusion_pytorch_model{middle}.{ending}",
        f"vae/diffusion_pytorch_model{middle}.{ending}",
    }


def test_a_variant_of_one_component_only() -> None:
    selection = select_files(SD15, SD15_INDEX, "non_ema")
    assert "unet/diffusion_pytorch_model.non_ema.safetensors" in selection.files
    assert "unet/diffusion_pytorch_model.safetensors" not in selection.files
    assert "vae/diffusion_pytorch_model.safetensors" in selection.files
    assert selection.variants == {
        "unet": "non_ema",
        "vae": None,
        "text_encoder": None,
        "safety_checker": None,
    }


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_stable_diffusion_xl(variant: str | None) -> None:
    files = needed_files(SDXL, SDXL_INDEX, variant)
    weights = [name for name in files if not name.endswith((".json", ".txt"))]
    middle = f".{variant}" if variant else ""
    assert weights == [
        f"text_encoder/model{middle}.safetensors",
        f"text_encoder_2/model{middle}.safetensors",
        f"unet/diffusion_pytorch_model{middle}.safetensors",
        f"vae/diffusion_pytorch_model{middle}.safetensors",
    ]
    assert not any(name.startswith(("vae_", "vae_1_0")) for name in files)
    assert "tokenizer_2/merges.txt" in files


def test_components_that_the_caller_brings_are_not_needed() -> None:
    files = needed_files(SDXL, SDXL_INDEX, skip=("text_encoder_2", "unet"))
    assert not any(name.startswith(("text_encoder_2/", "unet/")) for name in files)
    assert any(name.startswith("text_encoder/") for name in files)


def test_sharded_weights_with_their_index() -> None:
    index = {"transformer": ["diffusers", "SD3Transformer2DModel"], "text_encoder": ["transformers", "T5"]}
    shards = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    late = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    text = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    everything = [
        *shards,
        *late,
        *text,
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.safetensors.fp16.index.json",
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model.safetensors",
    ]
    assert set(needed_files(everything, index)) == {
        "model_index.json",
        *shards,
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder/model.safetensors",
    }
    assert set(needed_files(everything, index, "fp16")) == {
        "model_index.json",
        *late,
        *text,
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.fp16.index.json",
        "text_encoder/model.safetensors.index.fp16.json",
    }


def test_several_controlnets_in_one_component() -> None:
    index = {"controlnet": ["diffusers", "MultiControlNetModel"]}
    names = [f"controlnet{i}/diffusion_pytorch_model.safetensors" for i in ("", "_1", "_2")]
    assert set(needed_files([*names, "controlnet_old/x.json"], index)) == {"model_index.json", *names}


def test_refusals() -> None:
    with pytest.raises(ModelFilesError, match=r"variant 'bf16'; there are 'fp16', 'non_ema'"):
        needed_files(SD15, SD15_INDEX, "bf16")
    with pytest.raises(ModelFilesError, match="'unet', but there is no folder"):
        needed_files([name for name in SD15 if not name.startswith("unet")], SD15_INDEX)
    pickled = [name for name in SD15 if not (name.startswith("vae") and name.endswith("safetensors"))]
    with pytest.raises(ModelFilesError, match="'vae' exist only as pickles"):
        needed_files(pickled, SD15_INDEX)
    with pytest.raises(ModelFilesError, match="only as safetensors"):
        needed_files(SDXL, SDXL_INDEX, use_safetensors=False)
    only_half = [name for name in SDXL if name != "vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelFilesError, match="pass variant='fp16'"):
        needed_files(only_half, SDXL_INDEX)
