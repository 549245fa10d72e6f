"""The blocks of networks by their properties: shapes, filters, embeddings, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.activations import activation
from calotype.nn.embeddings import (
    GaussianFourierProjection,
    TimestepEmbedding,
    Timesteps,
    sinusoidal_embedding,
)
from calotype.nn.feed_forward import FeedForward
from calotype.nn.freeu import FreeU, apply_freeu, scale_low_frequencies
from calotype.nn.resampling import Downsample2D, Upsample2D, fir_downsample, fir_upsample
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.transformer import BasicTransformerBlock, SpatialTransformer


def test_sinusoids_are_those_of_the_paper() -> None:
    times = torch.tensor([0.0, 1.0, 999.0])
    actual = sinusoidal_embedding(times, 6, downscale_freq_shift=0)
    for row, t in zip(actual, times.tolist(), strict=True):
        angles = [t * 10000 ** (-i / 3) for i in range(3)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    flipped = Timesteps(6, flip_sin_to_cos=True, downscale_freq_shift=0)(times)
    assert torch.equal(flipped, actual.roll(3, dims=1))
    odd = sinusoidal_embedding(times, 7, downscale_freq_shift=0)
    assert odd.shape == (3, 7) and not odd[:, -1].any()


def test_times_are_a_vector() -> None:
    with pytest.raises(InputError, match=r"\(2, 1\)"):
        sinusoidal_embedding(torch.zeros(2, 1), 8)


def test_fourier_features_of_noise_levels_are_of_their_logarithm() -> None:
    layer = GaussianFourierProjection(4)
    plain = GaussianFourierProjection(4, log=False)
    plain.weight = layer.weight
    sigma = torch.tensor([0.1, 3.0])
    assert torch.equal(layer(sigma), plain(sigma.log()))
    assert not layer.weight.requires_grad


def test_a_condition_needs_a_projection() -> None:
    assert TimestepEmbedding(4, 8, cond_proj_dim=3)(torch.randn(2, 4), torch.randn(2, 3)).shape == (2, 8)
    with pytest.raises(InputError, match="time_cond_proj_dim"):
        TimestepEmbedding(4, 8)(torch.randn(2, 4), torch.randn(2, 3))


@pytest.mark.parametrize("boundary", ["zeros", "reflect"])
def test_filters_keep_the_mean_and_halve_or_double(boundary: str) -> None:
    x = torch.full((1, 3, 8, 6), 2.0)
    small, large = fir_downsample(x, boundary), fir_upsample(x, boundary)
    assert small.shape == (1, 3, 4, 3) and large.shape == (1, 3, 16, 12)
    for filtered in (small, large):
        inside = filtered[..., 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, 2.0))
    if boundary == "reflect":
        torch.testing.assert_close(small, torch.full_like(small, 2.0))


def test_upsampling_to_a_given_size() -> None:
    x = torch.randn(1, 4, 3, 5)
    assert Upsample2D(4)(x).shape == (1, 4, 6, 10)
    assert Upsample2D(4, use_conv=True, out_channels=6)(x, (7, 9)).shape == (1, 6, 7, 9)
    assert Upsample2D(4, use_conv_transpose=True)(x).shape == (1, 4, 6, 10)
    with pytest.raises(InputError, match="4 channels"):
        Upsample2D(4)(torch.randn(1, 5, 3, 5))


def test_downsampling_by_pooling_and_by_convolution() -> None:
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(Downsample2D(4)(x), nn.functional.avg_pool2d(x, 2))
    assert Downsample2D(4, use_conv=True, out_channels=8)(x).shape == (1, 8, 3, 3)
    at_the_end = Downsample2D(4, use_conv=True, padding=0)
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    assert torch.equal(at_the_end(x), at_the_end.conv(padded))
    with pytest.raises(InputError, match="use_conv=True"):
        Downsample2D(4, out_channels=8)


@pytest.mark.parametrize("norm", ["default", "scale_shift", "ada_group"])
@pytest.mark.parametrize("direction", [{}, {"up": True}, {"down": True}, {"up": True, "fir": "zeros"}])
def test_residual_blocks_read_the_embedding_and_change_the_resolution(norm: str, direction: dict) -> None:
    block = ResnetBlock2D(
        in_channels=8, out_channels=12, temb_channels=5, groups=4, time_embedding_norm=norm, **direction
    )
    x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    out = block(x, temb)
    side = 8 if direction.get("up") else 2 if direction.get("down") else 4
    assert out.shape == (2, 12, side, side)
    assert not torch.allclose(out, block(x, temb + 1))


def test_a_residual_block_that_scales_needs_an_embedding() -> None:
    block = ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, time_embedding_norm="scale_shift")
    with pytest.raises(InputError, match="time embedding"):
        block(torch.randn(1, 8, 4, 4))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"time_embedding_norm": "scaleshift"}, "'scaleshift'.*scale_shift"),
        ({"up": True, "down": True}, "not both"),
        ({"up": True, "fir": "mirror"}, "'mirror'"),
        ({"non_linearity": "swosh"}, "'swosh'.*silu"),
    ],
)
def test_residual_blocks_refuse_unknown_settings(settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ResnetBlock2D(in_channels=8, groups=4, **settings)


def test_activations_by_name() -> None:
    assert isinstance(activation("SiLU"), nn.SiLU) and isinstance(activation("swish"), nn.SiLU)
    for name in ("", "tanhh", None):
        with pytest.raises(InputError, match="activation"):
            activation(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["geglu", "gelu", "gelu-approximate", "geglu-approximate"])
def test_feed_forward_keys_and_shapes(kind: str) -> None:
    layer = FeedForward(6, dim_out=4, activation_fn=kind)
    assert layer(torch.randn(2, 3, 6)).shape == (2, 3, 4)
    width = 48 if kind == "geglu" else 24
    assert layer.net[0].proj.weight.shape == (width, 6) and layer.net[2].weight.shape == (4, 24)
    with pytest.raises(InputError, match="'glu'"):
        FeedForward(6, activation_fn="glu")


def test_transformers_leave_the_shape_and_read_the_context() -> None:
    torch.manual_seed(0)
    for linear in (True, False):
        model = SpatialTransformer(
            2, 4, 8, num_layers=2, norm_num_groups=4, cross_attention_dim=6, use_linear_projection=linear
        )
        x, context = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6)
        out = model(x, context)
        assert out.shape == x.shape and not torch.allclose(out, model(x, context + 1))


def test_double_self_attention_reads_no_context() -> None:
    block = BasicTransformerBlock(8, 2, 4, double_self_attention=True)
    assert block.attn2 is not None and not block.attn2.is_cross_attention
    assert block(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    assert BasicTransformerBlock(8, 2, 4).attn2 is None
    with pytest.raises(InputError, match="attention_type"):
        BasicTransformerBlock(8, 2, 4, attention_type="grounded")


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """The part of a picture at frequencies -1 and 0 of both axes, from the definition of the Fourier transform."""
    height, width = x.shape
    rows, columns = torch.arange(height), torch.arange(width)
    total = torch.zeros(height, width, dtype=torch.complex64)
    for u in {-1, 0}:
        for v in {-1, 0}:
            wave = torch.exp(2j * torch.pi * (u * rows[:, None] / height + v * columns / width))
            total += (x * wave.conj()).sum() * wave / (height * width)
    return total.real


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (2, 6)])
def test_freeu_scales_the_low_frequencies(size: tuple[int, int]) -> None:
    x = torch.randn(1, 1, *size)
    expected = x[0, 0] + (0.2 - 1) * low_pass(x[0, 0])
    torch.testing.assert_close(scale_low_frequencies(x, 0.2)[0, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scale_low_frequencies(x, 1.0), x)
    assert scale_low_frequencies(x.half(), 0.2).dtype == torch.float16


def test_freeu_amplifies_half_of_the_backbone() -> None:
    hidden, skip = torch.randn(1, 4, 4, 4), torch.randn(1, 2, 4, 4)
    before = hidden.clone()
    louder, same = apply_freeu(hidden, skip, (1.0, 1.5))
    torch.testing.assert_close(louder, torch.cat([1.5 * hidden[:, :2], hidden[:, 2:]], dim=1))
    torch.testing.assert_close(same, skip)
    assert torch.equal(hidden, before)
    factors = FreeU(s1=1, s2=2, b1=3, b2=4)
    assert [factors.of_stage(i) for i in range(3)] == [(1, 3), (2, 4), None]
