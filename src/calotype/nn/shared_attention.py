"""Attention shared between the pictures of a batch, so that all have the style of the first.

StyleAligned (https://arxiv.org/abs/2312.02133).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calotype.nn.attention import with_projections

if TYPE_CHECKING:
    from calotype.nn.attention import Attention

_PICTURES: ContextVar[tuple[int, bool] | None] = ContextVar("calotype_pictures_of_a_branch", default=None)


class TiedError(RuntimeError):
    """Some pictures of a batch were computed without the others, which they attend to."""


@contextmanager
def batch_of(pictures: int, whole: bool = True) -> Iterator[None]:
    """Within this, in this thread, every ``pictures`` rows of a batch are the pictures of one branch of guidance.

    They are all of these, or a part of them, which is an error (``TiedError``) where pictures see each other.
    """
    token = _PICTURES.set((pictures, whole))
    try:
        yield
    finally:
        _PICTURES.reset(token)


@dataclass(frozen=True)
class SharedAttnProcessor:
    """Self-attention in which every picture also sees the first one of its branch (section 3.2, eq. 2 to 4).

    ``adain_queries``, ``adain_keys`` and ``adain_values`` give them the first's mean and deviation over the pixels, for
    each channel. With ``full_attention_share`` all pictures see all. Scores of what is shared are multiplied by
    ``shared_score_scale``, and ``shared_score_shift`` is added.
    """

    share_attention: bool = True
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    full_attention_share: bool = False
    shared_score_scale: float = 1.0
    shared_score_shift: float = 0.0

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def mix(sequence: torch.Tensor) -> torch.Tensor:
            q, k, v = attn.project(sequence, encoder_hidden_states)
            count, whole = _PICTURES.get() or (len(q), True)
            if not whole:
                raise TiedError("Pictures that share attention cannot be computed in parts of a batch.")
            wanted = (self.adain_queries, self.adain_keys, self.adain_values)
            q, k, v = (as_first(t, count) if asked else t for t, asked in zip((q, k, v), wanted, strict=True))
            if not self.share_attention:
                return attn.attend(q, k, v, attention_mask)
            own, scale = k.shape[1], self.shared_score_scale
            if self.full_attention_share:
                k, v = _of_all(k, count, scale), _of_all(v, count, 1.0)
            else:
                k, v = _with_first(k, count, scale), _with_first(v, count, 1.0)
            return attn.attend(q, k, v, self._bias(attention_mask, k, own))

        return with_projections(attn, hidden_states, mix, temb)

    def _bias(self, mask: torch.Tensor | None, k: torch.Tensor, own: int) -> torch.Tensor | None:
        """What is added to the scores: the mask of the pixels, for those of other pictures too, and the shift."""
        if mask is not None:
            mask = mask.repeat(1, 1, k.shape[1] // own)
        if not self.shared_score_shift:
            return mask
        shift = k.new_zeros(1, 1, k.shape[1])
        shift[..., own:] = self.shared_score_shift
        return shift if mask is None else mask + shift


def as_first(x: torch.Tensor, count: int, eps: float = 1e-5) -> torch.Tensor:
    """AdaIN: ``x`` (branches·count, n, channels) with the mean and deviation over n of each branch's first."""
    variance, mean = torch.var_mean(x, dim=1, keepdim=True)
    deviation = (variance + eps).sqrt()
    return (x - mean) / deviation * _first(deviation, count) + _first(mean, count)


def _first(x: torch.Tensor, count: int) -> torch.Tensor:
    """Each branch's first, in the place of all of its ``count``."""
    return x[::count].repeat_interleave(count, dim=0)


def _with_first(x: torch.Tensor, count: int, scale: float) -> torch.Tensor:
    """(rows, n, channels) -> (rows, 2·n, channels): then the first's, ``scale`` times as large for the others."""
    first = _first(x, count)
    if scale != 1.0:
        others = torch.arange(len(x), device=x.device) % count != 0
        first = torch.where(others[:, None, None], first * scale, first)
    return torch.cat([x, first], dim=1)


def _of_all(x: torch.Tensor, count: int, scale: float) -> torch.Tensor:
    """(rows, n, channels) -> (rows, count·n, channels): each row's own, then those of the others of its branch."""
    branches = x.unflatten(0, (-1, count))
    turns = [branches] + [branches.roll(-step, dims=1) * scale for step in range(1, count)]
    return torch.cat(turns, dim=2).flatten(0, 1)
