"""Every U-Net of the table, cut at every branch: its two ways of computing give what it gives.

A U-Net that is computed in part with the features that it had there itself computes the same numbers, to the bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import calotype
from calotype.acceleration.step_cache import Place, shallow, stages, whole
from calotype.core.errors import InputError
from tests.parity.test_unets import OPTIONS
from tests.parity.unet_table import CONDITIONAL, UNCONDITIONAL, inputs, noise, randomise

NAMES = ("sd1_uneven_layers", "ssd_1b", "no_middle", "attn_blocks", "if_2", "k_plain")
CASES = [
    *((name, None) for name in NAMES),
    ("sd1", "adapter_with_middle"),
    ("sd1", "controlnet_and_adapter"),
    ("sdxl", "controlnet_and_adapter"),
]


@torch.no_grad()
def check_branches(model: Any, call: dict[str, Any]) -> None:
    """Cut ``model`` at each of its branches."""
    expected = model(**call, return_dict=False)[0]
    ups = stages(model)[1]
    count = sum(len(stage.resnets) for stage in ups)
    called: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("resnets") and isinstance(module, nn.ModuleList):
            for part in module:
                part.register_forward_hook(lambda *_, name=name: called.append(name.split("_")[0]))
    for branch in range(count):
        place = Place.of(model, branch)
        out, features = whole(model, place, **call, return_dict=False)
        assert torch.equal(out[0], expected)
        called.clear()
        found = shallow(model, place, **call, return_dict=False, deep_features=features)[0]
        assert torch.equal(found, expected)
        assert called.count("up") == branch + 1
        assert called.count("mid") == 0
        unread = "KDownBlock2D" in model.config.down_block_types  # the outermost features
        assert called.count("down") <= branch + unread
        other = shallow(model, place, **call, return_dict=False, deep_features=features * 1.5)[0]
        assert not torch.equal(other, expected)
    with pytest.raises(InputError, match=f"branches 0 to {count - 1}"):
        Place.of(model, count)


@pytest.mark.parametrize(("name", "option"), CASES)
def test_pictures(name: str, option: str | None) -> None:
    model = calotype.UNet2DConditionModel(**CONDITIONAL[name]).eval()
    randomise(model)
    call = inputs("UNet2DConditionModel", CONDITIONAL[name])
    check_branches(model, call | ({} if option is None else OPTIONS[option](model, call)))


def test_without_a_context() -> None:
    model = calotype.UNet2DModel(**UNCONDITIONAL["ldm"]).eval()
    randomise(model)
    check_branches(model, inputs("UNet2DModel", UNCONDITIONAL["ldm"]))


VIDEO = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 24}


def three_d() -> tuple[Any, dict[str, Any]]:
    model = calotype.UNet3DConditionModel(
        **VIDEO, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return model, {
        "sample": noise(1, 4, 3, 8, 8),
        "timestep": 7,
        "encoder_hidden_states": noise(1, 5, 24, seed=2),
    }


def motion() -> tuple[Any, dict[str, Any]]:
    model = calotype.UNetMotionModel(
        **VIDEO, num_attention_heads=4, norm_num_groups=8, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip
    return model, {
        "sample": noise(1, 4, 3, 8, 8),
        "timestep": 7,
        "encoder_hidden_states": noise(1, 5, 24, seed=2),
    }


def spatio_temporal() -> tuple[Any, dict[str, Any]]:
    config = VIDEO | {"block_out_channels": (32, 64)}
    model = calotype.UNetSpatioTemporalConditionModel(
        **config, num_attention_heads=(2, 4), addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    return model, {
        "sample": noise(1, 3, 8, 8, 8),
        "timestep": torch.tensor(0.7),
        "encoder_hidden_states": noise(1, 1, 24, seed=2),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }


@pytest.mark.parametrize("made", [three_d, motion, spatio_temporal])
def test_videos(made: Any) -> None:
    model, call = made()
    randomise(model.eval())
    check_branches(model, call)


def test_models_that_are_no_u_nets_of_stages_say_so() -> None:
    model = calotype.UNet2DModel(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("SkipDownBlock2D",) * 2,
        up_block_types=("SkipUpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="Steps of a UNet2DModel cannot be cached"):
        stages(model)
