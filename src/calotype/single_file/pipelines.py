"""A whole pipeline out of one file in the original layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.core import hub
from calotype.core.config import init_parameters, read_json
from calotype.core.errors import InputError, ModelFilesError
from calotype.core.tensor_files import tensor_infos
from calotype.single_file.models import located, read_model
from calotype.single_file.recognise import Family, complete, family_of, prefix_of, text_parts, vae_config
from calotype.single_file.text_encoders import read_text_encoder

if TYPE_CHECKING:
    from calotype.pipelines.components import Loading
    from calotype.pipelines.pipeline import DiffusionPipeline

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}

_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "sd2": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "v_prediction"},
    ),
    "sd2-inpainting": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "sdxl": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
}
"""Family, or what its name begins with -> the scheduler that it was published with."""


def read_pipeline(
    cls: type[DiffusionPipeline],
    place: str | os.PathLike[str],
    given: dict[str, Any],
    loading: Loading,
    config: str | os.PathLike[str] | None,
    options: hub.HubOptions,
) -> DiffusionPipeline:
    """The pipeline in a file; components that are ``given`` take the place of the file's.

    ``cls`` is a class for such a checkpoint, or the base of all, which chooses. ``config`` is a folder or repository
    with the configurations and tokenizers.
    """
    from calotype.pipelines.components import public_class
    from calotype.pipelines.pipeline import DiffusionPipeline

    prediction = given.pop("prediction_type", None)
    path = located(place, options)
    infos = tensor_infos(path)
    family = family_of(infos, str(path))
    chosen: Any = public_class(family.pipeline) if cls is DiffusionPipeline else cls
    parameters = init_parameters(chosen)
    if unknown := [name for name in given if name not in parameters]:
        raise InputError(
            f"{chosen.__name__}.from_single_file has no argument and no component {', '.join(unknown)}."
        )
    folder = _folder(config, options)
    texts = {name: prefix for prefix, name in text_parts(infos).items()}
    values = dict(given)
    # first the small things that may be missing
    for name in sorted(parameters, key=lambda name: name not in _TOKENIZERS):
        if name in values:
            continue
        dtype = loading.dtype_of(name)
        if name in _CLASSES:
            described = _config(folder, name)
            if name == "vae" and described is None:
                prefix = prefix_of("vae", infos, str(path))
                with complete("vae", str(path)):
                    described = vae_config(infos, prefix, family)
            values[name] = read_model(
                public_class(_CLASSES[name]),
                path,
                dtype=dtype,
                device=loading.device,
                config=described,
            )
        elif name in texts:
            values[name] = read_text_encoder(
                path,
                texts[name],
                dtype=dtype,
                config=_config(folder, name),
                drop_last=family.name.startswith("sd2"),
            )
        elif name in _TOKENIZERS:
            values[name] = _tokenizer(folder, name, family, options) if _TOKENIZERS[name] in texts else None
        elif name == "scheduler":
            values[name] = _scheduler(folder, family, prediction)
        elif name == "requires_aesthetics_score":
            values[name] = family.name == "sdxl-refiner"
        elif name == "force_zeros_for_empty_prompt":
            values[name] = family.name != "sdxl-refiner"
        elif name == "requires_safety_checker":
            values[name] = given.get("safety_checker") is not None
        elif parameters[name].default is parameters[name].empty:
            if name not in chosen._optional_components and name not in (
                "safety_checker",
                "feature_extractor",
            ):
                raise ModelFilesError(
                    f"{chosen.__name__} needs the component {name!r}, which {path} does not hold; pass {name}=…."
                )
            values[name] = None
    pipe: DiffusionPipeline = chosen(**values)
    pipe.register_to_config(_name_or_path=os.fspath(place))
    return pipe if loading.device is None else pipe.to(loading.device)


def _folder(config: str | os.PathLike[str] | None, options: hub.HubOptions) -> Path | None:
    """The configurations and vocabularies of ``config``, which are small."""
    if config is None or os.path.isdir(config):
        return None if config is None else Path(config)
    return hub.snapshot(os.fspath(config), allow_patterns=["*.json", "*/*.json", "*/*.txt"], options=options)


def _config(folder: Path | None, name: str) -> Mapping[str, Any] | None:
    path = None if folder is None else folder / name / "config.json"
    return read_json(path) if path is not None and path.is_file() else None


def _tokenizer(folder: Path | None, name: str, family: Family, options: hub.HubOptions) -> Any:
    """The tokenizer, whose vocabulary no checkpoint of this kind holds: from ``folder``, or the Hub or its cache."""
    from transformers import CLIPTokenizer

    source = folder
    if source is None:
        try:
            source = hub.snapshot(family.tokens_from, allow_patterns=[f"{name}/*"], options=options)
        except ModelFilesError as error:
            raise ModelFilesError(
                f"A checkpoint in one file holds no tokenizer, and that of {family.tokens_from} was not found: {error} "
                f"Pass config=, a folder with {name}/, or {name}=, a tokenizer."
            ) from error
    if not (source / name).is_dir():
        raise ModelFilesError(f"{source} has no folder {name!r}; pass {name}=, a tokenizer.")
    return CLIPTokenizer.from_pretrained(source / name)


def _scheduler(folder: Path | None, family: Family, prediction: str | None) -> Any:
    from calotype.pipelines.components import public_class

    if folder is not None and (path := folder / "scheduler" / "scheduler_config.json").is_file():
        config = read_json(path)
        made: Any = public_class(str(config.get("_class_name")))
    else:
        key = family.name if family.name in _SCHEDULERS else family.name.split("-")[0]
        class_name, own = _SCHEDULERS[key]
        made, config = public_class(class_name), {**_NOISE, **own}
    return made.from_config(config if prediction is None else {**config, "prediction_type": prediction})
