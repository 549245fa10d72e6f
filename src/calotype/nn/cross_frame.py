"""Attention across frames (https://arxiv.org/abs/2303.13439, section 3.3.2): all frames of a video see the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from calotype.nn.attention import Attention


@dataclass(frozen=True)
class CrossFrame:
    """Of the batch so many ``frames`` in a row are a video, whose pixels attend to those of its first frame.

    It goes with a call, as ``cross_attention_kwargs={"cross_frame": …}``, and changes nothing in the model.
    """

    frames: int

    def concerns(self, layer: Attention, hidden_states: torch.Tensor, context: torch.Tensor | None) -> bool:
        """Whether this is attention among the tokens of a frame."""
        return context is None and hidden_states.ndim == 3 and self.frames > 1

    def attend(
        self, layer: Attention, hidden_states: torch.Tensor, mask: torch.Tensor | None, **arguments: Any
    ) -> torch.Tensor:
        """``layer`` of (videos·frames, n, channels): the queries of all frames on the first one's keys and values."""
        videos = hidden_states.unflatten(0, (-1, self.frames))
        if mask is not None and len(mask) == len(hidden_states):
            mask = mask[:: self.frames]
        seen = layer(
            videos.flatten(1, 2), encoder_hidden_states=videos[:, 0], attention_mask=mask, **arguments
        )
        return seen.unflatten(1, (self.frames, -1)).flatten(0, 1)
