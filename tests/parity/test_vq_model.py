"""The vector-quantised autoencoder against the reference: signatures, keys, numbers, gradients, files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.tiny import randomise

CONFIGS: dict[str, dict[str, Any]] = {
    "one block": {"block_out_channels": (32,)},
    "latent diffusion": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "num_vq_embeddings": 40,
    },
    "movq": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (32, 64),
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "norm_type": "spatial",
        "num_vq_embeddings": 30,
    },
    "indices": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "act_fn": "mish",
        "in_channels": 4,
        "out_channels": 2,
        "latent_channels": 6,
        "vq_embed_dim": 5,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "force_upcast": True,
    },
}


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    config = CONFIGS[request.param]
    theirs = randomise(diffusers.VQModel(**config), 1)
    ours = calotype.VQModel(**config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def _pictures(model: Any, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, model.config.in_channels, 16, 24, generator=generator) * 2 - 1


@pytest.mark.parametrize("method", ["__init__", "encode", "decode", "forward"])
def test_signatures(method: str) -> None:
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(getattr(library.VQModel, method)).parameters.values()]
        for library in (calotype, diffusers)
    )
    assert ours == theirs


def test_keys_and_configuration(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    assert {k: v for k, v in ours.config.items() if not k.startswith("_")} == expected


@torch.no_grad()
def test_encode_and_decode(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    x = _pictures(ours)
    latents = theirs.encode(x).latents
    _close(ours.encode(x).latents, latents)
    assert torch.equal(ours.encode(x, return_dict=False)[0], ours.encode(x).latents)
    found, expected = ours.decode(latents), theirs.decode(latents)
    _close(found.sample, expected.sample)
    _close(found.commit_loss, expected.commit_loss)
    sample, loss = ours.decode(latents, return_dict=False)
    assert torch.equal(sample, found.sample) and torch.equal(loss, found.commit_loss)
    for a, b in zip(ours(x, return_dict=False), theirs(x, return_dict=False), strict=True):
        _close(a, b)


@torch.no_grad()
def test_decoding_without_quantisation(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    generator = torch.Generator().manual_seed(5)
    channels = ours.post_quant_conv.in_channels
    if ours.config.lookup_from_codebook:
        entries = torch.randint(0, ours.config.num_vq_embeddings, (2, 8, 12), generator=generator)
        shape = (2, 8, 12, channels)
        expected = theirs.decode(entries.flatten(), force_not_quantize=True, shape=shape).sample
        _close(ours.decode(entries.flatten(), force_not_quantize=True, shape=shape).sample, expected)
        _close(ours.decode(entries, force_not_quantize=True).sample, expected)
        with pytest.raises(InputError, match="whole numbers"):
            ours.decode(entries.float(), force_not_quantize=True)
        return
    latents = torch.randn(2, channels, 8, 12, generator=generator)
    found, expected = (model.decode(latents, force_not_quantize=True) for model in (ours, theirs))
    _close(found.sample, expected.sample)
    assert torch.equal(found.commit_loss, expected.commit_loss)


def test_gradients(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    gradients = []
    for model in (theirs, ours):
        model.zero_grad()
        sample, loss = model(_pictures(model), return_dict=False)
        (sample.square().mean() + loss).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        scale = max(float(expected.abs().max()), 1e-3)
        assert (gradients[1][name] - expected).abs().max() <= 1e-4 * scale, name


@torch.no_grad()
def test_slicing_changes_nothing(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    x = _pictures(ours, batch=3)
    whole = ours(x)
    ours.enable_slicing()
    try:
        sliced = ours(x)
    finally:
        ours.disable_slicing()
    _close(sliced.sample, whole.sample)
    _close(sliced.commit_loss, whole.commit_loss)


@torch.no_grad()
def test_files_both_ways(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    x = _pictures(ours)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    _close(calotype.VQModel.from_pretrained(tmp_path / "theirs")(x).sample, theirs(x).sample)
    _close(diffusers.VQModel.from_pretrained(tmp_path / "ours")(x).sample, theirs(x).sample)


def test_refusals() -> None:
    with pytest.raises(InputError, match="latent_channels"):
        calotype.VQModel(block_out_channels=(32,), norm_type="spatial", vq_embed_dim=5)
    model = calotype.VQModel(block_out_channels=(32,))
    with pytest.raises(InputError, match=r"encode takes a tensor \(batch, 3"):
        model.encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"decode takes a tensor \(batch, 3"):
        model.decode(torch.zeros(1, 4, 8, 8))
