"""U-Nets against the reference: one table of architectures, each run with every input that it takes.

Weights are random everywhere, zero-initialised and norm layers included, so that no part can be wrong unseen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import calotype
from calotype.models.unet_conditioning import project_context
from calotype.models.unet_paths import down_path
from calotype.nn.stage import Conditioning
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


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_same_numbers(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    check(f"unets/{cls}/{name}", reference, ours, inputs(cls, config))


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_same_gradients(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    weight = None
    for model in (reference, ours):
        output = model(**call).sample
        weight = noise(*output.shape, seed=9) if weight is None else weight
        (output * weight).sum().backward()
    theirs = {key: value.grad for key, value in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in theirs.values() if gradient is not None)
    for key, parameter in ours.named_parameters():
        if theirs[key] is None:
            assert parameter.grad is None or not parameter.grad.any(), key
            continue
        assert parameter.grad is not None, key
        assert (parameter.grad - theirs[key]).abs().max() <= 1e-4 * largest, key


def kept_shapes(model: Any, call: dict[str, Any]) -> list[torch.Size]:
    """Shapes of what the way down keeps, which a ControlNet's residuals have."""
    width = model.time_embedding.linear_2.out_features
    with torch.no_grad():
        h = model.conv_in(call["sample"])
        context = project_context(model, call["encoder_hidden_states"], call.get("added_cond_kwargs", {}))
        given = Conditioning(temb=noise(BATCH, width), context=context)
        return [feature.shape for feature in down_path(model.down_blocks, h, given)[1]]


def with_controlnet(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    shapes = kept_shapes(model, call)
    return {
        "down_block_additional_residuals": tuple(noise(*s, seed=i) for i, s in enumerate(shapes)),
        "mid_block_additional_residual": noise(*shapes[-1], seed=99),
    }


def adapter_features(model: Any, call: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """One feature for each stage: before its downsampler if it reads the context, after it if not."""
    features, side = [], SIDE
    for index, stage in enumerate(model.down_blocks):
        width = model.config.block_out_channels[index]
        after = side // 2 if stage.downsamplers is not None else side
        where = side if stage.has_cross_attention else after
        features.append(noise(BATCH, width, where, where, seed=index))
        side = after
    return tuple(features)


OPTIONS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "timesteps": lambda m, c: {"timestep": torch.tensor([3, 900])},
    "timestep_0d": lambda m, c: {"timestep": torch.tensor(11)},
    "timestep_float": lambda m, c: {"timestep": 11.25},
    "encoder_attention_mask": lambda m, c: {
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])
    },
    "controlnet": with_controlnet,
    "adapter": lambda m, c: {"down_intrablock_additional_residuals": list(adapter_features(m, c))},
    "adapter_old_name": lambda m, c: {"down_block_additional_residuals": list(adapter_features(m, c))},
    "adapter_with_middle": lambda m, c: {
        "down_intrablock_additional_residuals": [
            *adapter_features(m, c),
            noise(*kept_shapes(m, c)[-1], seed=77),
        ]
    },
    "controlnet_and_adapter": lambda m, c: (
        with_controlnet(m, c) | {"down_intrablock_additional_residuals": list(adapter_features(m, c))}
    ),
}
OPTION_CASES = [(name, option) for name in ("sd1", "sdxl") for option in OPTIONS] + [
    ("if_1", "encoder_attention_mask"),
    ("if_1", "controlnet"),
    ("kandinsky_2_2", "timesteps"),
    ("k_upscaler", "encoder_attention_mask"),
    ("plain_middle", "adapter_with_middle"),
    ("no_middle", "adapter"),
]


@pytest.mark.filterwarnings("ignore:Passing intrablock residual:FutureWarning")
@pytest.mark.parametrize(("name", "option"), OPTION_CASES)
def test_optional_inputs(name: str, option: str) -> None:
    cls = "UNet2DConditionModel"
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    before = run(ours, call)
    for model in (reference, ours):
        # made anew for each, since the reference empties the lists that it is given
        changes = OPTIONS[option](ours, call)
        if model is reference:
            expected = run(reference, call | changes)
        else:
            actual = run(ours, call | changes)
    assert (actual - before).abs().max() > 1e-4, "the option has no effect"
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE, f"unets/{name}/{option}: relative error {error:.2g}"


def one_stage(**changes: Any) -> dict[str, Any]:
    """One resolution only, so that a mask of the pixels fits everywhere."""
    return unet(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        **changes,
    )


MORE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attention_mask": (
        one_stage(),
        {"attention_mask": (noise(BATCH, SIDE * SIDE) > 0).long()},
    ),
    "attention_mask_both": (
        one_stage(),
        {
            "attention_mask": (noise(BATCH, SIDE * SIDE) > 0).long(),
            "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]]),
        },
    ),
    "attention_mask_added_kv": (simple(), {"attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1] * 5])}),
    "timestep_cond": (unet(time_cond_proj_dim=10), {"timestep_cond": noise(BATCH, 10)}),
    "timestep_cond_k": (k_unet(), {"timestep_cond": noise(BATCH, 20)}),
    "gligen": (
        unet(attention_type="gated"),
        {
            "cross_attention_kwargs": {
                "gligen": {
                    "boxes": noise(BATCH, 3, 4).sigmoid(),
                    "masks": torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
                    "positive_embeddings": noise(BATCH, 3, WIDTH),
                }
            }
        },
    ),
    "gligen_images": (
        unet(attention_type="gated-text-image"),
        {
            "cross_attention_kwargs": {
                "gligen": {
                    "boxes": noise(BATCH, 3, 4).sigmoid(),
                    "masks": torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
                    "phrases_masks": torch.tensor([[1.0, 1, 0], [0, 0, 1]]),
                    "image_masks": torch.tensor([[0.0, 1, 0], [1, 0, 1]]),
                    "phrases_embeddings": noise(BATCH, 3, WIDTH),
                    "image_embeddings": noise(BATCH, 3, WIDTH, seed=4),
                }
            }
        },
    ),
    "scale_without_adapter": (unet(), {"cross_attention_kwargs": {"scale": 0.5}, "timestep": 8}),
}


@pytest.mark.parametrize("name", MORE)
def test_special_inputs(name: str) -> None:
    cls = "UNet2DConditionModel"
    config, changes = MORE[name]
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    before = run(ours, call)
    assert (run(ours, call | changes) - before).abs().max() > 1e-4, "the option has no effect"
    check(f"unets/{cls}/{name}", reference, ours, call | changes)


@pytest.mark.parametrize("side", [9, 12, 15])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd2"])
def test_sides_that_cannot_be_halved(name: str, side: int) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    check(f"unets/{name}/side={side}", reference, ours, inputs("UNet2DConditionModel", config, side))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "attn_blocks", "if_1"])
def test_freeu(name: str) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    call = inputs("UNet2DConditionModel", config)
    before = run(ours, call)
    for model in (reference, ours):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    check(f"unets/{name}/freeu", reference, ours, call)
    if name != "if_1":  # whose blocks do not take it
        assert not torch.equal(run(ours, call), before)
    ours.disable_freeu()
    assert torch.equal(run(ours, call), before)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "attn_blocks", "audioldm"])
def test_fused_projections(name: str) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    keys = set(ours.state_dict())
    ours.fuse_qkv_projections()
    assert set(ours.state_dict()) == keys
    check(f"unets/{name}/fused", reference, ours, inputs("UNet2DConditionModel", config))
    ours.unfuse_qkv_projections()
    check(f"unets/{name}/unfused", reference, ours, inputs("UNet2DConditionModel", config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "name"), [("UNet2DConditionModel", "sdxl"), ("UNet2DModel", "ddpm")])
def test_half_precision(cls: str, name: str, dtype: torch.dtype) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    exact = run(reference, call)
    half = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.items()}
    if "added_cond_kwargs" in half:
        half["added_cond_kwargs"] = {
            k: v.to(dtype) if v.is_floating_point() else v for k, v in call["added_cond_kwargs"].items()
        }
    theirs, mine = run(reference.to(dtype), half), run(ours.to(dtype), half)
    assert mine.dtype == theirs.dtype == dtype
    worst = (theirs.float() - exact).abs().max()
    assert (mine.float() - exact).abs().max() <= 1.5 * worst


@pytest.mark.parametrize(("cls", "name"), [("UNet2DConditionModel", "if_1"), ("UNet2DModel", "consistency")])
def test_folders_go_both_ways(cls: str, name: str, tmp_path: Any) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    expected = run(reference, call)
    reference.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = getattr(calotype, cls).from_pretrained(tmp_path / "theirs")
    back = getattr(diffusers, cls).from_pretrained(tmp_path / "ours")
    scale = TOLERANCE * expected.abs().max()
    assert (run(loaded, call) - expected).abs().max() <= scale
    assert torch.equal(run(back, call), expected)
    skipped = ("_name_or_path", "_use_default_values", "_class_name", "_diffusers_version")
    theirs = {k: v for k, v in dict(reference.config).items() if k not in skipped}
    mine = {k: v for k, v in dict(loaded.config).items() if k not in skipped}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in mine.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()
    }


@pytest.mark.parametrize("cls", ["UNet2DModel", "UNet2DConditionModel"])
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_same_signatures(cls: str, method: str) -> None:
    def facts(owner: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(owner, method)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert facts(getattr(calotype, cls)) == facts(getattr(diffusers, cls))


@pytest.mark.parametrize("cls", ["UNet2DModel", "UNet2DConditionModel"])
def test_same_default_architecture(cls: str) -> None:
    with torch.device("meta"):
        theirs = getattr(diffusers, cls)().state_dict()
        mine = getattr(calotype, cls)().state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_same_methods() -> None:
    """Every method by which scripts change how the model computes takes the same arguments."""
    for method in (
        "enable_freeu",
        "disable_freeu",
        "set_attention_slice",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "set_default_attn_processor",
    ):
        theirs = inspect.signature(getattr(diffusers.UNet2DConditionModel, method)).parameters
        mine = inspect.signature(getattr(calotype.UNet2DConditionModel, method)).parameters
        assert list(mine) == list(theirs), method


def test_same_processor_names() -> None:
    reference, ours = pair("UNet2DConditionModel", CONDITIONAL["sdxl"])
    assert set(ours.attn_processors) == set(reference.attn_processors)


def test_processors_of_the_reference_work() -> None:
    """A processor written for the reference's attention layers computes the same on ours."""
    from diffusers.models.attention_processor import AttnProcessor

    reference, ours = pair("UNet2DConditionModel", CONDITIONAL["sd1"])
    call = inputs("UNet2DConditionModel", CONDITIONAL["sd1"])
    expected = run(reference, call)
    ours.set_attn_processor(AttnProcessor())
    assert (run(ours, call) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    ours.set_default_attn_processor()
    assert (run(ours, call) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_noise_level_as_a_number() -> None:
    config = UNCONDITIONAL["ncsnpp"]
    reference, ours = pair("UNet2DModel", config)
    call = inputs("UNet2DModel", config) | {"timestep": 1.75}
    check("unets/UNet2DModel/ncsnpp/timestep=1.75", reference, ours, call)


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_no_value_is_awaited_from_the_device(cls: str, name: str) -> None:
    """With tensors that have shapes and no values, any read of a value on the host raises."""
    config = config_of(cls, name)
    call = inputs(cls, config)
    with FakeTensorMode() as mode:
        model = getattr(calotype, cls)(**config).eval()
        fake = tree_map_only(torch.Tensor, mode.from_tensor, call)
        with torch.no_grad():
            sample = model(**fake).sample
    assert sample.shape[0] == BATCH


def test_dual_cross_attention() -> None:
    """The reference has the parts of Versatile Diffusion's U-Net and cannot run the whole; so the part and the keys."""
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    from calotype.nn.transformer import DualTransformer

    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 16,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    reference, ours = DualTransformer2DModel(**settings), DualTransformer(**settings)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    h, context = noise(BATCH, 16, 4, 4), noise(BATCH, 77 + 257, WIDTH)
    with torch.no_grad():
        expected, actual = reference(h, context)[0], ours(h, context)
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()

    config = unet(dual_cross_attention=True)
    theirs, mine = diffusers.UNet2DConditionModel(**config), calotype.UNet2DConditionModel(**config)
    assert {k: v.shape for k, v in mine.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    call = inputs("UNet2DConditionModel", config) | {"encoder_hidden_states": context}
    assert run(mine, call).isfinite().all()
