"""Kandinsky 3: texts to pictures without a prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from calotype.diffusion.inputs import Prompt, TextMasks
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.kandinsky_3 import Kandinsky3
from calotype.pipelines.adapters import Adapters, SavesLora
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor

_EMBEDS = (
    "prompt_embeds negative_prompt_embeds attention_mask negative_attention_mask output_type return_dict "
)
_LAST = "callback_on_step_end callback_on_step_end_tensor_inputs"


def encoding(cut: bool) -> Callable[..., Any]:
    """An ``encode_prompt`` that leaves out padding by default, or does not."""

    @torch.no_grad()
    def encode_prompt(
        self: Any,
        prompt: str | list[str] | None,
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | str | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        _cut_context: bool = cut,
        attention_mask: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Embeddings of prompt and negative prompt (pictures, tokens, channels), then their masks (pictures, tokens).

        With ``_cut_context`` what is padding in all prompts is left out.
        """
        subject = Prompt(
            prompt, negative_prompt, num_images_per_prompt, prompt_embeds, negative_prompt_embeds
        )
        masks = TextMasks(attention_mask, negative_attention_mask)
        masks.check(subject)
        family: Any = self.bound_family()
        place = torch.device(device or self._execution_device)
        cond, uncond = family.embed(subject, masks, do_classifier_free_guidance, place, _cut_context)
        if uncond is None:
            return cond.states, None, cond.mask, None
        return cond.states, uncond.states, cond.mask, uncond.mask

    return encode_prompt


class Kandinsky3Base(Adapters, SavesLora, DiffusionPipeline):
    """What the pipelines of Kandinsky 3 share; abstract."""

    family = Kandinsky3
    __init__ = constructor(Kandinsky3)


class Kandinsky3Pipeline(Kandinsky3Base):
    """Text to image."""

    task = FromNoise()
    encode_prompt = encoding(cut=False)
    model_cpu_offload_seq = "text_encoder->unet->movq"
    __call__ = call(
        "prompt num_inference_steps guidance_scale negative_prompt num_images_per_prompt height width generator "
        + _EMBEDS + "latents " + _LAST,
        output=ImagePipelineOutput,
        earlier_callback=True,
        num_inference_steps=25,
        guidance_scale=3.0,
        height=1024,
        width=1024,
    )  # fmt: skip


class Kandinsky3Img2ImgPipeline(Kandinsky3Base):
    """A picture and a text to a picture."""

    task = FromImage(copies_together=True)
    encode_prompt = encoding(cut=True)
    model_cpu_offload_seq = "text_encoder->movq->unet->movq"
    __call__ = call(
        "prompt image strength num_inference_steps guidance_scale negative_prompt num_images_per_prompt generator "
        + _EMBEDS + _LAST,
        output=ImagePipelineOutput,
        earlier_callback=True,
        strength=0.3,
        num_inference_steps=25,
        guidance_scale=3.0,
    )  # fmt: skip
