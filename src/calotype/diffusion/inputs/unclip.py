"""What is said of the samplings of unCLIP: the prior's, the decoder's and the enlarging one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument
from calotype.diffusion.inputs.exchange import StepCallback


@dataclass(frozen=True)
class PriorWay(Inputs):
    """The prior's path from noise to embedding."""

    prior_num_inference_steps: int = argument(25, "Denoising steps of the prior.")
    prior_guidance_scale: float = argument(4.0, "How strongly the prior follows the prompt.")
    prior_latents: torch.Tensor | None = argument(
        None, "Standard normal noise (batch, channels) for the prior to start from."
    )
    prior_callback_on_step_end: StepCallback | None = argument(
        None, "As callback_on_step_end, between the steps of the prior."
    )
    prior_callback_on_step_end_tensor_inputs: Sequence[str] | None = argument(
        ("latents",), "The names of the prior's tensors that its callback wants to see."
    )


@dataclass(frozen=True)
class DecoderWay(Inputs):
    """The decoder's path from noise to a small picture."""

    decoder_num_inference_steps: int = argument(25, "Denoising steps of the decoder.")
    decoder_guidance_scale: float = argument(
        8.0, "How strongly the decoder follows the prompt and the embedding."
    )
    decoder_latents: torch.Tensor | None = argument(
        None, "Standard normal noise for the decoder to start from."
    )


@dataclass(frozen=True)
class SuperResolutionWay(Inputs):
    """The path of what enlarges the small picture."""

    super_res_num_inference_steps: int = argument(
        7, "Denoising steps while enlarging; the last one has its own model."
    )
    super_res_latents: torch.Tensor | None = argument(
        None, "Standard normal noise for the enlarged picture to start from."
    )


@dataclass(frozen=True)
class ReadText(Inputs):
    """What the text encoder gave, in place of texts."""

    text_model_output: Any = argument(
        None, "Texts as the text encoder gave them, (embeddings, states of the tokens), in place of prompt."
    )
    text_attention_mask: torch.Tensor | None = argument(
        None, "1 or True for the tokens of text_model_output that are no padding, (batch, tokens)."
    )

    def __post_init__(self) -> None:
        if (self.text_model_output is None) != (self.text_attention_mask is None):
            raise InputError("text_model_output and text_attention_mask go together; give both or neither.")

    @property
    def output(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Embeddings, states and mask, if they were given."""
        if self.text_model_output is None or self.text_attention_mask is None:
            return None
        return self.text_model_output[0], self.text_model_output[1], self.text_attention_mask.bool()


@dataclass(frozen=True)
class Seen(Inputs):
    """Pictures as CLIP's vision model sees them."""

    image_embeds: torch.Tensor | None = argument(
        None, "CLIP's embeddings of pictures (batch, channels), in place of image."
    )
    image_embeddings: torch.Tensor | None = argument(
        None, "CLIP's embeddings of pictures (batch, channels), in place of image."
    )
