"""Autoencoders against the reference: signatures, keys, numbers, over one table of configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder as TheirDecoder
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as TheirGaussian

import calotype
from calotype.core.errors import InputError
from calotype.models.gaussian import DiagonalGaussianDistribution
from calotype.models.vae import Decoder
from tests.parity.deviations import deviation

KL: dict[str, dict[str, Any]] = {
    "one block": {"block_out_channels": (32,)},
    "stable diffusion": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "sample_size": 32,
    },
    "attention in every block": {
        "down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        "block_out_channels": (8, 12),
        "norm_num_groups": 4,
        "sample_size": 16,
        "act_fn": "mish",
    },
    "sixteen latent channels, no quantisation layers": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1,
        "sample_size": 24,
    },
    "no attention, other channels": {
        "in_channels": 4,
        "out_channels": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 4),
        "norm_num_groups": 4,
        "latent_channels": 3,
        "mid_block_add_attention": False,
        "latents_mean": (0.0, 0.1, 0.2),
        "latents_std": (1.0, 1.1, 1.2),
        "sample_size": 16,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "taesd": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
    "two stages": {
        "encoder_block_out_channels": (8,) * 2,
        "decoder_block_out_channels": (6,) * 2,
        "num_encoder_blocks": (1, 2),
        "num_decoder_blocks": (2, 0),
        "act_fn": "gelu",
        "upsample_fn": "bilinear",
        "latent_channels": 16,
        "latent_magnitude": 5,
        "latent_shift": 0.25,
        "force_upcast": True,
    },
}


def _pair(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The reference's network with every parameter random, and ours with the same ones."""
    torch.manual_seed(7)
    theirs = getattr(diffusers, name)(**config).eval()
    for key, parameter in theirs.named_parameters():
        parameter.data.normal_(std=0.3 if parameter.ndim == 1 else 1.5 / parameter[0].numel() ** 0.5)
        if "norm" in key and key.endswith("weight"):
            parameter.data.add_(1)
    ours = getattr(calotype, name)(**config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.fixture(params=KL, scope="module")
def kl(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return _pair("AutoencoderKL", KL[request.param])


@pytest.fixture(params=TINY, scope="module")
def tiny(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return _pair("AutoencoderTiny", TINY[request.param])


def _picture(model: Any, height: int = 32, width: int = 40, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.rand(batch, model.config.in_channels, height, width) * 2 - 1


def _arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
@pytest.mark.parametrize(
    "method",
    [
        "__init__",
        "encode",
        "decode",
        "forward",
        "enable_tiling",
        "disable_tiling",
        "enable_slicing",
        "disable_slicing",
    ],
)
def test_signatures(name: str, method: str) -> None:
    ours, theirs = (getattr(getattr(library, name), method) for library in (calotype, diffusers))
    assert _arguments(ours) == _arguments(theirs)


def test_tiled_methods_have_the_same_arguments() -> None:
    for method in ("tiled_encode", "tiled_decode"):
        ours, theirs = (getattr(lib.AutoencoderKL, method) for lib in (calotype, diffusers))
        assert _arguments(ours) == _arguments(theirs)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_keys_and_config(name: str) -> None:
    for config in (KL if name == "AutoencoderKL" else TINY).values():
        theirs, ours = getattr(diffusers, name)(**config), getattr(calotype, name)(**config)
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
        mine = {k: v for k, v in ours.config.items() if not k.startswith("_")}
        expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
        assert mine == {k: tuple(v) if isinstance(v, list) else v for k, v in expected.items()}


@torch.no_grad()
def test_kl_encode_sample_decode(kl: tuple[Any, Any]) -> None:
    theirs, ours = kl
    x = _picture(ours)
    expected, found = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
    _close(found.parameters, expected.parameters)
    for value in ("mean", "logvar", "std", "var"):
        _close(getattr(found, value), getattr(expected, value))
    _close(found.mode(), expected.mode())
    _close(found.kl(), expected.kl())
    samples = [d.sample(torch.Generator().manual_seed(5)) for d in (found, expected)]
    _close(*samples)
    z = expected.mode()
    _close(ours.decode(z).sample, theirs.decode(z).sample)
    (moments,) = ours.encode(x, return_dict=False)
    assert torch.equal(moments.parameters, found.parameters)
    assert torch.equal(ours.decode(z, return_dict=False)[0], ours.decode(z).sample)


@torch.no_grad()
@pytest.mark.parametrize("sample_posterior", [False, True])
def test_kl_forward(kl: tuple[Any, Any], sample_posterior: bool) -> None:
    theirs, ours = kl
    x = _picture(ours)
    found, expected = (
        model(x, sample_posterior=sample_posterior, generator=torch.Generator().manual_seed(1)).sample
        for model in (ours, theirs)
    )
    _close(found, expected)


@torch.no_grad()
def test_kl_slicing(kl: tuple[Any, Any]) -> None:
    theirs, ours = kl
    x = _picture(ours, batch=3)
    theirs.enable_slicing(), ours.enable_slicing()
    _close(ours(x).sample, theirs(x).sample)
    theirs.disable_slicing(), ours.disable_slicing()
    assert not ours.use_slicing


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(40, 88), (64, 32), (72, 72)])
def test_kl_tiling(kl: tuple[Any, Any], height: int, width: int) -> None:
    theirs, ours = kl
    x = _picture(ours, height, width)
    whole = ours.encode(x).latent_dist.parameters
    theirs.enable_tiling(), ours.enable_tiling()
    found, expected = ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters
    _close(found, expected)
    assert not torch.equal(found, whole)
    z = whole.chunk(2, dim=1)[0].contiguous()
    _close(ours.decode(z).sample, theirs.decode(z).sample)
    _close(ours.tiled_decode(z).sample, theirs.tiled_decode(z).sample)
    small = x[:, :, :16, :16]
    assert torch.equal(ours.encode(small).latent_dist.mode(), ours.encode(small).latent_dist.mean)
    theirs.disable_tiling(), ours.disable_tiling()
    assert torch.equal(ours.encode(x).latent_dist.parameters, whole)


@torch.no_grad()
def test_kl_tiling_with_other_overlap() -> None:
    theirs, ours = _pair("AutoencoderKL", KL["stable diffusion"])
    for model in (theirs, ours):
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 48, 12, 0.5
    x = _picture(ours, 96, 60)
    _close(ours(x).sample, theirs(x).sample)


def test_kl_training_gradients_with_and_without_checkpointing(kl: tuple[Any, Any]) -> None:
    theirs, ours = kl
    x = _picture(ours, 16, 16)
    gradients = []
    for model, checkpointing in ((theirs, False), (ours, False), (ours, True)):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        model.zero_grad()
        posterior = model.encode(x).latent_dist
        (model.decode(posterior.mode()).sample.square().mean() + posterior.kl().mean()).backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
        model.eval()
    ours.disable_gradient_checkpointing()
    expected, plain, recomputed = gradients
    scale = max(gradient.abs().max() for gradient in expected.values())
    for key, gradient in expected.items():
        assert (plain[key] - gradient).abs().max() <= 1e-5 * scale
        assert (recomputed[key] - plain[key]).abs().max() <= 1e-6 * scale


@torch.no_grad()
def test_tiled_training_has_gradients() -> None:
    ours = calotype.AutoencoderKL(**KL["attention in every block"])
    ours.enable_tiling()
    with torch.enable_grad():
        ours.tiled_decode(torch.randn(1, 4, 12, 12)).sample.sum().backward()
    assert ours.decoder.conv_in.weight.grad is not None


@pytest.mark.parametrize("deterministic", [False, True])
def test_gaussian(deterministic: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 8, 4, 4) * 20
    ours = [DiagonalGaussianDistribution(p, deterministic) for p in (first, second / 10)]
    theirs = [TheirGaussian(p, deterministic) for p in (first, second / 10)]
    x = torch.randn(3, 4, 4, 4)
    torch.testing.assert_close(ours[1].kl(), theirs[1].kl())
    torch.testing.assert_close(ours[1].kl(ours[0]), theirs[1].kl(theirs[0]))
    torch.testing.assert_close(ours[1].nll(x), theirs[1].nll(x))
    torch.testing.assert_close(ours[1].nll(x, dims=[1]), theirs[1].nll(x, dims=[1]))
    torch.testing.assert_close(ours[0].std, theirs[0].std)


def test_each_generator_draws_for_its_own_item() -> None:
    parameters = torch.zeros(2, 8, 4, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = DiagonalGaussianDistribution(parameters).sample(generators)
    one = DiagonalGaussianDistribution(parameters[1:]).sample(torch.Generator().manual_seed(2))
    assert torch.equal(both[1:], one)


@torch.no_grad()
def test_decoder_with_spatial_norms() -> None:
    config = {
        "in_channels": 4,
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (32, 64),
        "norm_type": "spatial",
    }
    torch.manual_seed(2)
    theirs, ours = TheirDecoder(**config).eval(), Decoder(**config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    z, zq = torch.randn(2, 1, 4, 8, 8)
    _close(ours(z, zq), theirs(z, zq))


@torch.no_grad()
def test_tiny(tiny: tuple[Any, Any]) -> None:
    theirs, ours = tiny
    x = _picture(ours)
    expected = theirs.encode(x).latents
    _close(ours.encode(x).latents, expected)
    _close(ours.encode(x, return_dict=False)[0], expected)
    _close(ours.decode(expected).sample, theirs.decode(expected).sample)
    _close(ours.scale_latents(expected), theirs.scale_latents(expected))
    _close(ours.unscale_latents(expected), theirs.unscale_latents(expected))
    theirs.enable_slicing(), ours.enable_slicing()
    _close(ours.encode(x).latents, theirs.encode(x).latents)
    theirs.disable_slicing(), ours.disable_slicing()


@torch.no_grad()
def test_tiny_forward_rounds_to_bytes(tiny: tuple[Any, Any]) -> None:
    theirs, ours = tiny
    found, expected = ours(_picture(ours)).sample, theirs(_picture(ours)).sample
    # a latent on the edge between two bytes may fall to either side
    assert ((found - expected).abs() > 1e-5 * expected.abs().max()).float().mean() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("slicing", [False, True])
def test_tiny_tiling(slicing: bool) -> None:
    theirs, ours = _pair("AutoencoderTiny", TINY["taesd"])
    for model in (theirs, ours):
        model.enable_tiling()
        model.use_slicing = slicing
        model.tile_sample_min_size, model.tile_latent_min_size = 128, 16
    x = _picture(ours, 200, 152)
    latents = theirs.encode(x).latents
    _close(ours.encode(x).latents, latents)
    _close(ours.decode(latents).sample, theirs.decode(latents).sample)
    for model in (theirs, ours):
        model.disable_tiling()
    assert not torch.allclose(ours.encode(x).latents, latents, atol=1e-3)


@torch.no_grad()
def test_tiny_tiling_of_other_depths_and_small_tiles() -> None:
    """Where the reference's shapes do not match, tiles still join to about the whole picture."""
    torch.manual_seed(0)
    ours = calotype.AutoencoderTiny(**TINY["two stages"]).eval()
    x = _picture(ours, 100, 100)
    assert deviation("vae/AutoencoderTiny/tiling;two-stages")
    theirs = diffusers.AutoencoderTiny(**TINY["two stages"])
    theirs.enable_tiling()
    with pytest.raises(RuntimeError):
        theirs.encode(x)
    whole = ours.encode(x).latents
    ours.enable_tiling()
    ours.tile_sample_min_size = 78
    tiled = ours.encode(x).latents
    assert tiled.shape == whole.shape
    for corner in (slice(None, 20), slice(-4, None)):  # where no seam is in sight
        _close(tiled[..., corner, corner], whole[..., corner, corner])
    assert not torch.equal(tiled, whole)
    ours.tile_sample_min_size = 8
    assert ours.encode(x).latents.isfinite().all()


def test_tiny_checkpointing_changes_no_numbers() -> None:
    torch.manual_seed(0)
    ours = calotype.AutoencoderTiny(**TINY["taesd"]).train()
    x = _picture(ours, 16, 16)
    plain = ours.encode(x).latents
    ours.enable_gradient_checkpointing()
    assert torch.equal(ours.encode(x).latents, plain)
    assert deviation("vae/AutoencoderTiny/gradient-checkpointing")
    theirs = diffusers.AutoencoderTiny(**TINY["taesd"]).train()
    plain = theirs.encode(x).latents
    theirs.enable_gradient_checkpointing()
    assert not torch.allclose(theirs.encode(x).latents, plain)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"down_block_types": ("DownEncoderBlok2D",)}, "did you mean 'DownEncoderBlock2D'"),
        ({"up_block_types": ("CrossAttnUpBlock2D",)}, "no block of an autoencoder"),
        ({"block_out_channels": (32, 64)}, "down_block_types has 1 entries and block_out_channels 2"),
        ({"block_out_channels": (20,)}, "has 20, which norm_num_groups=32 does not divide"),
        ({"act_fn": "sinus"}, "no activation function 'sinus'"),
    ],
)
def test_kl_refuses(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calotype.AutoencoderKL(**config)


def test_refusals() -> None:
    with pytest.raises(InputError, match="must repeat one width"):
        calotype.AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 4))
    with pytest.raises(InputError, match="they must be as many"):
        calotype.AutoencoderTiny(num_decoder_blocks=(1, 1))
    with pytest.raises(
        InputError, match=r"decode takes a tensor \(batch, 4, height, width\), not \(1, 3, 8, 8\)"
    ):
        calotype.AutoencoderTiny().decode(torch.zeros(1, 3, 8, 8))
    ours = calotype.AutoencoderKL(**KL["one block"])
    with pytest.raises(InputError, match=r"encode takes a tensor \(batch, 3, height, width\)"):
        ours.encode(torch.zeros(3, 8, 8))
    ours.enable_tiling()
    ours.tile_sample_min_size = 1
    with pytest.raises(InputError, match="do not advance"):
        ours.encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_half_precision_runs(name: str) -> None:
    ours = getattr(calotype, name)(**(KL["stable diffusion"] if name == "AutoencoderKL" else TINY["taesd"]))
    ours = ours.to(torch.bfloat16).eval()
    ours.enable_tiling()
    ours.tile_sample_min_size, ours.tile_latent_min_size = 32, 32 // (4 if name == "AutoencoderKL" else 8)
    with torch.no_grad():
        picture = ours(_picture(ours, 64, 64).bfloat16()).sample
    assert picture.dtype == torch.bfloat16
    assert picture.shape == (2, 3, 64, 64)
    assert picture.isfinite().all()
