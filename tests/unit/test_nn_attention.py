"""Attention against the formula, its masks, its processors."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.attention import Attention, AttnProcessor


def made(seed: int = 0, **settings) -> Attention:
    torch.manual_seed(seed)
    return Attention(**{"query_dim": 12, "heads": 3, "dim_head": 4, **settings}).eval()


def by_formula(layer: Attention, x: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | float = 0.0):
    """softmax(Q Kᵀ / √d + bias) V, head by head."""
    out = []
    for head in range(layer.heads):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (
            nn.functional.linear(source, part.weight[rows], None if part.bias is None else part.bias[rows])
            for source, part in ((x, layer.to_q), (context, layer.to_k), (context, layer.to_v))
        )
        out.append((q @ k.transpose(1, 2) * layer.scale + bias).softmax(-1) @ v)
    return layer.to_out[0](torch.cat(out, dim=-1))


@pytest.mark.parametrize("scale_qk", [True, False])
def test_self_attention_is_the_formula(scale_qk: bool) -> None:
    layer, x = made(scale_qk=scale_qk), torch.randn(2, 5, 12)
    assert layer.scale == (0.5 if scale_qk else 1.0)
    torch.testing.assert_close(layer(x), by_formula(layer, x, x))


def test_cross_attention_with_a_mask_is_the_formula() -> None:
    layer, x, context = made(cross_attention_dim=7, bias=True), torch.randn(2, 5, 12), torch.randn(2, 6, 7)
    bias = torch.zeros(2, 1, 6)
    bias[0, 0, 2:] = -10000.0
    actual = layer(x, encoder_hidden_states=context, attention_mask=bias)
    torch.testing.assert_close(actual, by_formula(layer, x, context, bias))
    torch.testing.assert_close(actual[:1], layer(x[:1], encoder_hidden_states=context[:1, :2]))


def test_pixels_are_a_sequence() -> None:
    layer = made(norm_num_groups=3, residual_connection=True, rescale_output_factor=2.0)
    x = torch.randn(2, 12, 3, 5)
    normed = layer.group_norm(x).flatten(2).transpose(1, 2)
    inner = by_formula(layer, normed, normed).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(layer(x), (x + inner) / 2)
    sequence = layer(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(sequence.transpose(1, 2).unflatten(2, (3, 5)), layer(x))


def test_added_keys_stand_before_the_pixels_own() -> None:
    layer, x, context = made(added_kv_proj_dim=7, bias=True), torch.randn(2, 12, 2, 3), torch.randn(2, 4, 7)
    hidden = torch.zeros(2, 1, 4)
    hidden[:, :, 1:] = -10000.0
    actual = layer(x, encoder_hidden_states=context, attention_mask=hidden)
    torch.testing.assert_close(actual, layer(x, encoder_hidden_states=context[:, :1]))
    sequence = x.flatten(2).transpose(1, 2)
    k = torch.cat([layer.add_k_proj(context), layer.to_k(sequence)], dim=1)
    v = torch.cat([layer.add_v_proj(context), layer.to_v(sequence)], dim=1)
    expected = layer.to_out[0](layer.attend(layer.to_q(sequence), k, v))
    torch.testing.assert_close(
        layer(x, encoder_hidden_states=context), x + expected.transpose(1, 2).unflatten(2, (2, 3))
    )


@torch.no_grad()
@pytest.mark.parametrize("context_dim", [None, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_projections_change_neither_numbers_nor_keys(context_dim: int | None, bias: bool) -> None:
    layer, x = made(cross_attention_dim=context_dim, bias=bias), torch.randn(2, 5, 12)
    context = None if context_dim is None else torch.randn(2, 6, 7)
    expected, keys = layer(x, encoder_hidden_states=context), set(layer.state_dict())
    layer.fuse_projections()
    assert layer.fused_weight is not None
    torch.testing.assert_close(layer(x, encoder_hidden_states=context), expected)
    assert set(layer.state_dict()) == keys
    layer.to(torch.float64)
    assert layer.fused_weight.dtype == torch.float64
    layer.unfuse_projections()
    assert layer.fused_weight is None


@torch.no_grad()
def test_self_attention_fused_still_reads_a_context() -> None:
    layer, x, context = made(bias=True), torch.randn(2, 5, 12), torch.randn(2, 3, 12)
    expected = layer(x, encoder_hidden_states=context)
    layer.fuse_projections()
    torch.testing.assert_close(layer(x, encoder_hidden_states=context), expected)


def test_fused_weights_follow_what_is_loaded() -> None:
    layer, other, x = made(), made(), torch.randn(2, 5, 12)
    nn.init.normal_(other.to_v.weight)
    layer.fuse_projections()
    with torch.no_grad():
        before = layer(x)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), other(x))
        assert not torch.allclose(layer(x), before)


def test_fused_weights_are_left_aside_where_they_would_not_be_right() -> None:
    layer, x = made(), torch.randn(2, 5, 12)
    layer.fuse_projections()
    layer(x).sum().backward()
    assert layer.to_k.weight.grad.abs().max() > 0

    class Adapted(nn.Linear):
        """A projection with something added, as adapters do."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1.0

    expected = layer(x)
    layer.to_v.__class__ = Adapted
    with torch.no_grad():
        assert not torch.allclose(layer(x), expected)
        layer.unfuse_projections()
        layer.fuse_projections()
        assert layer.fused_weight is None


class Doubled(nn.Module):
    """A processor with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, extra=0.0):
        return self.gain * hidden_states + extra


def test_a_processor_with_weights_is_part_of_the_layer_until_it_is_replaced() -> None:
    layer, x = made(), torch.randn(2, 5, 12)
    plain = set(layer.state_dict())
    layer.set_processor(Doubled())
    assert set(layer.state_dict()) == plain | {"processor.gain"}
    assert torch.equal(layer(x, extra=1.0), 2 * x + 1)
    layer.set_processor(layer.default_processor())
    assert set(layer.state_dict()) == plain and isinstance(layer.get_processor(), AttnProcessor)
    torch.testing.assert_close(layer(x), by_formula(layer, x, x))


def test_arguments_that_no_processor_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    layer, x = made(), torch.randn(2, 5, 12)
    with caplog.at_level(logging.WARNING, logger="calotype"):
        out = layer(x, strength=3)
    assert "strength" in caplog.text and "AttnProcessor" in caplog.text
    assert torch.equal(out, layer(x))


def test_helpers_of_handwritten_processors_agree_with_the_layer() -> None:
    layer, x = made(), torch.randn(2, 5, 12)
    q, k, v = (layer.head_to_batch_dim(t) for t in (layer.to_q(x), layer.to_k(x), layer.to_v(x)))
    assert q.shape == (6, 5, 4) and layer.head_to_batch_dim(x, out_dim=4).shape == (2, 3, 5, 4)
    mask = layer.prepare_attention_mask(torch.zeros(2, 1, 5), 5, 2)
    assert mask.shape == (6, 1, 5)
    probabilities = layer.get_attention_scores(q, k, mask)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6, 5))
    out = layer.to_out[0](layer.batch_to_head_dim(probabilities @ v))
    torch.testing.assert_close(out, layer(x))


@pytest.mark.parametrize("kind", ["layer_norm", "group_norm"])
def test_the_context_is_normalised(kind: str) -> None:
    layer = made(cross_attention_dim=8, cross_attention_norm=kind, cross_attention_norm_num_groups=2)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 6, 8)
    torch.testing.assert_close(layer(x, context), layer(x, 3 * context + 1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"only_cross_attention": True}, "added_kv_proj_dim"),
        ({"heads": 0}, "at least one head"),
        ({"cross_attention_norm": "batch_norm"}, "'batch_norm'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made(**settings)
