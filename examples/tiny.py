"""Small random checkpoints and drawn pictures, so that every example runs at once and without a network.

A checkpoint is shaped like the published one of its kind, down to its files and variants, but nobody trained it: its
pictures are noise. Name a real repository on an example's command line to see what the program makes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import torch

import calotype
from calotype.families.kandinsky_2_0 import SAMPLING as SAMPLING_2_0
from calotype.training.tokenizer import train_tokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
SIZE = 128
"""Height and width of the pictures that the tiny models were shaped for."""

WORDS = "a an astronaut cat dog ball cube castle forest grass in on at sunset photo painting detailed blurry quality"

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "sample_size": SIZE,
}
UNET: dict[str, Any] = {
    "sample_size": SIZE // 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
THROUGH_TIME: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "attention_head_dim": 8,
}
XL_UNET: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 8 * 6 + 32,
}
MOVQ: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
    "latent_channels": 4,
    "norm_num_groups": 8,
    "norm_type": "spatial",
    "num_vq_embeddings": 16,
    "vq_embed_dim": 4,
}
KANDINSKY_UNET: dict[str, Any] = {
    **UNET,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "addition_embed_type": "image",
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "image_proj",
}


def checkpoint(kind: str, argument: int = 1) -> str:
    """The repository or folder that the command line names in place ``argument``; else a tiny checkpoint of ``kind``.

    Tiny checkpoints are made once and kept in ``$CALOTYPE_TINY``, by default a folder for temporary files.
    """
    return sys.argv[argument] if len(sys.argv) > argument else str(_tiny(kind))


def _tiny(kind: str) -> Path:
    root = Path(
        os.environ.get("CALOTYPE_TINY")
        or Path(tempfile.gettempdir()) / f"calotype-tiny-{calotype.__version__}"
    )
    folder = root / kind
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as made, torch.random.fork_rng():
            torch.manual_seed(0)
            KINDS[kind](Path(made) / kind)
            try:
                (Path(made) / kind).rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another program was first
                    raise
    return folder


def side(pixels: int) -> int:
    """So many pixels for a checkpoint that the command line names, and :data:`SIZE` for a tiny one."""
    return pixels if len(sys.argv) > 1 else SIZE


def photo() -> PIL.Image.Image:
    """A ball on a plain at sunset."""
    picture = PIL.Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(180)
    picture = PIL.Image.merge(
        "RGB", (picture, picture.point(lambda v: v // 2), picture.point(lambda v: 255 - v))
    )
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle((0, SIZE * 2 // 3, SIZE, SIZE), fill=(60, 110, 50))
    draw.ellipse((SIZE // 3, SIZE // 3, SIZE * 3 // 4, SIZE * 3 // 4), fill=(200, 40, 40))
    return picture


def mask() -> PIL.Image.Image:
    """White where the ball of the photo is."""
    picture = PIL.Image.new("L", (SIZE, SIZE))
    PIL.ImageDraw.Draw(picture).ellipse((SIZE // 3, SIZE // 3, SIZE * 3 // 4, SIZE * 3 // 4), fill=255)
    return picture


def person() -> list[tuple[float, float] | None]:
    """Someone who waves, as the 18 joints of OpenPose in pixels."""
    body = "64,24 64,40 52,40 44,56 40,70 76,40 90,34 96,18 56,74 54,92 54,112 72,74 74,92 74,112 "
    joints = body + "61,21 67,21 58,23 70,23"
    return [(float(x), float(y)) for x, y in (joint.split(",") for joint in joints.split())]


def _texts(folder: Path) -> tuple[Any, Any]:
    """A tokenizer, and the configuration of a text encoder for it."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    train_tokenizer(folder / "words", [WORDS])
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, config


def _depth_estimator() -> dict[str, Any]:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return {
        "depth_estimator": DPTForDepthEstimation(config).eval(),
        "feature_extractor": DPTImageProcessor(size={"height": 32, "width": 32}),
    }


def _saved(pipe: Any, folder: Path) -> None:
    """The checkpoint in float32, and in float16 as the variant that published ones have."""
    pipe.save_pretrained(folder)
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")


def _stable_diffusion(folder: Path, pipeline: str = "StableDiffusionPipeline", **options: Any) -> None:
    from transformers import CLIPTextModel

    tokenizer, config = _texts(folder.parent)
    parts: dict[str, Any] = {
        "vae": calotype.AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(config).eval(),
        "tokenizer": tokenizer,
        "unet": calotype.UNet2DConditionModel(**UNET, **options),
        "scheduler": calotype.PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),
    }
    if pipeline == "StableDiffusionDepth2ImgPipeline":
        parts |= _depth_estimator()
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    _saved(getattr(calotype, pipeline)(**parts), folder)


def _stable_diffusion_xl(folder: Path, pipeline: str = "StableDiffusionXLPipeline", **options: Any) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer, config = _texts(folder.parent)
    scheduler = options.pop("scheduler", None) or calotype.EulerDiscreteScheduler(**SCHEDULE)
    parts: dict[str, Any] = {
        "vae": calotype.AutoencoderKL(**VAE, scaling_factor=0.13025),
        "text_encoder": CLIPTextModel(config).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(config).eval(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": calotype.UNet2DConditionModel(**{**XL_UNET, **options}),
        "scheduler": scheduler,
    }
    if pipeline == "StableDiffusionXLImg2ImgPipeline":
        parts |= {"text_encoder": None, "tokenizer": None}
        parts |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    _saved(getattr(calotype, pipeline)(**parts), folder)


def _turbo(folder: Path) -> None:
    scheduler = calotype.EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    _stable_diffusion_xl(folder, scheduler=scheduler)


def _refiner(folder: Path) -> None:
    options = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 8 * 5 + 32}
    _stable_diffusion_xl(folder, "StableDiffusionXLImg2ImgPipeline", **options)


def _text_to_video(folder: Path) -> None:
    from transformers import CLIPTextModel

    tokenizer, config = _texts(folder.parent)
    unet = calotype.UNet3DConditionModel(**{**UNET, **THROUGH_TIME})
    for name, parameter in unet.named_parameters():
        if "conv4" in name:  # convolutions along time begin as zeros, which would leave the frames apart
            torch.nn.init.normal_(parameter, std=0.1)
    _saved(
        calotype.TextToVideoSDPipeline(
            vae=calotype.AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(config).eval(),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=calotype.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        ),
        folder,
    )


def _sight() -> Any:
    """A model that sees pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=32, **sizes)).eval()


def _image_and_text_to_video(folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPTextModel

    tokenizer, config = _texts(folder.parent)
    _saved(
        calotype.I2VGenXLPipeline(
            vae=calotype.AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(config).eval(),
            tokenizer=tokenizer,
            image_encoder=_sight(),
            feature_extractor=CLIPImageProcessor(),
            unet=calotype.I2VGenXLUNet(**{**UNET, **THROUGH_TIME}),
            scheduler=calotype.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        ),
        folder,
    )


def _image_to_video(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    _saved(
        calotype.StableVideoDiffusionPipeline(
            vae=calotype.AutoencoderKLTemporalDecoder(
                block_out_channels=(32, 32, 32, 32),
                down_block_types=VAE["down_block_types"],
                sample_size=SIZE,
            ),
            image_encoder=_sight(),
            unet=calotype.UNetSpatioTemporalConditionModel(
                sample_size=SIZE // 8,
                layers_per_block=1,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                cross_attention_dim=32,
                num_attention_heads=(2, 4),
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=8 * 3,
                num_frames=5,
            ),
            scheduler=calotype.EulerDiscreteScheduler(
                **SCHEDULE,
                prediction_type="v_prediction",
                timestep_type="continuous",
                timestep_spacing="leading",
                use_karras_sigmas=True,
                sigma_min=0.002,
                sigma_max=700.0,
            ),
            feature_extractor=CLIPImageProcessor(),
        ),
        folder,
    )


def _motion_adapter(folder: Path) -> None:
    model = calotype.MotionAdapter(
        block_out_channels=UNET["block_out_channels"],
        motion_layers_per_block=UNET["layers_per_block"],
        motion_num_attention_heads=UNET["attention_head_dim"],
        motion_norm_num_groups=UNET["norm_num_groups"],
    )
    model.save_pretrained(folder)
    model.half().save_pretrained(folder, variant="fp16")


def _controlnet(folder: Path) -> None:
    config = {k: v for k, v in UNET.items() if k not in ("sample_size", "up_block_types")}
    model = calotype.ControlNetModel(**config, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for parameter in model.parameters():  # a ControlNet begins as zeros, which would say nothing
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    model.half().save_pretrained(folder, variant="fp16")


def _depth(folder: Path) -> None:
    for part in _depth_estimator().values():
        part.save_pretrained(folder)


def _kandinsky_prior(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    tokenizer, config = _texts(folder.parent)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=32, **sizes)
    calotype.KandinskyV22PriorPipeline(
        prior=calotype.PriorTransformer(2, 16, 2, embedding_dim=32),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        text_encoder=CLIPTextModelWithProjection(config).eval(),
        tokenizer=tokenizer,
        scheduler=calotype.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ).save_pretrained(folder)


def _kandinsky(folder: Path, pipeline: str = "KandinskyV22Pipeline", **options: Any) -> None:
    """A decoder, whose model card names the prior."""
    _tiny("kandinsky-prior")
    getattr(calotype, pipeline)(
        unet=calotype.UNet2DConditionModel(**KANDINSKY_UNET, **options),
        scheduler=calotype.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=True,
            clip_sample_range=2.0,
            variance_type="learned_range",
        ),
        movq=calotype.VQModel(**MOVQ),
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nprior: ../kandinsky-prior\n---\n")


def _kandinsky_2_0(folder: Path) -> None:
    """Both denoisers and two text encoders, whose tokenizers know letters alone."""
    from transformers import MT5Config, MT5EncoderModel, T5Tokenizer, XLMRobertaTokenizer

    from calotype.models.multilingual_clip import MCLIPConfig, MultilingualCLIP

    letters = [(mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>")]
    letters += [(letter, -2.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    tokenizer = XLMRobertaTokenizer(vocab=[*letters, ("<mask>", 0.0)], model_max_length=77)
    tokenizer_2 = T5Tokenizer(vocab=letters[1:], extra_ids=0)
    config = MCLIPConfig(
        transformerDimSize=32,
        imageDimSize=32,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
    )
    unet: dict[str, Any] = {
        **{k: v for k, v in KANDINSKY_UNET.items() if not k.startswith(("addition", "encoder_hid"))},
        "class_embed_type": "identity",
    }
    widths = {
        "text_dim": 32,
        "pooled_dim": 32,
        "text_dim_2": 32,
        "cross_attention_dim": 32,
        "time_embed_dim": 128,
    }
    beside = calotype.UNet2DConditionModel(**{**unet, "in_channels": 9})
    calotype.KandinskyV20Pipeline(
        text_encoder=MultilingualCLIP(config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=MT5EncoderModel(
            MT5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
        ).eval(),
        tokenizer_2=tokenizer_2,
        text_proj=calotype.KandinskyV20TextProjModel(**widths),
        unet=calotype.UNet2DConditionModel(**unet),
        scheduler=calotype.DDIMScheduler(**SAMPLING_2_0),
        vae=calotype.AutoencoderKL(**VAE, scaling_factor=0.0512),
        inpaint_text_proj=calotype.KandinskyV20TextProjModel(**widths),
        inpaint_unet=beside,
    ).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-inpainting": lambda folder: _stable_diffusion(
        folder, "StableDiffusionInpaintPipeline", in_channels=9
    ),
    "stable-diffusion-depth": lambda folder: _stable_diffusion(
        folder, "StableDiffusionDepth2ImgPipeline", in_channels=5
    ),
    "stable-diffusion-xl": _stable_diffusion_xl,
    "stable-diffusion-xl-refiner": _refiner,
    "stable-diffusion-xl-inpainting": lambda folder: _stable_diffusion_xl(
        folder, "StableDiffusionXLInpaintPipeline", in_channels=9
    ),
    "sdxl-turbo": _turbo,
    "playground": _stable_diffusion_xl,
    "text-to-video": _text_to_video,
    "image-to-video": _image_to_video,
    "image-and-text-to-video": _image_and_text_to_video,
    "motion-adapter": _motion_adapter,
    "controlnet": _controlnet,
    "depth-estimator": _depth,
    "kandinsky-2-0": _kandinsky_2_0,
    "kandinsky-prior": _kandinsky_prior,
    "kandinsky": _kandinsky,
    "kandinsky-inpainting": lambda folder: _kandinsky(folder, "KandinskyV22InpaintPipeline", in_channels=9),
}
"""What each kind of checkpoint is made by."""
