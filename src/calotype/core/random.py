"""Gaussian noise that is the same on every device for the same generator."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calotype.core.errors import InputError
from calotype.core.transfer import sent

Generators = torch.Generator | Sequence[torch.Generator] | None

HIGHEST_SEED = 2**63 - 1

UNSEEDED = threading.RLock()
"""Held while a device's own generator is drawn from, and by what must not be disturbed by that: capturing a graph."""


class PictureGenerators(list[torch.Generator]):
    """A generator for each picture, from which everything that is drawn for that picture comes."""


@dataclass(frozen=True)
class Seeds:
    """A seed for each picture of a batch: picture *i* has the seed ``first + i``.

    So picture *i* can be had again alone with ``Seeds(first + i)``. Raises ``InputError`` for what is no seed.
    """

    first: int

    def __post_init__(self) -> None:
        if (
            isinstance(self.first, bool)
            or not isinstance(self.first, int)
            or not 0 <= self.first <= HIGHEST_SEED
        ):
            raise InputError(f"A seed is a whole number from 0 to {HIGHEST_SEED}, not {self.first!r}.")

    def generators(self, count: int) -> PictureGenerators:
        """The generators of ``count`` pictures, on the CPU, where they draw the same numbers for every device."""
        last = Seeds(self.first + count - 1).first
        return PictureGenerators(torch.Generator().manual_seed(seed) for seed in range(self.first, last + 1))


def seeds(first: int) -> Seeds:
    """``generator=seeds(42)``: every picture has a generator of its own, seeded with 42, 43, …, in any pipeline."""
    return Seeds(first)


def aside(generator: Generators) -> Generators:
    """Generators for what is drawn beside: as determined as the given ones, which stay where they are."""
    if generator is None:
        return None
    if isinstance(generator, Sequence):
        return type(generator)([_aside(one) for one in generator])  # type: ignore[call-arg]
    return _aside(generator)


def _aside(generator: torch.Generator) -> torch.Generator:
    ahead = torch.Generator(generator.device)
    ahead.set_state(generator.get_state())
    seed = torch.randint(HIGHEST_SEED, (), generator=ahead, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))


def randn_tensor(
    shape: Sequence[int],
    generator: Generators = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Standard normal noise of ``shape``, drawn where the generator lives and then moved to ``device``.

    A list of generators draws one item of the batch each, so picture *i* depends on generator *i* alone.
    Raises ``InputError`` if a list of more than one generator does not match the batch size, and if a CUDA
    generator is asked for noise on another kind of device.
    """
    shape = tuple(int(n) for n in shape)
    target = torch.device(device) if device is not None else torch.device("cpu")
    layout = layout or torch.strided
    generators = list(generator) if isinstance(generator, Sequence) else None
    if generators is not None and len(generators) == 1:
        generator, generators = generators[0], None

    def draw(size: tuple[int, ...], source: torch.Generator | None) -> torch.Tensor:
        if source is None:
            with UNSEEDED:
                return torch.randn(size, device=target, dtype=dtype, layout=layout)
        where = source.device
        if where.type != target.type and where.type != "cpu":
            raise InputError(
                f"The generator lives on {where} but the noise is wanted on {target}: make the generator "
                f"there or on the CPU."
            )
        return sent(torch.randn(size, generator=source, device=where, dtype=dtype, layout=layout), target)

    if generators is not None:
        if len(generators) != shape[0]:
            raise InputError(
                f"There are {len(generators)} generators for a batch of {shape[0]}: give one generator, or one "
                f"for each picture."
            )
        return torch.cat([draw((1, *shape[1:]), source) for source in generators])
    return draw(shape, generator)  # type: ignore[arg-type]
