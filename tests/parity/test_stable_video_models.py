"""Stable Video Diffusion's UNet and autoencoder against the reference: signatures, keys, numbers, gradients, files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.pipeline_runs import seeded
from tests.parity.stable_video_parts import UNETS, VAES, WIDTH
from tests.peak import peak_bytes
from tests.tiny import randomise

UNET, VAE = "UNetSpatioTemporalConditionModel", "AutoencoderKLTemporalDecoder"
METHODS = [
    (UNET, "__init__"),
    (UNET, "forward"),
    *((VAE, m) for m in ("__init__", "encode", "decode", "forward")),
]


def _pair(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    theirs = randomise(getattr(diffusers, name)(**config), 1)
    ours = getattr(calotype, name)(**config).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.fixture(params=UNETS, scope="module")
def unets(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return _pair(UNET, UNETS[request.param])


@pytest.fixture(params=VAES, scope="module")
def vaes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return _pair(VAE, VAES[request.param])


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def _inputs(model: Any, videos: int = 2, frames: int = 4, tokens: int = 2) -> tuple[torch.Tensor, ...]:
    config, g = model.config, seeded(3)
    count = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return (
        torch.randn(videos, frames, config.in_channels, 8, 12, generator=g),
        torch.tensor([3.5, 900.0])[:videos],
        torch.randn(videos, tokens, WIDTH, generator=g),
        torch.rand(videos, count, generator=g) * 100,
    )


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_signatures(name: str, method: str) -> None:
    ours, theirs = (
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        ]
        for library in (calotype, diffusers)
    )
    assert ours == theirs


PUBLISHED_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 768,
}


@pytest.mark.parametrize(("name", "config"), [(UNET, {}), (VAE, PUBLISHED_VAE)])
def test_published_shapes(name: str, config: dict[str, Any]) -> None:
    """In the sizes of the published checkpoints every weight has its name and shape."""
    with torch.device("meta"):
        ours, theirs = (getattr(library, name)(**config).state_dict() for library in (calotype, diffusers))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@torch.no_grad()
def test_unet(unets: tuple[Any, Any]) -> None:
    """Each video reads its own context, time and numbers; one token and several, one frame and several."""
    theirs, ours = unets
    for shape in ({}, {"tokens": 1}, {"frames": 1, "videos": 1}):
        inputs = _inputs(ours, **shape)
        _close(ours(*inputs).sample, theirs(*inputs).sample)
    sample, _, *told = _inputs(ours)
    _close(ours(sample, 7, *told, return_dict=False)[0], theirs(sample, 7, *told, return_dict=False)[0])


@torch.no_grad()
def test_less_memory_than_the_reference(unets: tuple[Any, Any]) -> None:
    """Activations that are alive at the peak: a stage lets go of what it has read."""
    g = seeded(3)
    theirs, ours = unets
    _, timestep, context, numbers = _inputs(ours, videos=1)
    sample = torch.randn(1, 4, ours.config.in_channels, 32, 48, generator=g)
    peaks = [peak_bytes(lambda m=m: m(sample, timestep, context, numbers)) for m in (theirs, ours)]
    assert peaks[1] < 0.95 * peaks[0], peaks


@torch.no_grad()
def test_no_more_memory_than_the_reference_to_decode(vaes: tuple[Any, Any]) -> None:
    theirs, ours = vaes
    latents = torch.randn(4, ours.config.latent_channels, 16, 24, generator=seeded(3))
    peaks = [peak_bytes(lambda m=m: m.decode(latents, num_frames=4)) for m in (theirs, ours)]
    assert peaks[1] <= peaks[0], peaks


def test_unet_gradients(unets: tuple[Any, Any]) -> None:
    theirs, ours = unets
    gradients = []
    for model, recomputed in ((theirs, False), (ours, False), (ours, True)):
        model.zero_grad()
        if recomputed:
            model.enable_gradient_checkpointing()
        model(*_inputs(model)).sample.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    unets[1].disable_gradient_checkpointing()
    assert gradients[0].keys() == gradients[1].keys() == gradients[2].keys()
    for name, expected in gradients[0].items():
        scale = max(float(expected.abs().max()), 1e-3)
        for found in gradients[1:]:
            assert (found[name] - expected).abs().max() <= 1e-4 * scale, name


def test_attention_processors(unets: tuple[Any, Any]) -> None:
    theirs, ours = unets
    assert ours.attn_processors.keys() == theirs.attn_processors.keys()


@torch.no_grad()
def test_feed_forward_in_parts(unets: tuple[Any, Any]) -> None:
    _, ours = unets
    inputs = _inputs(ours)
    whole = ours(*inputs).sample
    try:
        for arguments in ({}, {"chunk_size": 3, "dim": 1}):
            ours.enable_forward_chunking(**arguments)
            _close(ours(*inputs).sample, whole)
    finally:
        ours.disable_forward_chunking()
    for wrong in ({"dim": 2}, {"chunk_size": 0}):
        with pytest.raises(InputError):
            ours.enable_forward_chunking(**wrong)


@torch.no_grad()
def test_autoencoder(vaes: tuple[Any, Any]) -> None:
    theirs, ours = vaes
    x = torch.rand(4, ours.config.in_channels, 16, 24, generator=seeded(3)) * 2 - 1
    _close(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    latents = theirs.encode(x).latent_dist.mode()
    for frames in (1, 2, 4):
        _close(
            ours.decode(latents, num_frames=frames).sample, theirs.decode(latents, num_frames=frames).sample
        )
    _close(ours(x, num_frames=4).sample, theirs(x, num_frames=4).sample)
    drawn = [
        model(x, sample_posterior=True, generator=seeded(), num_frames=2, return_dict=False) for model in vaes
    ]
    _close(drawn[1][0], drawn[0][0])


@torch.no_grad()
def test_autoencoder_in_less_memory() -> None:
    """One video at a time is the same; in tiles each is decoded by itself and faded into its neighbours."""
    _, ours = _pair(VAE, VAES["two layers"])
    latents = torch.randn(4, 4, 8, 12, generator=seeded(4))
    whole = ours.decode(latents, 2).sample
    ours.enable_slicing()
    _close(ours.decode(latents, 2).sample, whole)
    ours.enable_tiling()
    ours.tile_latent_min_size, ours.tile_sample_min_size = 8, 16
    tiled = ours.decode(latents, 2).sample
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    ours.disable_tiling()
    _close(tiled[..., :12, :12], ours.decode(latents[..., :8, :8], 2).sample[..., :12, :12])
    ours.enable_tiling()
    assert ours.encode(tiled).latent_dist.mode().shape == latents.shape


def test_autoencoder_gradients(vaes: tuple[Any, Any]) -> None:
    gradients = []
    for model in vaes:
        model.zero_grad()
        model.enable_gradient_checkpointing()
        x = torch.rand(2, model.config.in_channels, 8, 8, generator=seeded(3))
        model(x, num_frames=2).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).abs().max() <= 1e-4 * max(float(expected.abs().max()), 1e-3), (
            name
        )


def _plain(config: Any) -> dict[str, Any]:
    """The entries, lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k[0] != "_"}


@pytest.mark.parametrize(("name", "config"), [(UNET, UNETS["two stages"]), (VAE, VAES["two layers"])])
def test_files_both_ways(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    theirs, ours = _pair(name, config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    expected = theirs.state_dict()
    for library, folder in ((calotype, "theirs"), (diffusers, "ours")):
        loaded = getattr(library, name).from_pretrained(tmp_path / folder)
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
        assert _plain(loaded.config) == _plain(theirs.config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample": torch.zeros(2, 8, 4, 8, 12)}, "a sample"),
        ({"context": torch.zeros(1, 2, WIDTH)}, "a row for each video"),
        ({"numbers": torch.zeros(2, 4)}, "added_time_ids"),
    ],
)
def test_unet_refusals(changes: dict[str, torch.Tensor], words: str) -> None:
    model = calotype.UNetSpatioTemporalConditionModel(**UNETS["two stages"])
    sample, timestep, context, numbers = _inputs(model)
    given = {"sample": sample, "context": context, "numbers": numbers, **changes}
    with pytest.raises(InputError, match=words):
        model(given["sample"], timestep, given["context"], given["numbers"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"down_block_types": ("CrossAttnDownBlock2D", "DownBlockSpatioTemporal")}, "not for videos as"),
        ({"num_attention_heads": (2, 3)}, "3 attention heads"),
        ({"num_attention_heads": (2,)}, "num_attention_heads"),
        ({"block_out_channels": (32,)}, "block_out_channels"),
    ],
)
def test_unet_configurations_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calotype.UNetSpatioTemporalConditionModel(**{**UNETS["two stages"], **changes})


def test_autoencoder_refusals() -> None:
    model = calotype.AutoencoderKLTemporalDecoder(**VAES["two layers"])
    with pytest.raises(InputError, match="5 latents cannot be split into videos of 2"):
        model.decode(torch.zeros(5, 4, 8, 8), num_frames=2)
    with pytest.raises(InputError, match=r"decode takes a tensor \(batch, 4"):
        model.decode(torch.zeros(5, 3, 8, 8), num_frames=5)
    with pytest.raises(InputError, match=r"encode takes a tensor \(batch, 3"):
        model.encode(torch.zeros(1, 4, 8, 8))
