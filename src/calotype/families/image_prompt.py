"""Pictures in the place of words: what a UNet with IP-Adapters (arXiv:2308.06721) is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.guidance import TOLD_THE_PROMPT, UNCOND
from calotype.diffusion.inputs import Attention, ImagePrompt
from calotype.image_processor import is_pil
from calotype.nn.image_projections import EMBEDS, FACE, image_projections
from calotype.nn.image_prompt import adapter_masks

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.nn.image_projections import ImageProjections
    from calotype.nn.image_prompt import Scale

MASKS = "ip_adapter_masks"
"""The entry of ``cross_attention_kwargs`` that says where adapters act."""


def check(family: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse pictures without an adapter, an adapter without pictures, and counts and scales that do not fit."""
    asked, made = ImagePrompt.of(arguments), image_projections(family.unet)
    masks = (Attention.of(arguments).cross_attention_kwargs or {}).get(MASKS)
    if made is None:
        for name, value in (*vars(asked).items(), (MASKS, masks)):
            if value is not None:
                raise InputError(
                    f"{name} is given, but no IP-Adapter is loaded in this pipeline; call load_ip_adapter first."
                )
        return
    if not asked.given:
        raise InputError(
            "An IP-Adapter is loaded, so give ip_adapter_image or ip_adapter_image_embeds, or call unload_ip_adapter."
        )
    scales = _scales(family, asked, made)
    count = len(made.image_projection_layers)
    embeds = asked.ip_adapter_image_embeds
    entries: Sequence[Any] = asked.pictures if embeds is None else embeds
    _check_count("ip_adapter_image" if embeds is None else "ip_adapter_image_embeds", len(entries), count)
    if embeds is None:
        _check_encoder(family, made)
        pictures = [sum(_count(one) for one in each) for each in asked.pictures]
    else:
        pictures = [one.shape[1] for one in embeds]
    adapter_masks(masks, pictures, scales)


def attention_arguments(family: Any, call: Call) -> dict[str, Any] | None:
    """The ``cross_attention_kwargs`` of a call, with what the adapters' pictures are to attention among them."""
    given = Attention.of(call.arguments).cross_attention_kwargs
    made = image_projections(family.unet)
    if made is None:
        return given
    arguments = dict(given or {})
    asked, branches = ImagePrompt.of(call.arguments), call.guidance.branches
    prompts = made.prompts(
        prepared(family, asked, call.device, call.pictures, UNCOND in branches),
        [
            None if mask is None else mask.to(call.device)
            for mask in _listed(arguments.pop(MASKS, None), made)
        ],
        _scales(family, asked, made),
    )
    tokens = tuple(_branched(one, branches) for one in prompts.tokens)
    return {**arguments, "image_prompts": prompts._replace(tokens=tokens)}


def prepared(
    family: Any, asked: ImagePrompt, device: torch.device, pictures: int, guided: bool
) -> list[torch.Tensor]:
    """What the projections read: (pictures, pictures of an adapter, …) for each, the negatives before it if guided."""
    made = image_projections(family.unet)
    if made is None:
        raise InputError("No IP-Adapter is loaded in this pipeline; call load_ip_adapter first.")
    if asked.ip_adapter_image_embeds is not None:
        found = [_given(one, pictures, guided) for one in asked.ip_adapter_image_embeds]
    else:
        layers: Any = made.image_projection_layers
        _check_count("ip_adapter_image", len(asked.pictures), len(layers))
        found = []
        for each, layer in zip(asked.pictures, layers, strict=True):
            cond, uncond = seen(family, each, layer.reads == EMBEDS, device)
            rows = [uncond, cond] if guided else [cond]
            found.append(torch.stack(rows).repeat_interleave(pictures, dim=0))
    return [one.to(device, family.unet.dtype) for one in found]


def seen(
    family: Any, pictures: Sequence[Any], as_embeds: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as the encoder sees them, and nothing as it does: (pictures, channels), or with patches before these."""
    encoder, extractor = family.image_encoder, family.feature_extractor
    given = [
        one if isinstance(one, torch.Tensor) and one.ndim == 4 else _pixels(extractor, one)
        for one in pictures
    ]
    pixels = torch.cat(given).to(device, encoder.dtype)
    if as_embeds:
        cond = encoder(pixels).image_embeds
        return cond, torch.zeros_like(cond)

    def states(of: torch.Tensor) -> torch.Tensor:
        return encoder(of, output_hidden_states=True).hidden_states[-2]

    return states(pixels), states(torch.zeros_like(pixels))


def _pixels(extractor: Any, picture: Any) -> torch.Tensor:
    if isinstance(picture, torch.Tensor):
        return picture[None]
    return extractor(picture, return_tensors="pt").pixel_values


def _scales(family: Any, asked: ImagePrompt, made: ImageProjections) -> tuple[Mapping[str, Scale], ...]:
    """How strongly the adapters act in a call: as it says, or as is set now."""
    if asked.ip_adapter_scale is None:
        return made.scales
    from calotype.adapters import ip_adapter  # only where a call has a scale of its own

    return ip_adapter.scales(family.unet, asked.ip_adapter_scale)


def _given(embeds: torch.Tensor, pictures: int, guided: bool) -> torch.Tensor:
    """Embeddings as they were given, with a row for each picture of the call and branch."""
    branches = 2 if guided else 1
    if len(embeds) not in (branches, branches * pictures):
        told = (
            "guidance takes negatives and positives: "
            if guided
            else "without guidance there are no negatives: "
        )
        raise InputError(
            f"ip_adapter_image_embeds has {len(embeds)} rows; {told}give {branches}, or {branches * pictures} for "
            f"{pictures} pictures."
        )
    return embeds if len(embeds) == branches * pictures else embeds.repeat_interleave(pictures, dim=0)


def _branched(tokens: torch.Tensor, branches: Sequence[str]) -> torch.Tensor:
    """Tokens of negatives and positives as the branches are told them."""
    if UNCOND not in branches:
        return torch.cat([tokens] * len(branches))
    uncond, cond = tokens.chunk(2)
    return torch.cat([cond if name in TOLD_THE_PROMPT else uncond for name in branches])


def _check_encoder(family: Any, made: ImageProjections) -> None:
    """Refuse pictures where nothing can read them."""
    if getattr(family, "image_encoder", None) is None:
        raise InputError(
            "ip_adapter_image needs an image_encoder, and the pipeline has none: load the adapter with an "
            "image_encoder_folder, or give ip_adapter_image_embeds."
        )
    layers: Any = made.image_projection_layers
    if any(layer.reads == FACE for layer in layers):
        raise InputError(
            "A FaceID adapter reads the embedding of a face, which another model makes (insightface): give "
            "ip_adapter_image_embeds."
        )


def _check_count(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise InputError(
            f"{name} has {found} entries for {wanted} IP-Adapters; give a list of one for each, in which a list stands "
            f"for several pictures of one adapter."
        )


def _count(picture: Any) -> int:
    """Pictures in one: a batch may stand for several."""
    if isinstance(picture, torch.Tensor) and picture.ndim == 4:
        return len(picture)
    if isinstance(picture, torch.Tensor) or is_pil(picture) or getattr(picture, "ndim", None) == 3:
        return 1
    raise InputError(
        f"A picture for an IP-Adapter is a PIL image, an array or a tensor, not {type(picture).__name__}."
    )


def _listed(masks: Any, made: ImageProjections) -> list[Any]:
    if masks is None:
        return [None] * len(made.image_projection_layers)
    return list(masks[:, None]) if isinstance(masks, torch.Tensor) else list(masks)
