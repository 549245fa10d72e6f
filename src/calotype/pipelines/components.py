"""A pipeline's components in files: which class each entry of ``model_index.json`` names, loading and saving them.

Only classes of calotype and classes of transformers that hold models, tokenizers or processors may be named; nothing
that a repository brings is ever executed.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import InputError, ModelFilesError, UnknownClassError
from calotype.core.files import check_links
from calotype.core.interpreter import keeping_all
from calotype.core.meta import no_values_on_meta
from calotype.core.sending import Sender, can_send, move
from calotype.core.weights import WeightFiles, find_weights
from calotype.models.model_group import ModelGroup
from calotype.models.modeling import ModelMixin
from calotype.pipelines.transformers_classes import transformers_class
from calotype.pipelines.transformers_models import read_model, refuse_misfits
from calotype.single_file.kandinsky_2_0 import published_class

logger = logging.getLogger(__name__)

INDEX = "model_index.json"

LIBRARY = "diffusers"
"""How files name the library whose layout this is."""

_GROUPS = {
    "ControlNetModel": "MultiControlNetModel",
    "ControlNetUnionModel": "MultiControlNetUnionModel",
    "T2IAdapter": "MultiAdapter",
}
"""Class of a model -> class of several of them as one."""

_IN_A_PIPELINE_FOLDER = {
    "MultilingualCLIP": "kandinsky",
    "LDMBertModel": "latent_diffusion",
    "StableDiffusionSafetyChecker": "stable_diffusion",
    "StableUnCLIPImageNormalizer": "stable_diffusion",
    "UnCLIPTextProjModel": "unclip",
}
"""Classes that files name with a pipeline's folder in place of the library."""


def public_class(name: str) -> type:
    """The class of calotype called ``name``; ``UnknownClassError`` names the nearest otherwise."""
    public = importlib.import_module("calotype")
    found = getattr(public, name, None) if name in public.__all__ else None
    if not isinstance(found, type):
        near = difflib.get_close_matches(name, public.__all__, n=1, cutoff=0.5)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UnknownClassError(f"calotype has no class {name!r}{hint}.")
    return found


def component_class(library: str, class_name: str) -> type:
    """The class that an entry of ``model_index.json`` names; ``UnknownClassError`` for other libraries' and code."""
    if not isinstance(library, str) or not isinstance(class_name, str):
        raise UnknownClassError(
            f"it is named as [{library!r}, {class_name!r}] where the names of a library and a class are expected."
        )
    if library == "transformers":
        return transformers_class(class_name)
    if library not in (LIBRARY, "calotype") and _IN_A_PIPELINE_FOLDER.get(class_name) is None:
        raise UnknownClassError(
            f"{library}.{class_name} is neither calotype's nor transformers', and code that comes with a checkpoint is "
            f"never run; if you trust it, load it yourself and pass it as the component."
        )
    return public_class(class_name)


def library_of(value: Any) -> tuple[str | None, str | None]:
    """The entry of ``model_index.json`` for a component: library and class name."""
    if value is None:
        return None, None
    cls = type(getattr(value, "_orig_mod", value))  # a compiled module stands for the module inside
    root = cls.__module__.split(".")[0]
    if cls.__name__ in _IN_A_PIPELINE_FOLDER:
        return _IN_A_PIPELINE_FOLDER[cls.__name__], cls.__name__
    return (LIBRARY if root == "calotype" else root), cls.__name__


def grouped(name: str, given: Any) -> Any:
    """Several models of one class, given as a list, as the one that files have; anything else as it is.

    Raises ``InputError`` for a list that is empty, or of models that do not work as one.
    """
    if not isinstance(given, list | tuple):
        return given
    classes = {type(getattr(model, "_orig_mod", model)).__name__ for model in given}
    if len(classes) != 1 or not classes <= _GROUPS.keys():
        raise InputError(
            f"{name} is a list of {', '.join(sorted(classes)) or 'nothing'}; it can be one of several models of one "
            f"class: {', '.join(_GROUPS)}."
        )
    return public_class(_GROUPS[classes.pop()])(list(given))


@dataclass(frozen=True)
class Loading:
    """How components are loaded; the fields are arguments of ``from_pretrained``."""

    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None
    variant: str | None = None
    use_safetensors: bool | None = None
    device: torch.device | None = None
    completing: Mapping[str, Path] = field(default_factory=dict)
    """Component -> the folder of a model whose weights its files need not repeat."""

    def dtype_of(self, name: str) -> torch.dtype:
        """The type of the component ``name``: float32 unless asked otherwise, whatever the files hold."""
        if isinstance(self.dtype, Mapping):
            return self.dtype.get(name, self.dtype.get("default", torch.float32))
        return self.dtype or torch.float32

    def pickled(self, folder: Path) -> bool:
        """Whether the folder of a transformers model has a pickle, and it may be read."""
        return self.use_safetensors is False and _has_pickle(folder)


def index_of(place: str | os.PathLike[str], options: hub.HubOptions) -> dict[str, Any]:
    """What the index of a folder or repository says; of a folder as it was published, the class that it is for."""
    class_name = published_class(place)
    if class_name is not None:
        return {"_class_name": class_name}
    return read_json(hub.find_file(place, INDEX, options=options))


@keeping_all()
def load_components(
    folder: Path, entries: Mapping[str, Sequence[str]], loading: Loading, advance: Callable[[], Any]
) -> dict[str, Any]:
    """The components of these names, whose entries are library and class name, several models at a time.

    ``ModelFilesError`` or ``UnknownClassError`` says what is wrong with one of them, always the same one.
    """
    classes = {name: _found_class(folder, name, *entry) for name, entry in entries.items()}
    loaded: dict[str, Any] = {}

    def load(name: str, sender: Sender | None = None) -> None:
        loaded[name] = _load_component(folder, name, classes[name], loading, sender)
        advance()

    # transformers may change PyTorch's defaults while it makes a model, so its models come one after another, and what
    # is made of numbers, the schedulers, before them
    models = [name for name, cls in classes.items() if issubclass(cls, torch.nn.Module)]
    others = [name for name in classes if name not in models]
    if loading.device is not None and can_send(loading.device):
        # each model is made while the one before is on its way, which takes longest for the largest
        sizes = {name: _size(folder / name, loading) for name in models}
        with Sender(loading.device) as sender:
            sender.expect(sum(sizes.values()))
            for name in sorted(models, key=lambda name: -sizes[name]):
                load(name, sender)
            for name in others:
                load(name)
        return {name: loaded[name] for name in entries}
    for name in others:
        load(name)
    apart = [name for name in models if issubclass(classes[name], ModelMixin | ModelGroup)]
    with ThreadPoolExecutor(max(len(apart), 1), "calotype-loading") as threads:
        ours = [threads.submit(load, name) for name in apart]
        try:
            for name in models:
                if name not in apart:
                    load(name)
            for one in ours:
                one.result()
        finally:
            threads.shutdown(cancel_futures=True)
    return {name: loaded[name] for name in entries}


def _size(folder: Path, loading: Loading) -> int:
    """The bytes of the weights in a folder, of the variant if it has that."""
    sizes = {
        path.name: path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")
    }
    return sum(size for name, size in sizes.items() if f".{loading.variant}." in name) or sum(sizes.values())


def _found_class(folder: Path, name: str, library: str, class_name: str) -> type:
    """The class of a component whose folder is there and holds no links out of it."""
    try:
        cls = component_class(library, class_name)
    except UnknownClassError as error:
        raise UnknownClassError(f"The component {name!r} of {folder} cannot be loaded: {error}") from error
    if not (folder / name).is_dir():
        raise ModelFilesError(
            f"{folder / INDEX} names the component {name!r}, but there is no folder {folder / name}; download it, or "
            f"pass {name}=…."
        )
    check_links(folder / name, folder)
    return cls


def _load_component(
    folder: Path, name: str, cls: type, loading: Loading, sender: Sender | None = None
) -> Any:
    if not issubclass(cls, torch.nn.Module):
        return cls.from_pretrained(folder / name)  # type: ignore[attr-defined]
    if not issubclass(cls, ModelMixin | ModelGroup):
        return load_transformers_model(cls, folder / name, name, loading, sender=sender)
    return cls._read(
        folder / name,
        sender,
        completing=loading.completing.get(name),
        torch_dtype=loading.dtype_of(name),
        variant=_variant_in(folder / name, loading.variant),
        use_safetensors=loading.use_safetensors,
        device_map=loading.device,
    )


def load_transformers_model(
    cls: type,
    folder: Path,
    name: str,
    loading: Loading,
    config: Any = None,
    sender: Sender | None = None,
) -> torch.nn.Module:
    """A transformers model with our rules: safetensors unless asked otherwise, and no weight missing.

    ``config`` stands in place of the folder's. On an accelerator all is there when this returns, or ``sender`` ends.
    """
    from transformers.utils import logging as their_logging

    variant = _variant_in(folder, loading.variant)
    pickled = loading.pickled(folder)
    files = transformers_weights(folder, variant, pickled)
    if (completing := loading.completing.get(name)) is not None:
        files = files.completed_by(transformers_weights(completing, None, False))
    dtype, model = loading.dtype_of(name), None
    verbosity, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        if files.contents and not pickled:
            model = read_model(cls, folder, files, dtype, config=config, device=loading.device, sender=sender)
        if model is not None:
            return model
        with no_values_on_meta():
            model, info = cls.from_pretrained(  # type: ignore[attr-defined]
                folder,
                dtype=dtype,
                variant=variant,
                use_safetensors=not pickled,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which we report
                **({} if config is None else {"config": config}),
            )
    finally:
        their_logging.set_verbosity(verbosity)
        if bars:
            their_logging.enable_progress_bar()
    refuse_misfits(cls, folder, info)
    if loading.device is not None:
        move(model, loading.device)
    return model.eval()


def _has_pickle(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin"))


def transformers_weights(folder: Path, variant: str | None, pickled: bool) -> WeightFiles:
    """The weight files of a transformers model; ``ModelFilesError`` if there are none of the kind that may be read."""
    if pickled:
        return find_weights(folder, variant=variant, use_safetensors=False, stem="pytorch_model")
    try:
        return find_weights(folder, variant=variant, stem="model")
    except ModelFilesError as error:
        if not _has_pickle(folder):
            raise
        raise ModelFilesError(
            f"{folder} has its weights only as a pickle, which may be made to run code when it is loaded: pass "
            f"use_safetensors=False if you trust where it comes from."
        ) from error


def _variant_in(folder: Path, variant: str | None) -> str | None:
    """``variant`` if the component has files of it; some checkpoints have a variant of a few components only."""
    if variant is None or any(f".{variant}." in path.name for path in folder.iterdir()):
        return variant
    logger.warning("There are no %s files in %s; taking the plain ones.", variant, folder)
    return None


def check_variant(folder: Path, components: Iterable[str], variant: str | None) -> None:
    """Refuse a variant that no component of a checkpoint has."""
    if variant is None:
        return
    folders = [folder / name for name in components if (folder / name).is_dir()]
    if not any(f".{variant}." in path.name for part in folders for path in part.iterdir()):
        raise ModelFilesError(
            f"No component of {folder} has files of the variant {variant!r}; leave variant out."
        )


def save_component(
    value: Any,
    folder: Path,
    *,
    safe_serialization: bool,
    variant: str | None,
    max_shard_size: int | str | None,
) -> None:
    """Save one component with those of the arguments that its ``save_pretrained`` takes."""
    value = getattr(value, "_orig_mod", value)
    save = getattr(value, "save_pretrained", None)
    if save is None:
        raise InputError(
            f"The component {folder.name!r} ({type(value).__name__}) cannot be saved: it has no save_pretrained."
        )
    takes = inspect.signature(save).parameters
    offered: dict[str, Any] = {}
    if isinstance(value, torch.nn.Module):
        offered = {
            "safe_serialization": safe_serialization,
            "variant": variant,
            "max_shard_size": max_shard_size,
        }
    save(folder, **{k: v for k, v in offered.items() if k in takes and v is not None})
