"""The base of all pipelines: named components, loaded from and saved to a folder or repository."""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from calotype.acceleration.pipeline import give_back
from calotype.core import hub
from calotype.core.config import ConfigFile, init_parameters, read_json
from calotype.core.errors import InputError, ModelFilesError, UnknownClassError
from calotype.core.progress import progress_bar
from calotype.core.sending import move_all
from calotype.diffusion.parts import Parts, Stage
from calotype.pipelines.components import (
    INDEX,
    Loading,
    check_variant,
    grouped,
    library_of,
    load_components,
    public_class,
    save_component,
)
from calotype.pipelines.connected import COMBINED, connected_components
from calotype.pipelines.download import fetch
from calotype.pipelines.efficiency import Efficiency
from calotype.single_file.kandinsky_2_0 import published_class, read_published

if TYPE_CHECKING:
    from calotype.diffusion.controls.control import Control
    from calotype.diffusion.family import Family
    from calotype.diffusion.tasks.task import Task

logger = logging.getLogger(__name__)

_REFUSED = {
    "custom_pipeline": "code from a repository is never run; write the pipeline as a class of your own",
    "trust_remote_code": "code from a repository is never run",
    "quantization_config": "quantised loading is not supported",
    "use_onnx": "ONNX files are not supported",
    "use_flashpack": "only safetensors files are supported",
}
"""Arguments of the reference's loader that ask for what this loader does not do, and why."""

_NO_EFFECT = (
    "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict", "disable_mmap", "custom_revision",
    "provider", "sess_options", "provider_options",
)  # fmt: skip
"""Arguments of the reference's loader that only tune how it works inside."""


class DiffusionPipeline(Efficiency, ConfigFile):
    """Components by name, and what is done with all of them: loading, saving, moving.

    A pipeline of the library is a declaration: ``family`` (how a model family works), ``task`` (what is made) and the
    two signatures; where it samples several times, the ``stages`` that come before and the ``prefix`` of the last.
    Components whose names begin with ``connected`` may be in another checkpoint, which the model card names. A user's
    own subclass may instead define ``__init__``, which calls ``register_modules``, and ``__call__``.
    """

    config_name = INDEX
    family: ClassVar[type[Family]]
    task: ClassVar[Task]
    controls: ClassVar[tuple[Control, ...]] = ()
    stages: ClassVar[tuple[Stage, ...]] = ()
    prefix: ClassVar[str] = ""
    connected: ClassVar[str] = ""
    _optional_components: ClassVar[tuple[str, ...]] = ()

    # -- components --------------------------------------------------------------------------------------------

    def register_modules(self, **components: Any) -> None:
        """Make components attributes of the pipeline and record their classes in its configuration.

        A list of models becomes the group that files have.
        """
        for name, given in components.items():
            value = grouped(name, given)
            setattr(self, name, value)
            self.register_to_config(**{name: library_of(value)})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        entry = self.config.get(name)
        if isinstance(entry, tuple) and len(entry) == 2:
            self.register_to_config(**{name: library_of(value)})

    @property
    def components(self) -> dict[str, Any]:
        """The components by their names in the constructor."""
        return {
            name: getattr(self, name) for name in init_parameters(type(self)) if _is_component(self, name)
        }

    def bound_family(self) -> Family:
        """The family with the components and options that the pipeline has now."""
        return self.family.bound(self._values, self.prefix)

    def parts(self) -> Parts:
        """What a call of this pipeline is the sum of."""
        return parts_of(type(self), self._values)

    @property
    def _values(self) -> dict[str, Any]:
        options = {k: v for k, v in self.config.items() if k in init_parameters(type(self))}
        settings = {name: getattr(self, name) for name in self.family.settings() if hasattr(self, name)}
        return {**options, **settings, **self.components}

    @property
    def device(self) -> torch.device:
        """Where the first model is."""
        for module in self._modules_by_name.values():
            for tensor in module.parameters():
                return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first model's parameters."""
        for module in self._modules_by_name.values():
            for tensor in module.parameters():
                return tensor.dtype
        return torch.float32

    @property
    def name_or_path(self) -> str | None:
        """Where the pipeline was loaded from."""
        return self.config.get("_name_or_path")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and convert all models: ``to("cuda")``, ``to(torch.float16)``, ``to("cuda", torch.float16)``.

        Raises ``InputError`` for an argument that is neither a device nor a floating-point type.
        """
        kwargs.pop("silence_dtype_warnings", None)
        device, dtype = _destination(args, kwargs)
        with self._at_home(device) as places:
            move_all([(module, places[name]) for name, module in self._modules_by_name.items()], dtype)
        give_back(self._modules_by_name.values())
        return self

    # -- files -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The pipeline in a folder or Hub repository; of the class that its index names, or of this class.

        A folder may also hold Kandinsky 2.0 as it was published, which had no index.

        Keyword arguments: components by name, in place of the files' (``None`` leaves an optional one out);
        ``torch_dtype`` (or ``dtype``; one type, or a mapping from component to type; float32 if not given);
        ``variant``; ``use_safetensors`` (``False`` allows pickles); ``device_map``, one device;
        ``load_connected_pipeline``, for a decoder together with the prior that its model card names; and the Hub's
        ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises ``ModelFilesError`` for files that are missing or damaged, ``UnknownClassError`` for a class that
        calotype does not have and ``InputError`` for arguments without meaning.
        """
        for name, why in _REFUSED.items():
            if kwargs.pop(name, None):
                raise InputError(f"from_pretrained does not take {name}: {why}.")
        for name in _NO_EFFECT:
            kwargs.pop(name, None)
        together = kwargs.pop("load_connected_pipeline", False)
        options = hub.HubOptions.take(kwargs)
        dtype = kwargs.pop("dtype", None)
        loading = Loading(
            dtype=kwargs.pop("torch_dtype", None) if dtype is None else dtype,
            variant=kwargs.pop("variant", None),
            use_safetensors=kwargs.pop("use_safetensors", None),
            device=_one_device(kwargs.pop("device_map", None)),
        )
        if published_class(pretrained_model_name_or_path) is not None:
            return read_published(cls, Path(pretrained_model_name_or_path), kwargs, loading)
        folder = cls.download(
            pretrained_model_name_or_path,
            variant=loading.variant,
            use_safetensors=loading.use_safetensors,
            passed=tuple(kwargs),
            **vars(options),
        )
        index = read_json(Path(folder) / INDEX)
        chosen = cls._class_for(index, folder, together)
        if chosen.connected:
            kwargs |= connected_components(
                chosen,
                chosen.connected,
                pretrained_model_name_or_path,
                {*index, *kwargs},
                options,
                torch_dtype=loading.dtype,
                variant=loading.variant,
                use_safetensors=loading.use_safetensors,
                device_map=loading.device,
            )
        values = chosen._load(Path(folder), index, kwargs, loading)
        pipe = chosen(**values)
        pipe.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The pipeline in one file of the original layout of Stable Diffusion 1, 2 or XL, inpainting and refiner too.

        The file, or its address on the Hub; which family it is of is told from the weights' names. Keyword arguments:
        components by name, in place of the file's; ``config``, a folder or repository with the configurations and
        tokenizers, which such files do not hold; ``torch_dtype``; ``prediction_type``; and the Hub's options. Raises as
        :meth:`from_pretrained`.
        """
        from calotype.single_file.pipelines import read_pipeline

        for name, why in _REFUSED.items():
            if kwargs.pop(name, None):
                raise InputError(f"from_single_file does not take {name}: {why}.")
        if kwargs.pop("original_config", None) or kwargs.pop("original_config_file", None):
            raise InputError(
                "from_single_file does not take original_config: the weights' names and shapes tell it."
            )
        for name in (*_NO_EFFECT, "load_safety_checker", "extract_ema"):
            kwargs.pop(name, None)
        options = hub.HubOptions.take(kwargs)
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device_map", None)
        older = kwargs.pop("torch_dtype", None)
        loading = Loading(dtype=older if dtype is None else dtype, device=_one_device(device))
        config = kwargs.pop("config", None)
        return read_pipeline(cls, pretrained_model_link_or_path, kwargs, loading, config, options)

    @classmethod
    def _class_for(
        cls, index: dict[str, Any], folder: str | os.PathLike[str], together: bool = False
    ) -> type[DiffusionPipeline]:
        if cls is not DiffusionPipeline:
            return cls
        name = index.get("_class_name")
        if not isinstance(name, str):
            raise UnknownClassError(
                f"{Path(folder) / INDEX} names no pipeline class of this library (its _class_name is {name!r}); load "
                f"it with the from_pretrained of the pipeline class that you want."
            )
        try:
            found = public_class(COMBINED.get(name, name) if together else name)
        except UnknownClassError as error:
            raise UnknownClassError(
                f"{Path(folder) / INDEX} asks for a pipeline that is not here: {error}"
            ) from error
        if not issubclass(found, DiffusionPipeline):
            raise UnknownClassError(f"{Path(folder) / INDEX} names {name}, which is not a pipeline.")
        return found

    @classmethod
    def _load(
        cls,
        folder: Path,
        index: dict[str, Any],
        given: dict[str, Any],
        loading: Loading,
    ) -> dict[str, Any]:
        """The constructor's arguments: what was passed, what the files have, and the defaults."""
        parameters = init_parameters(cls)
        if unknown := [name for name in given if name not in parameters]:
            logger.warning("%s has no component %s; it has no effect.", cls.__name__, ", ".join(unknown))
        stored = {k: v for k, v in index.items() if k in parameters and k not in given}
        files = {k: v for k, v in stored.items() if isinstance(v, list) and len(v) == 2 and v[0] is not None}
        check_variant(folder, files, loading.variant)
        values = {k: v for k, v in given.items() if k in parameters}
        with progress_bar(total=len(files), desc="Loading components", leave=False) as bar:
            values |= load_components(folder, files, loading, bar.update)
        for name, entry in stored.items():
            if name not in values:
                values[name] = None if isinstance(entry, list) and len(entry) == 2 else entry
        for name, parameter in parameters.items():
            if name in values or parameter.default is not inspect.Parameter.empty:
                continue
            if name not in cls._optional_components:
                raise ModelFilesError(
                    f"{cls.__name__} needs the component {name!r}, which {folder / INDEX} does not name; pass {name}=…."
                )
            values[name] = None
        return values

    @classmethod
    def download(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        *,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        passed: Iterable[str] = (),
        **kwargs: Any,
    ) -> str:
        """The local folder of a checkpoint, after downloading those of its files that a pipeline needs.

        Components whose names are in ``passed`` are left out. A folder is returned as it is.
        """
        options = hub.HubOptions.take(kwargs)
        if os.path.isdir(pretrained_model_name):
            hub.find_file(pretrained_model_name, INDEX)
            return os.fspath(pretrained_model_name)
        return os.fspath(
            fetch(
                os.fspath(pretrained_model_name),
                variant=variant,
                use_safetensors=use_safetensors,
                passed=tuple(passed),
                options=options,
            )
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save every component in its own subfolder, and ``model_index.json`` last: it marks a whole checkpoint.

        Files larger than ``max_shard_size`` are split. ``push_to_hub`` uploads the folder afterwards, with ``repo_id``,
        ``token``, ``private``, ``commit_message``, ``create_pr`` from ``kwargs``.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ModelFilesError(f"{folder} is a file; save_pretrained needs a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in self.components.items():
            if value is not None:
                save_component(
                    value,
                    folder / name,
                    safe_serialization=safe_serialization,
                    variant=variant,
                    max_shard_size=max_shard_size,
                )
        self.save_config(folder, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """A pipeline of this class that shares another's components; ``kwargs`` replace or add some.

        Models are put in evaluation mode. ``torch_dtype`` converts them, which the other pipeline sees too. Options
        that this class lacks are carried along, so that a pipeline made of this one has them again. Raises
        ``InputError`` when a component that this class needs is in neither; ``None`` leaves an optional one out.
        """
        if cls is DiffusionPipeline:
            raise InputError(
                "from_pipe makes a pipeline of the class that it is called on: call it on one of them."
            )
        dtype = kwargs.pop("torch_dtype", None)
        parameters = init_parameters(cls)
        own = [name for name in pipeline.config if name not in pipeline.components]
        options = {
            name.removeprefix("_"): pipeline.config[name]
            for name in sorted(own, key=lambda name: not name.startswith("_"))
        }
        shared = {**options, **vars(pipeline), **pipeline.components}
        values = {name: shared[name] for name in parameters if name in shared} | kwargs
        missing = [
            name
            for name, parameter in parameters.items()
            if name not in values and parameter.default is inspect.Parameter.empty
        ]
        if missing:
            raise InputError(
                f"{cls.__name__} needs {', '.join(missing)}, which {type(pipeline).__name__} does not have; pass "
                f"{missing[0]}=…."
            )
        pipe = cls(**values)
        for module in pipe._modules_by_name.values():
            module.eval()
        pipe.register_to_config(**{f"_{k}": v for k, v in options.items() if k not in parameters})
        return pipe if dtype is None else pipe.to(dtype)

    # -- progress ----------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options for ``tqdm``, such as ``disable=True`` or ``desc="…"``."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A ``tqdm`` bar with the options of :meth:`set_progress_bar_config`."""
        if iterable is None and total is None:
            raise InputError("A progress bar needs an iterable or a total.")
        return progress_bar(iterable, **{"total": total, **getattr(self, "_progress_bar_config", {})})

    # -- calls in progress -------------------------------------------------------------------------------------

    @contextmanager
    def running(self, call: Any) -> Iterator[Any]:
        """Enter a call in progress in the pipeline's list, so that it can be interrupted from outside."""
        calls = self.__dict__.setdefault("_calls", weakref.WeakSet())
        calls.add(call)
        try:
            yield call
        finally:
            calls.discard(call)

    @property
    def interrupt(self) -> bool:
        """Whether any call in progress has been told to end."""
        return any(call.interrupt for call in self.__dict__.get("_calls", ()))

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        for call in tuple(self.__dict__.get("_calls", ())):
            call._interrupt = value

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return self.parts().tensor_names

    @staticmethod
    def numpy_to_pil(images: Any) -> list[Any]:
        """Arrays (batch, height, width, channels) in [0, 1] as PIL images."""
        from calotype.diffusion.images import numpy_to_pil

        return numpy_to_pil(images)


def parts_of(declared: type[DiffusionPipeline], values: Mapping[str, Any]) -> Parts:
    """What a pipeline class declares a call to be the sum of, bound to components and options."""
    before = (
        Parts(
            stage.family.bound(values, stage.prefix),
            stage.task,
            prefix=stage.prefix,
            gives=stage.gives,
            alone=stage.alone,
            ignores=stage.ignores,
        )
        for stage in declared.stages
    )
    family = declared.family.bound(values, declared.prefix)
    # the arguments of a call that samples once have plain names, whatever its components have
    prefix = declared.prefix if declared.stages else ""
    return Parts(family, declared.task, declared.controls, prefix, before=tuple(before))


def _is_component(pipe: DiffusionPipeline, name: str) -> bool:
    entry = pipe.config.get(name)
    return isinstance(entry, tuple) and len(entry) == 2 and hasattr(pipe, name)


def _one_device(device_map: Any) -> torch.device | None:
    if device_map is None:
        return None
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise InputError(
            f"device_map={device_map!r} is not a device: give 'cpu', 'cuda' or a torch.device; spreading a pipeline's "
            f"components over devices is not supported."
        ) from None


def _destination(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None]:
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if kwargs:
        raise InputError(f"to() has no argument {', '.join(kwargs)}; it takes a device and a dtype.")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | int | torch.device):
            device = value
        else:
            raise InputError(f"to() takes a device and a dtype, not {value!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"The models cannot be converted to {dtype}; give a floating-point type.")
    try:
        return (None if device is None else torch.device(device)), dtype
    except RuntimeError as error:
        raise InputError(f"{device!r} is not a device: {str(error).splitlines()[0]}") from None
