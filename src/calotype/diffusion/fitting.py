"""Batches that do not fit into the device's memory: computed in parts, with the same result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from calotype.core.memory import empty_cache
from calotype.diffusion.conditions import Conditions
from calotype.diffusion.controls.control import Residuals
from calotype.nn.shared_attention import TiedError

logger = logging.getLogger(__name__)

Compute = Callable[[torch.Tensor, Any], torch.Tensor]
"""(some rows of the stacked latents, what the denoiser is told of these) -> its output."""


class NotApart(Exception):
    """What a denoiser is told that is not known to concern each picture by itself."""


@dataclass
class Fitting:
    """Into how many parts the batch of a call is cut; more of them as memory turns out to be short."""

    parts: int = 1

    def predict(self, compute: Compute, latents: torch.Tensor, told: Any, branches: int) -> torch.Tensor:
        """``compute`` of all rows, ``branches`` times the pictures; what does not fit in one part is halved.

        The memory's error remains if a single picture does not fit, or the pictures are not independent.
        """
        pictures = len(latents) // branches
        short = torch.OutOfMemoryError()
        while True:
            try:
                return self._in_parts(compute, latents, told, pictures, branches)
            except TiedError:
                self.parts = 1
                raise short from None
            except torch.OutOfMemoryError as error:
                short = error.with_traceback(None)  # which holds what was computed
                if self.parts >= pictures:
                    raise
                try:
                    Rows(latents, branches).taken(told, 0, 1)
                except NotApart:
                    raise error from None
            # here, where the failed computation is let go
            empty_cache(latents.device)
            self.parts = min(2 * self.parts, pictures)
            logger.warning(
                "The denoiser's batch of %d pictures does not fit into the memory of %s; it is computed in %d parts.",
                pictures,
                latents.device,
                self.parts,
            )

    def _in_parts(
        self, compute: Compute, latents: torch.Tensor, told: Any, pictures: int, branches: int
    ) -> torch.Tensor:
        if self.parts == 1:
            return compute(latents, told)
        rows = Rows(latents, branches)
        out: torch.Tensor | None = None
        for part in range(self.parts):
            some = compute(rows.taken(latents, part, self.parts), rows.taken(told, part, self.parts))
            out = some.new_empty((len(latents), *some.shape[1:])) if out is None else out
            out[rows.index(part, self.parts).flatten()] = some
        assert out is not None
        return out


class Rows:
    """The rows of a batch in which the pictures stand once for each branch, branch by branch."""

    def __init__(self, latents: torch.Tensor, branches: int) -> None:
        self.all = torch.arange(len(latents), device=latents.device).view(branches, -1)

    def index(self, part: int, parts: int) -> torch.Tensor:
        """The rows (branches, pictures) of one of so many parts of the pictures."""
        return self.all.tensor_split(parts, dim=1)[part]

    def taken(self, value: Any, part: int, parts: int) -> Any:
        """``value`` with a part's rows of every tensor that has one for each row or picture; a single one is for all.

        Conditions, residuals, mappings, lists and tuples are gone through. Raises ``NotApart`` for a tensor of another
        length, and for objects that nothing is known about: they may tie the pictures together.
        """
        if isinstance(value, torch.Tensor):
            index = self.index(part, parts).to(value.device)
            if value.ndim and len(value) == self.all.numel():
                return value[index.flatten()]
            if value.ndim and len(value) == self.all.shape[1]:
                return value[index[0]]
            if value.ndim == 0 or len(value) == 1:
                return value
            raise NotApart
        if isinstance(value, Conditions | Residuals):
            named = {f.name: self.taken(getattr(value, f.name), part, parts) for f in fields(value)}
            return replace(value, **named)
        if isinstance(value, Mapping):
            return {name: self.taken(entry, part, parts) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            entries = [self.taken(entry, part, parts) for entry in value]
            if isinstance(value, list):
                return entries
            return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise NotApart


def pictures_of(vae: Any, latents: torch.Tensor, generator: Any) -> torch.Tensor:
    """What the autoencoder makes of scaled latents; what does not fit is decoded in halves, then in tiles."""
    try:
        return vae.decode(latents, return_dict=False, generator=generator)[0]
    except torch.OutOfMemoryError:
        if len(latents) == 1 and not _can_tile(vae, latents):
            raise
    empty_cache(latents.device)
    if len(latents) == 1:
        logger.warning(
            "A picture of %d x %d does not fit into the memory of %s at once; it is decoded in tiles.",
            *(side * vae.tile_sample_min_size // vae.tile_latent_min_size for side in latents.shape[-2:]),
            latents.device,
        )
        return vae.tiled_decode(latents, return_dict=False)[0]
    logger.warning(
        "Decoding %d pictures at once does not fit into memory; it is done in halves.", len(latents)
    )
    halves = latents.tensor_split(2)
    given = [generator] * 2
    if isinstance(generator, list) and len(generator) == len(latents):
        given = [generator[: len(halves[0])], generator[len(halves[0]) :]]
    return torch.cat([pictures_of(vae, half, one) for half, one in zip(halves, given, strict=True)])


def _can_tile(vae: Any, latents: torch.Tensor) -> bool:
    """Whether tiles would be smaller than the picture, and have not been tried."""
    if not hasattr(vae, "tiled_decode") or vae.use_tiling:
        return False
    return max(latents.shape[-2:]) > vae.tile_latent_min_size
