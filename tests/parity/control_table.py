"""Tiny ControlNets and T2I-Adapters of every kind, the inputs of each, and the comparison with the reference."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.controlnets import multicontrolnet, multicontrolnet_union

import calotype
from tests.parity.deviations import deviation
from tests.parity.unet_table import BATCH, SIDE, TOLERANCE, WIDTH, XL, noise, pair, unet
from tests.parity.unet_table import inputs as unet_inputs

REFERENCE: dict[str, Any] = {
    "MultiControlNetModel": multicontrolnet.MultiControlNetModel,
    "MultiControlNetUnionModel": multicontrolnet_union.MultiControlNetUnionModel,
}
KINDS = 4


def reference_class(name: str) -> Any:
    return REFERENCE.get(name) or getattr(diffusers, name)


def controlnet(**changes: Any) -> dict[str, Any]:
    """A tiny ControlNet in the manner of Stable Diffusion 1, for pictures 8 times as large as the latents."""
    config = unet(conditioning_embedding_out_channels=(4, 8, 12, 16)) | changes
    return {key: value for key, value in config.items() if key not in ("sample_size", "up_block_types")}


def union(**changes: Any) -> dict[str, Any]:
    """A tiny ControlNet Union."""
    width = {"num_trans_channel": 16, "num_proj_channel": 16, "num_trans_head": 4}
    kinds = {"num_control_type": KINDS, "addition_time_embed_dim": 6}
    return controlnet(**width | kinds | changes)


CONTROLNETS: dict[str, dict[str, Any]] = {
    "sd1": controlnet(layers_per_block=2),
    "sd2": controlnet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
    "sdxl": controlnet(**XL, transformer_layers_per_block=(1, 2, 3)),
    "refiner": controlnet(**XL, transformer_layers_per_block=2, freq_shift=1, flip_sin_to_cos=False),
    "bgr": controlnet(controlnet_conditioning_channel_order="bgr"),
    "shuffle": controlnet(global_pool_conditions=True),
    "quarter_size": controlnet(conditioning_embedding_out_channels=(4, 8, 12)),
    "grey_picture": controlnet(conditioning_channels=1),
    "inpaint": controlnet(in_channels=9),
    "classes": controlnet(num_class_embeds=10, only_cross_attention=(True, False)),
    "class_time": controlnet(class_embed_type="timestep"),
    "class_time;another-activation": controlnet(class_embed_type="timestep", act_fn="mish"),
    "class_identity": controlnet(class_embed_type="identity"),
    "class_projection": controlnet(class_embed_type="projection", projection_class_embeddings_input_dim=12),
    "plain_middle": controlnet(mid_block_type="UNetMidBlock2D", mid_block_scale_factor=1.3),
    "only_cross": controlnet(only_cross_attention=True, downsample_padding=0),
    "heads": controlnet(num_attention_heads=2, norm_eps=1e-4, act_fn="gelu"),
    "heads_of_stages": controlnet(num_attention_heads=(2, 8)),
    "scale_shift": controlnet(resnet_time_scale_shift="scale_shift"),
    "pixels": controlnet(down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D")),
    "text": controlnet(addition_embed_type="text", addition_embed_type_num_heads=4),
    "text;projected": controlnet(
        addition_embed_type="text", addition_embed_type_num_heads=4, encoder_hid_dim=WIDTH
    ),
    "text_image": controlnet(addition_embed_type="text_image"),
}
UNIONS: dict[str, dict[str, Any]] = {
    "sd1": union(),
    "sdxl": union(**XL, num_trans_layer=2),
    "shuffle": union(global_pool_conditions=True),
    "classes": union(num_class_embeds=10),
    "text": union(addition_embed_type="text", addition_embed_type_num_heads=4),
}
TABLE = [("ControlNetModel", name) for name in CONTROLNETS] + [
    ("ControlNetUnionModel", name) for name in UNIONS
]


ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"channels": (8, 16, 24, 24), "num_res_blocks": 2, "downscale_factor": 8},
    "full_grey": {"in_channels": 1, "channels": (8, 16), "num_res_blocks": 1, "downscale_factor": 4},
    "xl": {"channels": (8, 16, 24, 24), "downscale_factor": 16, "adapter_type": "full_adapter_xl"},
    "light": {"channels": (8, 16, 24), "num_res_blocks": 4, "adapter_type": "light_adapter"},
}


def config_of(cls: str, name: str) -> dict[str, Any]:
    return (CONTROLNETS if cls == "ControlNetModel" else UNIONS)[name]


def picture(config: dict[str, Any], side: int = SIDE, seed: int = 3) -> torch.Tensor:
    factor = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    return noise(BATCH, config.get("conditioning_channels", 3), factor * side, factor * side, seed=seed)


def inputs(cls: str, config: dict[str, Any], side: int = SIDE) -> dict[str, Any]:
    """A call with what the configuration makes necessary; a union gets pictures of two kinds."""
    width = {"encoder_hid_dim": None}  # the reference's ControlNets read the context as it is
    call = unet_inputs("UNet2DConditionModel", config | width, side)
    if cls == "ControlNetModel":
        return call | {"controlnet_cond": picture(config, side)}
    return call | {
        "controlnet_cond": [picture(config, side), picture(config, side, seed=4)],
        "control_type": torch.tensor([[0.0, 1, 0, 1]] * BATCH),
        "control_type_idx": [3, 1],
    }


def run(model: Any, call: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        down, mid = model(**call, return_dict=False)
    return [*down, mid]


def error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative error of the residuals."""
    assert [a.shape for a in actual] == [e.shape for e in expected]
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert all(e.isfinite().all() and e.abs().max() > 1e-3 for e in expected)
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True))


def check(case: str, actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    found = error(actual, expected)
    if reason := deviation(case):
        assert found > TOLERANCE, f"{case} no longer deviates ({reason})"
        return
    assert found <= TOLERANCE, f"{case}: relative error {found:.2g}"


def group(cls: str, count: int, config: dict[str, Any]) -> tuple[Any, Any]:
    """``count`` models as one, of the reference and ours, with the same weights, each other ones."""
    member = {"MultiControlNetModel": "ControlNetModel", "MultiAdapter": "T2IAdapter"}.get(
        cls, "ControlNetUnionModel"
    )
    pairs = [pair(member, config) for _ in range(count)]
    for index, (reference, ours) in enumerate(pairs):
        weights = {key: value * (1 - 0.1 * index) for key, value in reference.state_dict().items()}
        reference.load_state_dict(weights)
        ours.load_state_dict(weights)
    return reference_class(cls)([p[0] for p in pairs]), getattr(calotype, cls)([p[1] for p in pairs])


def group_call(cls: str, config: dict[str, Any], count: int) -> dict[str, Any]:
    member = "ControlNetModel" if cls == "MultiControlNetModel" else "ControlNetUnionModel"
    call = inputs(member, config)
    call["conditioning_scale"] = [0.5, 1.0, 0.8][:count]
    pictures = [picture(config, seed=10 + i) for i in range(count)]
    if cls == "MultiControlNetModel":
        return call | {"controlnet_cond": pictures}
    return call | {
        "controlnet_cond": [[each, each.flip(0)] for each in pictures],
        "control_type": [call["control_type"]] * count,
        "control_type_idx": [[3, 1], [0, 2], [1, 2]][:count],
    }
