"""Kandinsky 3's U-Net and Kandinsky 2.1's text encoder against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig as TheirConfig
from diffusers.pipelines.kandinsky.text_encoder import MultilingualCLIP as TheirMultilingualCLIP

import calotype
from calotype.core.errors import InputError
from calotype.models.multilingual_clip import MCLIPConfig
from tests.tiny import randomise

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "time_embedding_dim": 32,
    "groups": 2,
    "attention_head_dim": 4,
    "layers_per_block": 3,
    "block_out_channels": (8, 16, 24, 40),
    "cross_attention_dim": 12,
    "encoder_hid_dim": 10,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "four levels": {},
    "two layers, other channels": {"layers_per_block": 2, "in_channels": 5},
    "three levels": {"block_out_channels": (8, 16, 24), "layers_per_block": 2},
    "one level": {"block_out_channels": (8,), "layers_per_block": 2},
}
MASKS = {"all tokens": torch.ones(2, 5), "some": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_unet(name: str, mask: str) -> None:
    config = {**SMALL, **CONFIGS[name]}
    theirs = randomise(diffusers.Kandinsky3UNet(**config))
    ours = calotype.Kandinsky3UNet(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = {
        "sample": noise(2, config["in_channels"], 16, 16),
        "timestep": torch.tensor(417),
        "encoder_hidden_states": noise(2, 5, 10, seed=1),
        "encoder_attention_mask": MASKS[mask],
    }
    with torch.no_grad():
        expected, found = (model(**inputs).sample for model in (theirs, ours))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_unet_files_go_both_ways(tmp_path: Path) -> None:
    theirs = randomise(diffusers.Kandinsky3UNet(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.Kandinsky3UNet.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.Kandinsky3UNet.from_pretrained(tmp_path / "ours").state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(again[key], value), key


def test_unet_without_a_mask_sees_all_tokens() -> None:
    model = randomise(calotype.Kandinsky3UNet(**SMALL))
    inputs = (noise(2, 4, 16, 16), 3, noise(2, 5, 10, seed=1))
    with torch.no_grad():
        torch.testing.assert_close(
            model(*inputs).sample, model(*inputs, encoder_attention_mask=torch.ones(2, 5)).sample
        )


@pytest.mark.parametrize(
    "config",
    [{"layers_per_block": 1}, {"block_out_channels": (8,) * 5}, {"layers_per_block": (2, 2, 2, 2)}],
    ids=["one layer", "five levels", "layers by level"],
)
def test_unet_refuses_what_it_cannot_be(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="levels"):
        calotype.Kandinsky3UNet(**{**SMALL, **config})


def test_unet_needs_a_text() -> None:
    with pytest.raises(InputError, match="needs encoder_hidden_states"):
        calotype.Kandinsky3UNet(**SMALL)(noise(1, 4, 8, 8), 3)


ENCODER = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 30,
    "transformerDimSize": 16,
    "imageDimSize": 12,
}


def test_multilingual_clip(tmp_path: Path) -> None:
    theirs = randomise(TheirMultilingualCLIP(TheirConfig(**ENCODER)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.MultilingualCLIP.from_pretrained(tmp_path / "theirs").eval()
    ours.save_pretrained(tmp_path / "ours")
    again = TheirMultilingualCLIP.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([[0, 5, 7, 2, 1, 1], [0, 9, 8, 7, 6, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected, *found = (model(ids, mask) for model in (theirs, ours, again))
    for result in found:
        for part, wanted in zip(result, expected, strict=True):
            assert wanted.std() > 0.1
            torch.testing.assert_close(part, wanted, atol=1e-6, rtol=1e-5)


def test_multilingual_clip_configuration() -> None:
    theirs, ours = (kind(**ENCODER).to_dict() for kind in (TheirConfig, MCLIPConfig))
    assert ours == theirs
    assert MCLIPConfig().numDims == TheirConfig().numDims == 768
