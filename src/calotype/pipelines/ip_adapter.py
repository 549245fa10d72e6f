"""What a pipeline offers for prompts that are pictures: loading, weighing and unloading IP-Adapters."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.core import hub
from calotype.core.errors import InputError
from calotype.diffusion.inputs import ImagePrompt
from calotype.families import image_prompt
from calotype.nn.image_projections import image_projections
from calotype.pipelines.components import Loading, load_transformers_model


class ImagePrompted:
    """The calls of a pipeline that concern IP-Adapters, which its UNet has, whichever pipelines it is in."""

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: str | list[str] | None = None,
        weight_name: str | list[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        **kwargs: Any,
    ) -> None:
        """Load one or several IP-Adapters (arXiv:2308.06721), in the place of those that the UNet has.

        The first three arguments may be lists of one entry for each, or one entry for all: a file, folder, Hub
        repository or state dictionary; the folder and the name of the file inside. Unless the pipeline has an
        ``image_encoder``, that in ``image_encoder_folder`` beside the file is loaded (a path with ``/`` counts from the
        top); None goes without. ``use_safetensors=False`` allows pickles; the Hub's ``revision``, ``token``,
        ``cache_dir``, ``local_files_only``, ``force_download`` as everywhere. Raises ``ModelFilesError`` or
        ``WeightsError``, with the pipeline as it was, for files that are missing, damaged, or of another architecture.
        The LoRA in files of FaceID is loaded as ``faceid_0``, to act beside those that act already.
        """
        from calotype.adapters import ip_adapter, ip_adapter_files

        pipe: Any = self
        options = hub.HubOptions.take(kwargs)
        use_safetensors = kwargs.pop("use_safetensors", None)
        kwargs.pop("low_cpu_mem_usage", None)  # memory is always used sparingly
        if kwargs:
            raise InputError(f"load_ip_adapter has no argument {', '.join(kwargs)}.")
        if "ip_adapter_image" not in inspect.signature(type(pipe).__call__).parameters:
            raise InputError(
                f"{type(pipe).__name__} takes no ip_adapter_image, so it has no use for an IP-Adapter."
            )
        wanted = _each(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
        contents = [
            ip_adapter_files.read(
                source, weight_name=name, subfolder=folder, use_safetensors=use_safetensors, options=options
            )
            for source, folder, name in wanted
        ]
        found: dict[str, Any] = {}
        if image_encoder_folder is not None and getattr(pipe, "image_encoder", None) is None:
            source, folder, _ = wanted[0]
            found["image_encoder"] = _image_encoder(
                source, folder, image_encoder_folder, options, pipe, use_safetensors is False
            )
        encoder = found.get("image_encoder", getattr(pipe, "image_encoder", None))
        if encoder is not None and getattr(pipe, "feature_extractor", None) is None:
            found["feature_extractor"] = _feature_extractor(encoder)
        loras = [ip_adapter.low_rank_state(one, pipe.unet) for one in contents]
        with pipe._at_home(None):
            ip_adapter.install(pipe.unet, contents)
        pipe.register_modules(**found)
        brought = self.__dict__.get("_brought_by_ip_adapters", ())
        self.__dict__["_brought_by_ip_adapters"] = (*brought, *found)
        made = image_projections(pipe.unet)
        assert made is not None
        for index, lora in enumerate(loras):
            if lora:
                with ip_adapter.beside_others(pipe.unet):
                    pipe.load_lora_weights(lora, adapter_name=f"faceid_{index}")
                made.loras = (*made.loras, f"faceid_{index}")

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """How strongly IP-Adapters act in the calls that begin from now on: a number for all, or a list of one each.

        In place of a number may stand ``{"down": {"block_2": [0.0, 1.0]}, "up": …, "mid": …}``, in which what is left
        out is 0 (style and layout), or a list with one for each picture of an adapter with masks. Raises ``InputError``
        for another count and for blocks that the UNet does not have.
        """
        from calotype.adapters import ip_adapter

        pipe: Any = self
        scales = ip_adapter.scales(pipe.unet, scale)
        made = image_projections(pipe.unet)
        assert made is not None
        made.scales = scales

    def unload_ip_adapter(self) -> None:
        """Take all IP-Adapters out of the UNet, and the image encoder that came with them out of the pipeline."""
        from calotype.adapters import ip_adapter

        pipe: Any = self
        with pipe._at_home(None):
            ip_adapter.eject(pipe.unet)
        for name in self.__dict__.pop("_brought_by_ip_adapters", ()):
            setattr(pipe, name, None)

    def encode_image(
        self,
        image: Any,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        output_hidden_states: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as the image encoder sees them, and nothing as it does, each ``num_images_per_prompt`` times.

        (pictures, channels), or with ``output_hidden_states`` the states before the last layer (pictures, patches,
        channels).
        """
        pipe: Any = self
        pictures = list(image) if isinstance(image, list | tuple) else [image]
        family, place = pipe.bound_family(), torch.device(device or pipe._execution_device)
        with torch.no_grad():
            cond, uncond = image_prompt.seen(family, pictures, not output_hidden_states, place)
        return tuple(one.repeat_interleave(num_images_per_prompt, dim=0) for one in (cond, uncond))  # type: ignore[return-value]

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: list[torch.Tensor] | None,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[torch.Tensor]:
        """What the adapters read of pictures, for use as ``ip_adapter_image_embeds``.

        (num_images_per_prompt, pictures, …) for each adapter; with guidance the negatives stand before the positives.
        """
        pipe: Any = self
        asked = ImagePrompt(ip_adapter_image, ip_adapter_image_embeds)
        if not asked.given:
            raise InputError("Give ip_adapter_image or ip_adapter_image_embeds.")
        place = torch.device(device or pipe._execution_device)
        with torch.no_grad():
            return image_prompt.prepared(
                pipe.bound_family(), asked, place, num_images_per_prompt, do_classifier_free_guidance
            )


def _each(source: Any, subfolder: Any, weight_name: Any) -> list[tuple[Any, str | None, str | None]]:
    """Source, folder and name for each adapter, where one entry may stand for all."""
    given = [
        list(one) if isinstance(one, list | tuple) else [one] for one in (source, subfolder, weight_name)
    ]
    count = max(map(len, given))
    for name, entries in zip(("sources", "subfolders", "weight names"), given, strict=True):
        if len(entries) not in (1, count):
            raise InputError(
                f"There are {len(entries)} {name} for {count} IP-Adapters: give one for all or one for each."
            )
    sources, folders, names = (entries * count if len(entries) == 1 else entries for entries in given)
    return list(zip(sources, (folder or None for folder in folders), names, strict=True))


def _image_encoder(
    source: Any, subfolder: str | None, folder: str, options: hub.HubOptions, pipe: Any, pickled: bool
) -> torch.nn.Module:
    """The image encoder beside an adapter's file, in the UNet's type, where the pipeline is."""
    from transformers import CLIPVisionModelWithProjection

    if isinstance(source, Mapping):
        raise InputError(
            "The adapter is a state dictionary, which has no image encoder beside it: make the pipeline with an "
            "image_encoder, or pass image_encoder_folder=None and ip_adapter_image_embeds in calls."
        )
    if os.path.isfile(source):
        source, subfolder = Path(source).parent, None
    inside = folder if "/" in folder or not subfolder else f"{subfolder}/{folder}"
    place = hub.find_file(source, "config.json", subfolder=inside, options=options).parent
    safe = hub.try_find_file(source, "model.safetensors", subfolder=inside, options=options)
    if safe is None and pickled:
        hub.find_file(source, "pytorch_model.bin", subfolder=inside, options=options)
    loading = Loading(dtype=pipe.unet.dtype, use_safetensors=safe is not None or not pickled)
    return load_transformers_model(CLIPVisionModelWithProjection, place, "image_encoder", loading).to(
        pipe.device
    )


def _feature_extractor(encoder: Any) -> Any:
    from transformers import CLIPImageProcessor

    size = getattr(encoder.config, "image_size", 224)
    return CLIPImageProcessor(size=size, crop_size=size)
