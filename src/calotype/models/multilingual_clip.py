"""The text encoder of Kandinsky 2.1: XLM-RoBERTa taught to land where CLIP's text encoder does.

Multilingual-CLIP, https://aclanthology.org/2022.lrec-1.739.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, XLMRobertaConfig, XLMRobertaModel


class MCLIPConfig(XLMRobertaConfig):
    """XLM-RoBERTa's configuration and the widths of its states and of CLIP's space, under their names in files."""

    model_type = "M-CLIP"

    def __init__(self, transformerDimSize: int = 1024, imageDimSize: int = 768, **kwargs: Any) -> None:
        self.transformerDimensions = transformerDimSize
        self.numDims = imageDimSize
        super().__init__(**kwargs)


class MultilingualCLIP(PreTrainedModel):
    """Texts in a hundred languages as vectors in CLIP's space, and their tokens' states."""

    config_class = MCLIPConfig
    _keys_to_ignore_on_load_unexpected = [r"position_ids"]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = XLMRobertaModel(config)
        self.LinearTransformation = nn.Linear(config.transformerDimensions, config.numDims)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts' vectors (batch, numDims) and their tokens' states (batch, tokens, transformerDimensions).

        A vector is made of the mean over the tokens for which ``attention_mask`` has 1.
        """
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        seen = attention_mask[:, :, None].to(states.dtype)
        return self.LinearTransformation((states * seen).sum(dim=1) / seen.sum(dim=1)), states
