"""Blocks that repeat can be compiled as they are: no breaks of the graph, and few graphs for many blocks and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import calotype
from tests.tiny import UNET, randomise


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def given(rows: int = 2, side: int = 8, tokens: int = 16) -> dict[str, Any]:
    return {
        "sample": torch.randn(rows, 4, side, side),
        "timestep": torch.tensor(3.0),
        "encoder_hidden_states": torch.randn(rows, tokens, 32),
        "return_dict": False,
    }


@torch.no_grad()
def test_one_graph_serves_the_blocks_of_a_width_in_all_shapes() -> None:
    model = randomise(calotype.UNet2DConditionModel(**UNET))
    calls = [given(), given(3, 16), given(2, 8, 20)]
    exact = [model(**call)[0] for call in calls]
    model.compile_repeated_blocks(fullgraph=True, dynamic=True, backend="eager")
    for call, right in zip(calls, exact, strict=True):
        torch.testing.assert_close(model(**call)[0], right)
    assert not counters["graph_break"]
    # one for each width, whatever the batch, the size and the prompt's length
    assert counters["stats"]["unique_graphs"] == 2


def prior() -> tuple[Any, dict[str, Any]]:
    model = calotype.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=8, num_embeddings=3,
        additional_embeddings=4,
    )  # fmt: skip
    call = {
        "hidden_states": torch.randn(2, 8),
        "timestep": 3,
        "proj_embedding": torch.randn(2, 8),
        "encoder_hidden_states": torch.randn(2, 3, 8),
    }
    return model, call


def controlnet() -> tuple[Any, dict[str, Any]]:
    model = calotype.ControlNetModel(
        down_block_types=("CrossAttnDownBlock2D",), block_out_channels=(8,), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=32, norm_num_groups=4, conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip
    return model, {**given(), "controlnet_cond": torch.randn(2, 3, 16, 16)}


def video() -> tuple[Any, dict[str, Any]]:
    model = calotype.UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32,), num_attention_heads=(2,), layers_per_block=1, cross_attention_dim=24,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",), up_block_types=("CrossAttnUpBlockSpatioTemporal",),
    )  # fmt: skip
    call = {
        "sample": torch.randn(1, 3, 8, 8, 8),
        "timestep": torch.tensor(0.7),
        "encoder_hidden_states": torch.randn(1, 1, 24),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }
    return model, {**call, "return_dict": False}


@torch.no_grad()
@pytest.mark.parametrize("made", [prior, controlnet, video])
def test_the_blocks_of_other_models_have_no_breaks_either(made: Any) -> None:
    model, call = made()
    randomise(model)
    call.setdefault("return_dict", False)
    right = model(**call)[0]
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(**call)[0], right)
    assert counters["stats"]["unique_graphs"] >= 1
