"""The prior of Kandinsky 2.1 and 2.2: texts, and pictures between them, to embeddings of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.images import check_finite
from calotype.diffusion.inputs import Callbacks, Output
from calotype.diffusion.parts import Parts
from calotype.diffusion.tasks.from_embedding import FromEmbedding
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.kandinsky_prior import KandinskyPrior, in_pairs, nothing_seen
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.outputs import KandinskyPriorPipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor, run

_FROM_TEXT = (
    "prompt negative_prompt num_images_per_prompt num_inference_steps generator latents guidance_scale "
)
_USUAL: dict[str, Any] = {
    "prompt": Parameter.empty,
    "num_inference_steps": 25,
    "guidance_scale": 4.0,
    "output_type": "pt",
}


@torch.no_grad()
def embeddings(pipe: Any, parts: Parts, arguments: Mapping[str, Any], output_class: type) -> Any:
    """Sample embeddings with the bound arguments of a prior's call, and those of what to steer away from."""
    from calotype.pipelines.generation import checked, sampled

    output = Output.of(arguments)
    if output.output_type not in ("pt", "np"):
        raise InputError(
            f"A prior gives embeddings: output_type is 'pt' or 'np', not {output.output_type!r}."
        )
    call = checked(parts, arguments, pipe._execution_device)
    Callbacks.of(arguments).check_names(parts.tensor_names)
    state, watch = sampled(pipe, parts, call)
    family: Any = parts.family
    embeds = family.decode(parts.task.result(state), call.noise.generator)
    watch.check()
    pair = in_pairs(check_finite(embeds, "The embeddings"), arguments, family.image_encoder)
    result = output_class(*(each.cpu().numpy() if output.output_type == "np" else each for each in pair))
    return result if output.return_dict else result.to_tuple()


class KandinskyPriorBase(Adapters, DiffusionPipeline):
    """What the priors share; abstract."""

    family = KandinskyPrior
    model_cpu_offload_seq = "text_encoder->image_encoder->prior"
    _exclude_from_cpu_offload = ("prior",)
    _lora_loadable_modules = ("prior", "text_encoder")
    __init__ = constructor(KandinskyPrior, required="image_processor")

    @torch.no_grad()
    def interpolate(
        self,
        images_and_prompts: list[str | Any | torch.Tensor],
        weights: list[float],
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        negative_prior_prompt: str | None = None,
        negative_prompt: str = "",
        guidance_scale: float = 4.0,
        device: torch.device | str | None = None,
    ) -> KandinskyPriorPipelineOutput:
        """Embeddings between those of texts and pictures: their sum by ``weights``.

        Pictures are PIL images or pixel values as CLIP takes them. ``negative_prior_prompt`` is what the prior
        steers away from, ``negative_prompt`` what the decoder will. Raises ``InputError`` unless there is a weight
        for each text and picture.
        """
        if not images_and_prompts or len(images_and_prompts) != len(weights):
            raise InputError(
                f"There are {len(weights)} weights for {len(images_and_prompts)} texts and pictures; give one for each."
            )
        family: Any = self.bound_family()
        place = torch.device(device or self._execution_device)

        def sampled(text: str) -> KandinskyPriorPipelineOutput:
            arguments = {
                "prompt": text,
                "negative_prompt": negative_prior_prompt,
                "num_images_per_prompt": num_images_per_prompt,
                "num_inference_steps": num_inference_steps,
                "generator": generator,
                "latents": latents,
                "guidance_scale": guidance_scale,
                "output_type": "pt",
            }
            parts = Parts(family, FromNoise())
            return run(self, parts, arguments, set(arguments), KandinskyPriorPipelineOutput, embeddings)

        terms: list[Any] = []
        for one, weight in zip(images_and_prompts, weights, strict=True):
            if isinstance(one, str):
                terms.append(weight * sampled(one).image_embeds)
            else:
                terms.append(weight * family.embedded(one, place).repeat(num_images_per_prompt, 1))
        negative = sampled(negative_prompt)
        return KandinskyPriorPipelineOutput(
            torch.stack(terms).sum(dim=0),
            negative.negative_image_embeds if negative_prompt == "" else negative.image_embeds,
        )

    def get_zero_embed(self, batch_size: int = 1, device: torch.device | str | None = None) -> torch.Tensor:
        """The embedding of nothing, which a decoder steers away from where there is no negative prompt."""
        family: Any = self.bound_family()
        return nothing_seen(family.image_encoder, batch_size, torch.device(device or self._execution_device))


class KandinskyPriorPipeline(KandinskyPriorBase):
    """The prior of Kandinsky 2.1: texts to embeddings of pictures."""

    task = FromNoise()
    model_cpu_offload_seq = "text_encoder->prior"
    __call__ = call(
        _FROM_TEXT + "output_type return_dict", output=KandinskyPriorPipelineOutput, by=embeddings, **_USUAL
    )


class KandinskyV22PriorPipeline(KandinskyPriorBase):
    """The prior of Kandinsky 2.2: texts to embeddings of pictures."""

    task = FromNoise()
    __call__ = call(
        _FROM_TEXT + "output_type return_dict callback_on_step_end callback_on_step_end_tensor_inputs",
        output=KandinskyPriorPipelineOutput,
        by=embeddings,
        **_USUAL,
    )


class KandinskyV22PriorEmb2EmbPipeline(KandinskyPriorBase):
    """The prior of Kandinsky 2.2 from a picture: its embedding moved toward a text."""

    task = FromEmbedding()
    __call__ = call(
        "prompt image strength negative_prompt num_images_per_prompt num_inference_steps generator guidance_scale "
        "output_type return_dict",
        output=KandinskyPriorPipelineOutput,
        by=embeddings,
        image=Parameter.empty,
        strength=0.3,
        **_USUAL,
    )
