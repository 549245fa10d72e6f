"""Sequences in transformer blocks: products with matrices, and sums that are normalised where they are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from calotype.acceleration.layers import is_hooked, is_matrix
from calotype.acceleration.usable import Kernels
from calotype.nn.attention import Attention
from calotype.nn.feed_forward import FeedForward


@dataclass(frozen=True)
class Product:
    """Rows (…, depth) times a matrix (out, depth), and a bias: yet to be computed, with whatever reads it."""

    rows: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result: a sequence, as a tensor's shape."""
        return (*self.rows.shape[:-1], len(self.weight))


Addend = Tensor | Product | None
"""What is to be added to a sequence."""


class Sequences:
    """Products by the kernel where that is quicker, if ``own``, and otherwise by PyTorch's.

    What is no plain layer of PyTorch's, as one with an adapter, computes all itself.
    """

    def __init__(self, kernels: Kernels, own: bool) -> None:
        self.kernels, self.own = kernels, own

    def product(self, layer: nn.Module, rows: Tensor) -> Product | None:
        """A matrix, or a convolution of one pixel, of ``rows``; None if the layer is to compute it."""
        if self.own and is_matrix(layer):
            return Product(rows, layer.weight.flatten(1), layer.bias)  # type: ignore[operator, arg-type]
        return None

    def through(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """What a layer gives for ``rows``."""
        product = self.product(layer, rows)
        found: Tensor = layer(rows) if product is None else self.sum(None, product)
        return found

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product with a matrix."""
        return self.sum(None, Product(rows, weight, bias))

    def sum(self, h: Tensor | None, more: Addend) -> Tensor:
        """The sequence and what is to be added."""
        if isinstance(more, Product):
            h, more = self._computed(h, more)
        if h is None or more is None:
            assert h is not None or more is not None
            return more if h is None else h  # type: ignore[return-value]
        return h + more

    def _computed(self, h: Tensor | None, product: Product) -> tuple[Tensor | None, Tensor | None]:
        """A product that is added to a sequence: the sum, or both apart."""
        given = product.rows, product.weight, product.bias, h
        module = self.kernels.matrix_products
        if self.own and self.kernels.take(*given) and module.fit(*given):
            return module.fused(*given), None
        return h, F.linear(product.rows, product.weight, product.bias)

    def normalised(self, h: Tensor | None, more: Addend, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The sequence and what is to be added, and that normalised."""
        assert isinstance(norm, nn.LayerNorm)
        if isinstance(more, Product):
            h, more = self._computed(h, more)
        if h is None:
            assert more is not None
            h, more = more, None
        fits = self.kernels.take(h, more, norm.weight) and (more is None or more.dtype == h.dtype)
        layer_norm = self.kernels.layer_norm
        done: tuple[Tensor, Tensor] = (layer_norm.fused if fits else layer_norm.plain)(
            h, norm.weight, norm.bias, norm.eps, more
        )
        return done

    def merges(self, layer: Attention) -> bool:
        """Whether the last that a layer computes is a product, which may be left for later."""
        first, last = layer.to_out[0], layer.to_out[1]
        return (
            self.own
            and is_matrix(first)
            and not (layer.residual_connection or is_hooked(layer) or is_hooked(last) or _drops(last))
            and layer.rescale_output_factor == 1.0
        )

    def fed(self, layer: nn.Module, tokens: Tensor) -> Tensor | Product:
        """What a feed-forward network gives; its last product is left for later where that can be."""
        parts = list(layer.net) if type(layer) is FeedForward and not is_hooked(layer) else []
        if (
            self.own
            and len(parts) >= 3
            and layer.chunk_size is None
            and is_matrix(parts[2])
            and not any(_drops(part) or is_hooked(part) for part in (parts[1], *parts[3:]))
        ):
            return self.product(parts[2], parts[0](tokens))
        return layer(tokens)


def _drops(layer: nn.Module) -> bool:
    """Whether a layer is anything but dropout that does nothing."""
    return type(layer) is not nn.Dropout or (layer.training and layer.p > 0)
