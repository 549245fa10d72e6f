"""Convolutions in blocks: each with its bias and what is added to it, in as few passes as the device allows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calotype.acceleration.layers import as_sequence, is_matrix, is_plain, is_simple, on_sequence
from calotype.acceleration.usable import Kernels


class Convolutions:
    """Convolutions by the kernel where it is quicker, if ``own``, and otherwise by PyTorch's; so ``products``.

    What is no plain layer of PyTorch's, as one with an adapter, computes all itself.
    """

    def __init__(self, kernels: Kernels, own: bool, products: bool) -> None:
        self.kernels, self.own, self.products = kernels, own, products

    def added(self, conv: nn.Module, x: Tensor, other: Tensor | None, more: Tensor | None = None) -> Tensor:
        """The convolution with its bias, + a map ``other`` + a bias ``more`` (channels,)."""
        module = self.kernels.convolutions
        if (
            more is None
            and (weights := self._weights(conv, x)) is not None
            and module.fit(x, *weights, other)
        ):
            found: Tensor = module.fused(x, *weights, other)
            return found
        h, bias = self.without_bias(conv, x)
        if other is None and bias is None and more is None:
            return h
        pointwise = self.kernels.pointwise
        fits = self.kernels.take(h, other, bias, more) and (other is None or h.dtype == other.dtype)
        summed: Tensor = (pointwise.residual if fits else pointwise.plain_residual)(h, other, bias, more)
        return summed

    def without_bias(self, conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A convolution's result without its bias, and the bias, if it is one that can be added later."""
        if not is_plain(conv, nn.Conv2d):
            return conv(x), None
        assert isinstance(conv, nn.Conv2d)
        weights, module = self._weights(conv, x), self.kernels.convolutions
        if weights is not None and module.fit(x, weights[0]):
            return module.fused(x, weights[0]), conv.bias
        if conv.bias is None:
            return conv(x), None
        return conv._conv_forward(x, conv.weight, None), conv.bias

    def shortcut(
        self, conv: nn.Module, x: Tensor, beside: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The same of a convolution of one pixel; in 16 bits it is a matrix product, which takes the bias along.

        ``beside`` has the channels that follow those of ``x``, where :meth:`take_joined` says so.
        """
        if beside is not None:
            return self.shortcut_of_joined(conv, x, beside), None
        if _is_product(conv, x):
            size = x.shape[2:]
            return on_sequence(conv, as_sequence(x), size).transpose(1, 2).unflatten(2, size), None
        return self.without_bias(conv, x)

    def take_joined(self, conv: nn.Module | None, x: Tensor, beside: Tensor) -> bool:
        """Whether the shortcut is computed of these two maps as one of all their channels."""
        return (
            self.products
            and self.kernels.take(x, beside)
            and isinstance(conv, nn.Conv2d)
            and _is_product(conv, x, beside)
            and x.dtype == beside.dtype
            and (len(x), x.shape[2:]) == (len(beside), beside.shape[2:])
            and self.kernels.matrix_products.fit(
                as_sequence(x), conv.weight.flatten(1), conv.bias, beside=as_sequence(beside)
            )
        )

    def shortcut_of_joined(self, conv: nn.Module, x: Tensor, beside: Tensor) -> Tensor:
        """The convolution of one pixel, with its bias, of ``x`` with the channels of ``beside`` after its own."""
        assert isinstance(conv, nn.Conv2d)
        size, weight = x.shape[2:], conv.weight.flatten(1)
        x, beside = as_sequence(x), as_sequence(beside)
        product: Tensor = self.kernels.matrix_products.fused(x, weight, conv.bias, beside=beside)
        return product.transpose(1, 2).unflatten(2, size)

    def _weights(self, conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias, where the kernel is on and may compute such a layer."""
        if (
            self.own
            and is_plain(conv, nn.Conv2d)
            and is_simple(conv, (3, 3), (1, 1))
            and self.kernels.take(x, conv.weight, conv.bias)  # type: ignore[arg-type]
        ):
            return conv.weight, conv.bias  # type: ignore[return-value]
        return None


def _is_product(conv: nn.Module | None, *maps: Tensor) -> bool:
    """Whether this convolution is a product of matrices that these maps are as they lie, in 16 bits."""
    return (
        all(one.dtype in (torch.float16, torch.bfloat16) for one in maps)
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in maps)
        and isinstance(conv, nn.Conv2d)
        and is_matrix(conv)
    )
