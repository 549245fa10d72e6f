"""Tiny U-Nets of every architecture, the inputs that each needs, and the comparison with the reference."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch.utils._pytree import tree_map_only

import calotype
from tests.parity.deviations import deviation

TOLERANCE = 1e-5
BATCH, SIDE, TOKENS, WIDTH = 2, 8, 5, 24


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(**changes: Any) -> dict[str, Any]:
    """A tiny U-Net in the manner of Stable Diffusion 1."""
    return {
        "sample_size": SIDE,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    } | changes


def simple(**changes: Any) -> dict[str, Any]:
    """A tiny U-Net in the manner of DeepFloyd IF and Kandinsky 2."""
    return unet(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        **changes,
    )


def k_unet(**changes: Any) -> dict[str, Any]:
    """A tiny U-Net in the manner of the latent upscaler by k-diffusion."""
    return (
        unet(
            in_channels=8,
            out_channels=5,
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
            mid_block_type=None,
            up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
            layers_per_block=3,
            attention_head_dim=16,
            only_cross_attention=(True, True, True, False),
            norm_num_groups=None,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            time_embedding_dim=64,
            timestep_post_act="gelu",
            time_cond_proj_dim=20,
            conv_in_kernel=1,
            conv_out_kernel=1,
            act_fn="gelu",
            cross_attention_norm="layer_norm",
        )
        | changes
    )


XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32, 32),
    "attention_head_dim": (2, 4, 8),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 20 + 6 * 6,
}
CONDITIONAL: dict[str, dict[str, Any]] = {
    "sd1": unet(layers_per_block=2),
    "sd1_inpaint": unet(in_channels=9),
    "sd1_uneven_layers": unet(layers_per_block=(2, 1), downsample_padding=0, mid_block_scale_factor=1.3),
    "sd2": unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
    "sd2_unclip": unet(class_embed_type="projection", projection_class_embeddings_input_dim=12),
    "x4_upscaler": unet(in_channels=7, num_class_embeds=10, only_cross_attention=(True, False)),
    "only_cross": unet(only_cross_attention=True, center_input_sample=True),
    "mid_only_cross": unet(mid_block_only_cross_attention=True),
    "lcm": unet(time_cond_proj_dim=10),
    "sdxl": unet(**XL, transformer_layers_per_block=(1, 2, 3)),
    "sdxl_refiner": unet(**XL, transformer_layers_per_block=2, freq_shift=1, flip_sin_to_cos=False),
    "ssd_1b": unet(
        **XL,
        transformer_layers_per_block=((1,), (2,), (1, 2)),
        reverse_transformer_layers_per_block=((2, 1, 1), (1, 2), (1, 1)),
        layers_per_block=(1, 1, 2),
        mid_block_type=None,
    ),
    "no_middle": unet(mid_block_type=None),
    "plain_middle": unet(mid_block_type="UNetMidBlock2D"),
    "context_widths": unet(cross_attention_dim=(WIDTH, 16), mid_block_type="UNetMidBlock2D"),
    "attn_blocks": unet(
        down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"),
        resnet_out_scale_factor=1.5,
        resnet_skip_time_act=True,
        dropout=0.1,
    ),
    "audioldm": unet(
        cross_attention_dim=(16, 32),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
    ),
    "class_time": unet(class_embed_type="timestep", time_embedding_act_fn="silu", act_fn="mish"),
    "class_identity": unet(class_embed_type="identity", time_embedding_dim=40),
    "fourier": unet(time_embedding_type="fourier"),
    "gligen": unet(attention_type="gated"),
    "gligen_images": unet(attention_type="gated-text-image"),
    "if_1": simple(
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        encoder_hid_dim=20,
        encoder_hid_dim_type="text_proj",
        cross_attention_norm="group_norm",
        cross_attention_dim=32,
        act_fn="gelu",
        attention_head_dim=8,
    ),
    "if_2": simple(
        class_embed_type="timestep",
        only_cross_attention=True,
        resnet_skip_time_act=True,
        resnet_out_scale_factor=1.41,
        mid_block_scale_factor=1.41,
        in_channels=6,
    ),
    "head_widths": simple(attention_head_dim=(2, 8), mid_block_only_cross_attention=True),
    "kandinsky_2_1": simple(
        addition_embed_type="text_image", encoder_hid_dim=20, encoder_hid_dim_type="text_image_proj"
    ),
    "kandinsky_2_2": simple(
        addition_embed_type="image", encoder_hid_dim=20, encoder_hid_dim_type="image_proj"
    ),
    "kandinsky_2_2_hint": simple(
        addition_embed_type="image_hint", encoder_hid_dim=20, encoder_hid_dim_type="image_proj", in_channels=8
    ),
    "k_upscaler": k_unet(),
    "k_plain": k_unet(
        block_out_channels=(32, 64, 64),
        down_block_types=("KDownBlock2D", "KDownBlock2D", "KCrossAttnDownBlock2D"),
        up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D", "KUpBlock2D"),
        only_cross_attention=False,
        layers_per_block=2,
    ),
    "old_names": unet(down_block_types=("UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D")),
}


def plain(**changes: Any) -> dict[str, Any]:
    """A tiny U-Net in the manner of DDPM."""
    return {
        "sample_size": SIDE,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    } | changes


def ncsnpp(**changes: Any) -> dict[str, Any]:
    return plain(
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        mid_block_scale_factor=2**0.5,
        time_embedding_type="fourier",
        **changes,
    )


UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "ddpm": plain(downsample_padding=0, freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6),
    "ldm": plain(layers_per_block=2, in_channels=4, out_channels=4, center_input_sample=True),
    "one_head": plain(
        attention_head_dim=None,
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
    ),
    "classes": plain(num_class_embeds=7),
    "consistency": plain(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        num_class_embeds=7,
    ),
    "resnet_resampling": plain(
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
        downsample_type="resnet",
        upsample_type="resnet",
        act_fn="gelu",
        attn_norm_num_groups=4,
        mid_block_scale_factor=1.5,
    ),
    "class_time": plain(class_embed_type="timestep", time_embedding_dim=40),
    "class_identity": plain(class_embed_type="identity"),
    "no_attention": plain(add_attention=False),
    "no_middle": plain(mid_block_type=None),
    "learned_time": plain(time_embedding_type="learned", num_train_timesteps=20),
    "ncsnpp": ncsnpp(),
    "ncsnpp_attention_first": ncsnpp(out_channels=3)
    | {"down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D")}
    | {"up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")},
}
TABLE = [("UNet2DConditionModel", name) for name in CONDITIONAL] + [
    ("UNet2DModel", name) for name in UNCONDITIONAL
]


def config_of(cls: str, name: str) -> dict[str, Any]:
    return (CONDITIONAL if cls == "UNet2DConditionModel" else UNCONDITIONAL)[name]


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 0.5 if parameter.ndim == 1 else 0.0
            scale = 0.2 if parameter.ndim <= 1 else (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))


def pair(cls: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The reference's model with random weights, and ours with the same, put in strictly on the meta device."""
    reference = getattr(diffusers, cls)(**config).eval()
    randomise(reference)
    with torch.device("meta"):
        ours = getattr(calotype, cls)(**config)
    weights = reference.state_dict()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in weights.items()
    }
    ours.load_state_dict(weights, strict=True, assign=True)
    return reference, ours.eval()


def inputs(cls: str, config: dict[str, Any], side: int = SIDE) -> dict[str, Any]:
    """A call with what the configuration makes necessary."""
    channels = config.get("in_channels", 4 if cls == "UNet2DConditionModel" else 3)
    if config.get("addition_embed_type") == "image_hint":
        channels -= 4
    if "KDownBlock2D" in config["down_block_types"]:
        side *= 2  # whose filters reflect at the border and so need two pixels at the lowest resolution
    call: dict[str, Any] = {"sample": noise(BATCH, channels, side, side), "timestep": 7}
    if config.get("time_embedding_type") == "fourier":
        call["timestep"] = torch.tensor([0.7, 12.0])
    kind = config.get("class_embed_type")
    width = config.get("projection_class_embeddings_input_dim")
    if config.get("num_class_embeds"):
        call["class_labels"] = torch.tensor([3, 0])
    elif kind == "timestep":
        call["class_labels"] = torch.tensor([3, 250])
    elif kind == "identity":
        first = config["block_out_channels"][0]
        call["class_labels"] = noise(BATCH, config.get("time_embedding_dim") or 4 * first)
    elif kind in ("projection", "simple_projection"):
        call["class_labels"] = noise(BATCH, width)
    if cls == "UNet2DModel":
        return call

    context = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    if isinstance(context, tuple):
        context = context[0]
    call["encoder_hidden_states"] = noise(BATCH, TOKENS, context, seed=2)
    if isinstance(config["cross_attention_dim"], tuple) and kind == "simple_projection":
        call["encoder_hidden_states"] = None  # attention to the context's place is attention to the pixels
    addition = config.get("addition_embed_type")
    if addition == "text_time":
        call["added_cond_kwargs"] = {
            "text_embeds": noise(BATCH, 20),
            "time_ids": torch.tensor([[8, 8, 0, 0, 8, 8], [16, 8, 1, 2, 8, 4]]),
        }
    elif addition == "text_image":
        call["added_cond_kwargs"] = {"text_embeds": noise(BATCH, WIDTH), "image_embeds": noise(BATCH, WIDTH)}
    elif addition in ("image", "image_hint"):
        call["added_cond_kwargs"] = {"image_embeds": noise(BATCH, 20)}
    if addition == "image_hint":
        call["added_cond_kwargs"]["hint"] = noise(BATCH, 3, 8 * side, 8 * side)
    return call


def without_values(call: dict[str, Any]) -> dict[str, Any]:
    """The call with tensors that have shapes and no values: any read of one on the host raises."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), call)


def run(model: Any, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{k: v.copy() if isinstance(v, dict) else v for k, v in call.items()}).sample


def check(case: str, reference: Any, ours: Any, call: dict[str, Any]) -> None:
    expected, actual = run(reference, call), run(ours, call)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert expected.isfinite().all() and expected.std() > 1e-3
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if reason := deviation(case):
        assert error > TOLERANCE, f"{case} no longer deviates ({reason})"
        return
    assert error <= TOLERANCE, f"{case}: relative error {error:.2g}"
