"""What a U-Net is told besides its sample: time, class, text, pictures. Modules by configuration, and their use.

A model that is told these things (a U-Net, a ControlNet) has the modules as its own attributes, since their names are
the keys of checkpoints; so these are functions of the model, not a module of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.nn.activations import activation
from calotype.nn.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from calotype.nn.grounding import GroundingProjection
from calotype.nn.image_prompt import WITH_IMAGE_PROMPT
from calotype.nn.projections import (
    ImageHintTimeEmbedding,
    ImageTimeEmbedding,
    TextImageProjection,
    TextImageTimeEmbedding,
    TextTimeEmbedding,
    TokenProjection,
)

_HID_TYPES = ("text_proj", "text_image_proj", "image_proj")
_ADDITIONS = ("text", "text_image", "text_time", "image", "image_hint")
_CLASS_TYPES = ("timestep", "identity", "projection", "simple_projection")


def add_conditioning(model: Any, config: Config) -> int:
    """Give ``model`` the modules that ``config`` names; return the width of the embedding that the blocks read."""
    time_dim, input_dim = _time_dims(config)
    flip, shift = config.flip_sin_to_cos, config.freq_shift
    model.time_proj = (
        Timesteps(config.block_out_channels[0], flip, shift)
        if config.get("time_embedding_type", "positional") == "positional"
        else GaussianFourierProjection(time_dim // 2, log=False, flip_sin_to_cos=flip)
    )
    model.time_embedding = TimestepEmbedding(
        input_dim,
        time_dim,
        act_fn=config.act_fn,
        post_act_fn=config.get("timestep_post_act"),
        cond_proj_dim=config.get("time_cond_proj_dim"),
    )
    model.encoder_hid_proj = _hidden_projection(config)
    model.class_embedding = _class_embedding(config, input_dim, time_dim)
    model.add_embedding = _addition(config, time_dim)
    if config.get("addition_embed_type") == "text_time":
        model.add_time_proj = Timesteps(config.addition_time_embed_dim, flip, shift)
    time_act = config.get("time_embedding_act_fn")
    model.time_embed_act = None if time_act is None else activation(time_act)
    if config.get("attention_type", "default") in ("gated", "gated-text-image"):
        context = config.cross_attention_dim
        width = context if isinstance(context, int) else context[0]
        model.position_net = GroundingProjection(
            width, width, with_images=config.attention_type == "gated-text-image"
        )
    return 2 * time_dim if config.get("class_embeddings_concat") else time_dim


def hidden_type(config: Mapping[str, Any]) -> str | None:
    """``encoder_hid_dim_type`` of a model by itself, without the IP-Adapter that its configuration may show.

    A configuration with ``encoder_hid_dim`` alone means a projection of text.
    """
    kind = config.get("encoder_hid_dim_type")
    kind = None if kind == WITH_IMAGE_PROMPT else kind
    return "text_proj" if kind is None and config.get("encoder_hid_dim") is not None else kind


def _time_dims(config: Config) -> tuple[int, int]:
    """Widths of the time's embedding and of the sinusoids that it is made from."""
    width = config.block_out_channels[0]
    kind, given = config.get("time_embedding_type", "positional"), config.get("time_embedding_dim")
    if kind == "positional":
        return given or 4 * width, width
    if kind == "fourier":
        time_dim = given or 2 * width
        if time_dim % 2:
            raise InputError(f"time_embedding_dim must be even for Fourier features, not {time_dim}.")
        return time_dim, time_dim
    raise InputError(f"time_embedding_type is 'positional' or 'fourier', not {kind!r}.")


def _hidden_projection(config: Config) -> nn.Module | None:
    kind, width = hidden_type(config), config.get("encoder_hid_dim")
    if kind is None:
        return None
    if kind not in _HID_TYPES:
        raise InputError(f"encoder_hid_dim_type is None or one of {', '.join(_HID_TYPES)}, not {kind!r}.")
    if width is None:
        raise InputError(f"encoder_hid_dim_type={kind!r} needs an encoder_hid_dim.")
    if not isinstance(config.cross_attention_dim, int):
        raise InputError(
            f"encoder_hid_dim_type={kind!r} needs one cross_attention_dim for all blocks, not "
            f"{config.cross_attention_dim}."
        )
    if kind == "text_proj":
        return nn.Linear(width, config.cross_attention_dim)
    if kind == "text_image_proj":
        return TextImageProjection(width, config.cross_attention_dim, config.cross_attention_dim)
    return TokenProjection(width, config.cross_attention_dim)


def _class_embedding(config: Config, input_dim: int, time_dim: int) -> nn.Module | None:
    kind, count = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind is None:
        return None if count is None else nn.Embedding(count, time_dim)
    if kind not in _CLASS_TYPES:
        raise InputError(f"class_embed_type is None or one of {', '.join(_CLASS_TYPES)}, not {kind!r}.")
    if kind == "timestep":
        return TimestepEmbedding(input_dim, time_dim, act_fn=config.act_fn)
    if kind == "identity":
        return nn.Identity()
    width = config.get("projection_class_embeddings_input_dim")
    if width is None:
        raise InputError(f"class_embed_type={kind!r} needs a projection_class_embeddings_input_dim.")
    return TimestepEmbedding(width, time_dim) if kind == "projection" else nn.Linear(width, time_dim)


def _addition(config: Config, time_dim: int) -> nn.Module | None:
    kind = config.get("addition_embed_type")
    if kind is None:
        return None
    if kind not in _ADDITIONS:
        raise InputError(f"addition_embed_type is None or one of {', '.join(_ADDITIONS)}, not {kind!r}.")

    def needed(name: str) -> int:
        if config.get(name) is None:
            raise InputError(f"addition_embed_type={kind!r} needs a value for {name}.")
        return config[name]

    if kind == "text":
        width = config.get("encoder_hid_dim") or config.cross_attention_dim
        return TextTimeEmbedding(width, time_dim, num_heads=config.get("addition_embed_type_num_heads", 64))
    if kind == "text_image":
        return TextImageTimeEmbedding(config.cross_attention_dim, config.cross_attention_dim, time_dim)
    if kind == "text_time":
        needed("addition_time_embed_dim")
        return TimestepEmbedding(needed("projection_class_embeddings_input_dim"), time_dim)
    if kind == "image":
        return ImageTimeEmbedding(needed("encoder_hid_dim"), time_dim)
    return ImageHintTimeEmbedding(needed("encoder_hid_dim"), time_dim)


def as_times(timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
    """A time for each sample: (batch,), on the sample's device."""
    if not isinstance(timestep, torch.Tensor):
        narrow = sample.device.type in ("mps", "npu")  # without 64-bit floats
        real = torch.float32 if narrow else torch.float64
        whole = torch.int32 if narrow else torch.int64
        dtype = real if isinstance(timestep, float) else whole
        return torch.full(sample.shape[:1], timestep, dtype=dtype, device=sample.device)
    timestep = timestep.to(sample.device).reshape(-1)
    if timestep.shape[0] not in (1, sample.shape[0]):
        raise InputError(
            f"There are {timestep.shape[0]} timesteps for a batch of {sample.shape[0]}: give one, or one for each."
        )
    return timestep.expand(sample.shape[0])


def embed_conditions(
    model: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor | float | int,
    encoder_hidden_states: Any,
    class_labels: torch.Tensor | None,
    timestep_cond: torch.Tensor | None,
    added: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The embedding (batch, width) that the blocks read, and channels to put beside the sample's, or None."""
    config = model.config
    # sinusoids are float32 whatever the weights are; only then is precision given up
    features = model.time_proj(as_times(timestep, sample)).to(sample.dtype)
    temb = model.time_embedding(features, timestep_cond)
    class_embedding = embed_class(model, sample, class_labels)
    if class_embedding is not None:
        if config.get("class_embeddings_concat"):
            temb = torch.cat([temb, class_embedding], dim=-1)
        else:
            temb = temb + class_embedding

    addition, hint = _embed_addition(model, temb, encoder_hidden_states, added)
    if addition is not None:
        temb = temb + addition
    if model.time_embed_act is not None:
        temb = model.time_embed_act(temb)
    return temb, hint


def embed_class(model: Any, sample: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor | None:
    """The embedding (batch, width) of the class labels, None for a model without classes."""
    if model.class_embedding is None:
        return None
    if class_labels is None:
        raise InputError("This model is conditioned on a class: class_labels must be given.")
    if model.config.get("class_embed_type") == "timestep":
        class_labels = model.time_proj(class_labels).to(sample.dtype)
    return model.class_embedding(class_labels).to(sample.dtype)


def _embed_addition(
    model: Any, temb: torch.Tensor, encoder_hidden_states: Any, added: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    kind = model.config.get("addition_embed_type")
    if kind is None:
        return None, None
    if kind == "text":
        return model.add_embedding(encoder_hidden_states), None

    def needed(name: str) -> torch.Tensor:
        return added_condition(model, added, name, f"addition_embed_type={kind!r}")

    if kind == "text_image":
        return model.add_embedding(
            added.get("text_embeds", encoder_hidden_states), needed("image_embeds")
        ), None
    if kind == "text_time":
        text, ids = needed("text_embeds"), needed("time_ids")
        times = model.add_time_proj(ids.flatten()).reshape(text.shape[0], -1)
        return model.add_embedding(torch.cat([text, times], dim=-1).to(temb.dtype)), None
    if kind == "image":
        return model.add_embedding(needed("image_embeds")), None
    return model.add_embedding(needed("image_embeds"), needed("hint"))


def added_condition(
    model: nn.Module, added: Mapping[str, torch.Tensor], name: str, because: str
) -> torch.Tensor:
    """``added_cond_kwargs[name]``, or an error that says why it is needed."""
    if name not in added:
        raise InputError(
            f"{type(model).__name__} has {because} and so needs {name!r} in added_cond_kwargs, which has "
            f"{sorted(added) or 'nothing'}."
        )
    return added[name]


def project_context(model: Any, context: Any, added: Mapping[str, torch.Tensor]) -> Any:
    """The tokens that attention reads, from ``encoder_hidden_states`` by the model's ``encoder_hid_dim_type``."""
    kind = model.config.get("encoder_hid_dim_type")
    if model.encoder_hid_proj is None or kind is None:
        return context
    if kind == WITH_IMAGE_PROMPT:
        return model.encoder_hid_proj.of_text(context)
    if kind == "text_proj":
        return model.encoder_hid_proj(context)
    images = added_condition(model, added, "image_embeds", f"encoder_hid_dim_type={kind!r}")
    if kind == "text_image_proj":
        return model.encoder_hid_proj(context, images)
    return model.encoder_hid_proj(images)


def image_prompts(model: Any, arguments: dict[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Attention's ``arguments`` with the pictures for an IP-Adapter among them, where the model has one.

    They are there as ``image_prompts`` or are made from ``added["image_embeds"]`` and the masks in ``arguments``.
    """
    masks = arguments.pop("ip_adapter_masks", None)
    if model.config.get("encoder_hid_dim_type") != WITH_IMAGE_PROMPT:
        if masks is not None or "image_prompts" in arguments:
            raise InputError(
                "There are masks or pictures for an IP-Adapter, but the model has none: load it first."
            )
        return arguments
    if "image_prompts" in arguments:
        return arguments
    embeds = added_condition(model, added, "image_embeds", f"encoder_hid_dim_type={WITH_IMAGE_PROMPT!r}")
    return {**arguments, "image_prompts": model.encoder_hid_proj.prompts(embeds, masks)}


def additive_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask (batch, n) of 1 (keep) and 0 (hide) as something to add to attention's scores: (batch, 1, n)."""
    if mask is None:
        return None
    return ((1 - mask.to(dtype)) * -10000.0)[:, None]
