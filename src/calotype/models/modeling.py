"""The base of all networks: a module with a configuration, loaded from and saved to folders and repositories."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from calotype.core import hub, meta, saving, weights
from calotype.core.config import ConfigMixin
from calotype.core.errors import CalotypeError, InputError, ModelFilesError, UnknownClassError
from calotype.core.interpreter import keeping_all
from calotype.core.sending import Sender
from calotype.core.sharing import PushToHubMixin
from calotype.models.network import Network

logger = logging.getLogger(__name__)

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How the attention layers of VAEs and early UNets were named in files until 2023."""

_NOT_OURS = ("quantization_config", "parallel_config", "use_flashpack")
"""Arguments of the reference's loader that ask for something that this loader does not do."""

_NO_EFFECT = ("max_memory", "offload_folder", "offload_state_dict", "disable_mmap", "flashpack_kwargs")
"""Arguments of the reference's loader that only tune how it works inside."""


class ModelMixin(ConfigMixin, PushToHubMixin, Network):
    """A network with ``config``, ``dtype``, ``device``, ``from_pretrained`` and ``save_pretrained``.

    Subclasses are final; their attribute names are the keys of checkpoint files. They must not compute buffers
    that are not saved in their constructors, which also run on the meta device.
    """

    config_name = "config.json"
    _keys_to_ignore_on_load_unexpected: ClassVar[tuple[str, ...]] = ()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            entries = self.__dict__.get("_config", {})
            modules = self.__dict__.get("_modules", {})
            if name in entries and name not in modules and name not in self.__dict__.get("_parameters", {}):
                kind = type(self).__name__
                warnings.warn(
                    f"Reading the configuration entry {name!r} from the {kind} itself is deprecated: use "
                    f"`.config.{name}`.",
                    FutureWarning,
                    stacklevel=2,
                )
                return entries[name]
        return super().__getattr__(name)

    # -- files -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The model in a folder or Hub repository, in evaluation mode.

        Keyword arguments: ``subfolder``; ``torch_dtype`` (or ``dtype``; float32 if not given); ``variant``, as in
        ``"fp16"``; ``use_safetensors`` (``False`` allows pickles); ``device_map``, one device for the whole model;
        ``output_loading_info`` for a pair ``(model, info)``; the Hub's ``revision``, ``token``, ``cache_dir``,
        ``local_files_only``, ``force_download``; and configuration entries to override. With
        ``ignore_mismatched_sizes=True`` weights that the files lack or have in another shape are freshly
        initialised.

        Raises ``ModelFilesError`` for files that are missing or damaged, ``WeightsError`` for weights that do not
        fit and ``InputError`` for arguments without meaning.
        """
        with keeping_all():
            return cls._read(pretrained_model_name_or_path, None, **kwargs)

    @classmethod
    def _read(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        sender: Sender | None,
        *,
        completing: Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`from_pretrained`, with the weights on the accelerator by the time that ``sender`` ends.

        Weights that the files lack are those of the model in the folder ``completing``.
        """
        options = hub.HubOptions.take(kwargs)
        subfolder = kwargs.pop("subfolder", None)
        dtype = _dtype(kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None))
        variant = kwargs.pop("variant", None)
        use_safetensors = kwargs.pop("use_safetensors", None)
        device = _device(kwargs.pop("device_map", None))
        with_info = kwargs.pop("output_loading_info", False)
        lenient = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs.pop("low_cpu_mem_usage", None)  # memory is always used sparingly
        for name in _NO_EFFECT:
            kwargs.pop(name, None)
        for name in _NOT_OURS:
            if kwargs.pop(name, None):
                raise InputError(f"{cls.__name__}.from_pretrained does not support `{name}`; leave it out.")

        config, commit = cls.load_config(
            pretrained_model_name_or_path, return_commit_hash=True, subfolder=subfolder, **vars(options)
        )
        _check_class(cls, config, pretrained_model_name_or_path)
        _check_form(config, pretrained_model_name_or_path)
        files = weights.find_weights(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            variant=variant,
            use_safetensors=use_safetensors,
            options=options.at(commit),
        )
        if completing is not None:
            files = files.completed_by(weights.find_weights(completing))
        model, unknown = cls._empty(config, kwargs, files, on_meta=not lenient)
        if mistaken := [name for name in kwargs if name in unknown]:
            raise InputError(
                f"{cls.__name__}.from_pretrained has no argument {', '.join(mistaken)}, and it is no entry of the "
                f"configuration either."
            )
        report = weights.fill(
            model,
            files,
            dtype=dtype,
            device=device,
            rename=file_key,
            ignore=cls._keys_to_ignore_on_load_unexpected,
            keep_in_fp32=cls._keep_in_fp32_modules,
            lenient=lenient,
            sender=sender,
        )
        if problem := weights.describe(report, cls.__name__, files.origin):
            logger.warning("%s What does not fit is newly initialised and has to be trained.", problem)
            model.to(device=device, dtype=dtype)
        model.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        model.eval()
        return (model, report.as_dict()) if with_info else model

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """The model in a file of the original layout of Stable Diffusion, alone or with others, in evaluation mode.

        A file, or its address on the Hub. Keyword arguments: ``config``, a folder or repository whose configuration is
        taken in place of what the weights' names and shapes tell, with ``subfolder``; ``torch_dtype``; the Hub's
        options; and configuration entries to override. Raises as :meth:`from_pretrained`.
        """
        from calotype.single_file.models import load_model

        return load_model(cls, pretrained_model_link_or_path_or_dict, kwargs)

    @classmethod
    def _empty(
        cls, config: Mapping[str, Any], overrides: dict[str, Any], files: weights.WeightFiles, on_meta: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A model to fill from ``files``, and what of the overrides it does not know.

        Raises ``ModelFilesError`` for a configuration that describes no such model, or one that the files cannot fill.
        """
        _check_form(config, files.origin)
        weights.check_layers(config, files)
        try:
            made = weights.no_larger_than(files)
            with meta.on_meta(made) if on_meta else meta.telling(made):
                return cls.from_config(config, return_unused_kwargs=True, **overrides)
        except CalotypeError as error:
            if overrides or not isinstance(error, InputError):
                raise
            raise ModelFilesError(
                f"The {cls.config_name} at {files.origin} does not describe a {cls.__name__}: {error}"
            ) from error
        except (
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            raise ModelFilesError(
                f"The {cls.config_name} at {files.origin} does not describe a {cls.__name__}: "
                f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            ) from error

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and the weights into a folder, which is made; each file appears whole.

        Files larger than ``max_shard_size`` are split and an index is written. ``push_to_hub`` uploads the folder
        afterwards, with ``repo_id``, ``token``, ``private``, ``commit_message``, ``create_pr`` from ``kwargs``.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ModelFilesError(f"{folder} is a file; save_pretrained needs a folder.")
        if use_flashpack:
            raise InputError("save_pretrained does not write FlashPack files; leave use_flashpack out.")
        if kwargs and not push_to_hub:
            raise InputError(f"save_pretrained has no argument {', '.join(kwargs)} unless push_to_hub=True.")
        if meta := [name for name, tensor in self.state_dict().items() if tensor.is_meta]:
            raise InputError(
                f"The model has tensors without values, such as {meta[0]}: there is nothing to save."
            )
        saving.parse_size(max_shard_size)
        folder.mkdir(parents=True, exist_ok=True)
        saving.save_state(
            self.state_dict(),
            folder,
            variant=variant,
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
            save_function=save_function,
        )
        if is_main_process:
            self.save_config(folder)  # after the weights, for which the disk may be too small
        if push_to_hub:
            hub.upload_folder(folder, **kwargs)


def _dtype(torch_dtype: Any, dtype: Any) -> torch.dtype | None:
    chosen = dtype if dtype is not None else torch_dtype
    if isinstance(chosen, str) and isinstance(
        getattr(torch, chosen.removeprefix("torch."), None), torch.dtype
    ):
        chosen = getattr(torch, chosen.removeprefix("torch."))
    if chosen is not None and not isinstance(chosen, torch.dtype):
        raise InputError(f"torch_dtype={chosen!r} is not a torch.dtype such as torch.float16.")
    return chosen


def _device(device_map: Any) -> torch.device | None:
    """One device for the whole model, from any of the forms in which the reference takes it."""
    if device_map is None:
        return None
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise InputError(
                f"device_map={dict(device_map)!r} spreads one model over devices, which is not supported: give one "
                f"device, as in device_map='cuda'."
            )
        device_map = device_map[""]
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device_map={device_map!r} is not a device: give 'cpu', 'cuda', 'cuda:1' or a torch.device; placing "
            f"the parts of one model automatically is not supported."
        ) from error


def _check_form(config: Mapping[str, Any], origin: str | os.PathLike[str]) -> None:
    """Weights that stand for others are not read."""
    if config.get("quantization_config"):
        raise ModelFilesError(
            f"The weights at {os.fspath(origin)} are quantised, which is not supported; take a checkpoint in float16 "
            f"or bfloat16."
        )


def _check_class(cls: type, config: Mapping[str, Any], origin: str | os.PathLike[str]) -> None:
    """Tells the folder of a Transformers model, which also has a config.json, from one of ours."""
    if "_class_name" not in config and "model_type" in config:
        raise UnknownClassError(
            f"{os.fspath(origin)} holds a Transformers model ({config['model_type']}), not a {cls.__name__}."
        )


def file_key(key: str, expected: Container[str]) -> str:
    """The name of today for a key of an old attention layer, if the model has that and not the old one."""
    match = re.fullmatch(r"(.*\.)(query|key|value|proj_attn)\.(weight|bias)", key)
    if match is None or key in expected:
        return key
    modern = f"{match[1]}{_OLD_ATTENTION[match[2]]}.{match[3]}"
    return modern if modern in expected else key
