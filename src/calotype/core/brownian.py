"""Brownian motion along noise levels: the noise of a step depends on its ends alone, not on the steps before it.

A run with more steps so refines the path of a run with fewer. The path is the dyadic tree with the seeds of the
package `torchsde` (Li et al., arXiv:2001.01328, section 4), which others use for this: the same seed, the same noise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError

DIGITS = 6
"""Times are rounded to so many decimal digits, which bounds the depth of the tree."""
REMEMBERED = 64
"""How many nodes of a tree are kept, each as the increments of its halves, in case that the next query needs them."""


class BrownianPath:
    """W on [``low``, ``high``] of the shape, dtype and device of ``like``, determined by its seed."""

    def __init__(self, like: Tensor, low: float, high: float, seed: int) -> None:
        self._like, self._seed = torch.empty_like(like, device="meta"), seed
        self._device = like.device
        self._low, self._high = round(low, DIGITS), round(high, DIGITS)
        self._kept: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()
        sequence = np.random.SeedSequence(entropy=seed, pool_size=24)
        self._total = self._normal(sequence) * math.sqrt(high - low)

    def _normal(self, sequence: np.random.SeedSequence) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(int(sequence.generate_state(1)[0]))
        like = self._like
        return torch.randn(like.shape, dtype=like.dtype, device=self._device, generator=generator)

    def increment(self, start: float, end: float) -> Tensor:
        """W(``end``) − W(``start``) for start < end, clamped to the interval."""
        start, end = (min(max(round(t, DIGITS), self._low), self._high) for t in (start, end))
        if start >= end:
            return torch.zeros(self._like.shape, dtype=self._like.dtype, device=self._device)
        return self._between(start, end, self._low, self._high, self._total, (0, 0))

    def _between(
        self, start: float, end: float, low: float, high: float, total: Tensor, node: tuple[int, int]
    ) -> Tensor:
        """The increment over part of the ``node`` [``low``, ``high``], whose own is ``total``, by Lévy's bridge."""
        if start == low and end == high:
            return total
        middle = round(0.5 * (high + low), DIGITS)
        left, right, span = middle - low, high - middle, high - low
        if node not in self._kept:
            sequence = np.random.SeedSequence(entropy=self._seed, spawn_key=node, pool_size=24)
            spread = math.sqrt(left * right / span)
            half = torch.add(total * (left / span), self._normal(sequence), alpha=spread)
            self._kept[node] = (half, total - half)
            if len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        first, second = self._kept[node]
        key, depth = node
        parts = []
        if start < middle:
            parts.append(self._between(start, min(end, middle), low, middle, first, (2 * key, depth + 1)))
        if end > middle:
            rest = (2 * key + 1, depth + 1)
            parts.append(self._between(max(start, middle), end, middle, high, second, rest))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


class BrownianNoise:
    """Standard normal noise of steps down from one level to another; a list of seeds gives each item its own path."""

    def __init__(
        self, like: Tensor, low: float, high: float, seed: int | Sequence[int] | None = None
    ) -> None:
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []))
        self._batched = isinstance(seed, Sequence)
        if isinstance(seed, Sequence):
            if len(seed) != len(like):
                raise InputError(
                    f"There are {len(seed)} seeds for a batch of {len(like)}: give one seed, or one for each item."
                )
            self._paths = [BrownianPath(like[0], low, high, int(s)) for s in seed]
        else:
            self._paths = [BrownianPath(like, low, high, int(seed))]

    def __call__(self, level: float, following: float) -> Tensor:
        """The noise of the step from ``level`` to ``following``."""
        low, high = sorted((level, following))
        sign = 1.0 if level < following else -1.0
        scale = sign / math.sqrt(high - low)
        steps = [path.increment(low, high) * scale for path in self._paths]
        return torch.stack(steps) if self._batched else steps[0]
