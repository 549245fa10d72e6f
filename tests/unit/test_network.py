"""What models answer to calls that concern how they compute."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import calotype
from calotype.core.errors import InputError


@pytest.fixture
def unet() -> calotype.UNet2DConditionModel:
    return calotype.UNet2DConditionModel(
        block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    ).eval()  # fmt: skip


def test_calls_that_are_not_offered_say_what_to_do(unet: calotype.UNet2DConditionModel) -> None:
    with pytest.raises(
        AttributeError, match="UNet2DConditionModel has no set_attention_backend: PyTorch's own"
    ):
        unet.set_attention_backend("flash")
    assert not hasattr(unet, "enable_layerwise_casting")
    with pytest.raises(AttributeError, match="object has no attribute 'anything'"):
        unet.anything  # noqa: B018
    assert pickle.loads(pickle.dumps(copy.deepcopy(unet))).config == unet.config


def test_each_repeated_block_is_compiled(
    unet: calotype.UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, dict]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append((type(self).__name__, how)))
    unet.compile_repeated_blocks(fullgraph=True)
    assert compiled == [("BasicTransformerBlock", {"fullgraph": True})] * 4
    with pytest.raises(InputError, match="T2IAdapter has no blocks that repeat"):
        calotype.T2IAdapter(channels=(32, 64), num_res_blocks=1).compile_repeated_blocks()


def test_calls_for_memory_leave_the_numbers(unet: calotype.UNet2DConditionModel) -> None:
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    with torch.no_grad():
        expected = unet(sample, 1, states).sample
        unet.enable_xformers_memory_efficient_attention()
        unet.set_use_memory_efficient_attention_xformers(True)
        unet.disable_xformers_memory_efficient_attention()
        unet.set_attention_slice("auto")
        unet.set_default_attn_processor()
        assert torch.equal(unet(sample, 1, states).sample, expected)
