"""The filter that came with Stable Diffusion: pictures near certain concepts in CLIP space are blackened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel

logger = logging.getLogger(__name__)

Images = TypeVar("Images", torch.Tensor, np.ndarray, Sequence[Any])

_CONCEPTS, _SPECIAL_CONCEPTS = 17, 3
_VIGILANCE = 0.01  # added to all scores of a picture that is near a special concept


def cosine_distance(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Cosines between rows: (n, d) and (m, d) -> (n, m)."""
    return F.normalize(image_embeds) @ F.normalize(text_embeds).T


class StableDiffusionSafetyChecker(PreTrainedModel):
    """A CLIP vision tower and the embeddings and thresholds of 17 concepts and 3 that make it more vigilant."""

    config_class = CLIPConfig
    main_input_name = "clip_input"
    _no_split_modules = ["CLIPEncoderLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"position_ids"]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width: int = config.projection_dim
        vision: Any = config.vision_config
        self.vision_model = CLIPVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.concept_embeds = _constant(_CONCEPTS, width)
        self.special_care_embeds = _constant(_SPECIAL_CONCEPTS, width)
        self.concept_embeds_weights = _constant(_CONCEPTS)
        self.special_care_embeds_weights = _constant(_SPECIAL_CONCEPTS)
        self.post_init()

    @torch.no_grad()
    def forward(self, clip_input: torch.Tensor, images: Images) -> tuple[Images, list[bool]]:
        """The images, those near a concept replaced by black ones, and which they were.

        ``clip_input`` (batch, 3, h, w) are the images as CLIP sees them; ``images`` is a tensor, an array or a
        list of either and is not changed.
        """
        flagged = self._near_a_concept(clip_input).tolist()
        if not any(flagged):
            return images, flagged
        logger.warning(
            "%d of %d pictures may be not safe for work and are replaced by black ones; try another prompt or seed.",
            sum(flagged),
            len(flagged),
        )
        checked = images.clone() if isinstance(images, torch.Tensor) else images.copy()  # type: ignore[attr-defined]
        for index, bad in enumerate(flagged):
            if bad:
                image = checked[index]
                black = torch.zeros_like(image) if isinstance(image, torch.Tensor) else np.zeros_like(image)
                checked[index] = black
        return checked, flagged

    def _near_a_concept(self, clip_input: torch.Tensor) -> torch.Tensor:
        """Whether each picture's score, rounded to three places, is above zero for some concept: (batch,)."""
        embeds = self.visual_projection(self.vision_model(clip_input).pooler_output)
        special = _excess(embeds, self.special_care_embeds, self.special_care_embeds_weights)
        vigilance = _VIGILANCE * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        scores = _excess(embeds, self.concept_embeds, self.concept_embeds_weights) + vigilance
        return (scores.round(decimals=3) > 0).any(dim=1)


def _excess(embeds: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """How far the similarities to concepts are above their thresholds: (batch, concepts), float32."""
    return cosine_distance(embeds, concepts).float() - thresholds.float()


def _constant(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape), requires_grad=False)
