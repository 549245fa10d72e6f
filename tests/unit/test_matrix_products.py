"""Products with what is added to them, and layer norms: what computes which, and what blocks leave for later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from calotype.acceleration.kernels import layer_norm, matrix_products
from calotype.nn.replaceable import replaced
from calotype.nn.transformer import SpatialTransformer
from tests.fake_kernels import Fake
from tests.tiny import randomise

PROCESSORS = 132  # of an H200


@pytest.mark.parametrize(
    ("rows", "out", "depth", "fits"),
    [
        (2048, 1280, 1280, True), (2048, 3840, 1280, True), (8192, 320, 320, True), (65536, 960, 320, True),
        (2048, 640, 640, False), (512, 1280, 1280, False), (2048, 1280, 1312, False), (2048, 1344, 1280, False),
        (2048, 1280, 64, False), (0, 1280, 1280, False), (1700, 1280, 1280, True), (1400, 1280, 1280, False),
    ],
)  # fmt: skip
def test_products_that_fill_the_device(rows: int, out: int, depth: int, fits: bool) -> None:
    assert matrix_products.divisible(rows, out, depth, PROCESSORS) == fits


def test_products_of_other_forms_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_products, "in_cuda", lambda device: True)
    monkeypatch.setattr(matrix_products, "shared_memory", lambda device: 227 * 1024)
    monkeypatch.setattr(matrix_products, "processors", lambda device: PROCESSORS)

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16)

    fit = matrix_products.fit
    x, weight, bias, other = numbers(2, 4096, 320), numbers(320, 320), numbers(320), numbers(2, 4096, 320)
    deep, wide = numbers(2, 4096, 2560), numbers(320, 2560)
    assert fit(x, weight) and fit(x, weight, bias, other) and fit(x, numbers(320, 640), bias, beside=x)
    assert fit(deep, wide, bias, other) and not fit(deep, wide, bias)
    for given in (
        (x.float(), weight.float(), bias.float()),
        (x, weight.half(), bias),
        (x.transpose(0, 1), weight, bias),
        (x[..., :256], weight[:, :256].contiguous(), bias),
        (x, weight, bias, other[:1]),
        (x, weight, bias, None, x),
        (x, weight, bias.expand(2, -1).T.contiguous()[:, 0]),
        (numbers(1 + 2 * 4096 * 320)[1:].view(2, 4096, 320), weight),
    ):
        assert not fit(*given)
    monkeypatch.setattr(matrix_products, "shared_memory", lambda device: 200 * 1024)
    assert not fit(x, weight)


@pytest.mark.parametrize(
    ("width", "lanes", "vectors"),
    [(320, 8, 5), (640, 16, 5), (1280, 32, 5), (768, 32, 3), (2048, 32, 8), (40, 1, 5), (8, 1, 1)],
)
def test_threads_share_a_row(width: int, lanes: int, vectors: int) -> None:
    assert layer_norm.shared(width) == (lanes, vectors)


def transformer(**options: Any) -> SpatialTransformer:
    made = SpatialTransformer(2, 16, 32, num_layers=2, norm_num_groups=8, cross_attention_dim=24, **options)
    return randomise(made).eval()


def dropping(module: SpatialTransformer) -> None:
    module.transformer_blocks[0].ff.net[1].p = 0.5
    module.transformer_blocks[0].ff.net[1].train()
    torch.manual_seed(0)


CHANGES: dict[str, tuple[Callable[[SpatialTransformer], Any], int]] = {
    "nothing": (lambda module: None, 0),
    "an output is no plain layer": (
        lambda module: module.transformer_blocks[0].attn2.to_out.__setitem__(
            0, nn.Sequential(module.transformer_blocks[0].attn2.to_out[0])
        ),
        1,
    ),
    "an attention is hooked": (
        lambda module: module.transformer_blocks[1].attn1.register_forward_hook(lambda *given: None), 1,
    ),
    "an attention divides": (
        lambda module: setattr(module.transformer_blocks[1].attn1, "rescale_output_factor", 2.0), 1,
    ),
    "a network works in parts": (
        lambda module: [setattr(module.transformer_blocks[0].ff, "chunk_size", 2),
                        setattr(module.transformer_blocks[0].ff, "chunk_dim", 1)], 1,
    ),
    "a network drops": (dropping, 1),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_layer_finds_is_added_in_its_product(fake: Fake, change: str, linear: bool) -> None:
    """Of two blocks with three layers each, and before the map that the last product is added to."""
    module = transformer(use_linear_projection=linear)
    made, fewer = CHANGES[change]
    made(module)
    x, context = torch.randn(2, 32, 6, 4).contiguous(memory_format=torch.channels_last), torch.randn(2, 5, 24)
    state = torch.get_rng_state()
    right = module(x, context)
    for options, sums in (({}, 7 - fewer), ({"products": False}, 0)):
        fake.seen.clear()
        torch.set_rng_state(state)
        with replaced(fake.stand_ins(**options).table):
            found = module(x, context)
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert fake.seen.count("product other") == sums
        assert ("product" in fake.seen) == ("products" not in options)


@torch.no_grad()
def test_a_layer_gives_a_tensor_to_whoever_else_calls_it(fake: Fake) -> None:
    attention = transformer().transformer_blocks[0].attn1
    tokens = torch.randn(2, 6, 32)
    right = attention(tokens)
    with replaced(fake.stand_ins().table):
        torch.testing.assert_close(attention(tokens), right)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)
