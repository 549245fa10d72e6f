"""Configurations: frozen mappings captured from constructor arguments, read from and written to JSON.

A class that has a configuration derives from :class:`ConfigMixin` and names its file; its constructor's
signature is the schema. Keys that a file has and the schema lacks are kept and reported, as the reference does,
so that a scheduler's configuration survives the way through another scheduler's class and back.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, ClassVar, NoReturn, Self

from calotype.core.errors import InputError, ModelFilesError
from calotype.core.files import write_text
from calotype.core.version import FORMAT_VERSION

logger = logging.getLogger(__name__)


def freeze(value: Any) -> Any:
    """Nested containers made immutable: mappings become ``Config``, lists become tuples."""
    if isinstance(value, Config):
        return value
    if isinstance(value, Mapping):
        return Config(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


class Config(dict[str, Any]):
    """A frozen dictionary whose keys are readable as attributes; every way of writing raises ``TypeError``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__({key: freeze(value) for key, value in dict(*args, **kwargs).items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The configuration has no entry {name!r}; it has {sorted(self)}.") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "A configuration is frozen: make the object again with other arguments, as in "
            "`type(x).from_config(x.config, key=value)`."
        )

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = _refuse
    pop = popitem = setdefault = update = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (dict(self),)


def init_parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """The named parameters of a class's constructor, in order, without ``self`` and ``*args``/``**kwargs``."""
    return _init_parameters(cls)


@lru_cache(maxsize=512)
def _init_parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(cls.__init__).parameters.items())[1:]  # type: ignore[misc]
    return {name: parameter for name, parameter in parameters if parameter.kind not in variadic}


def _as_json(value: Any) -> Any:
    """The parts of a configuration that JSON has no type for: arrays and tensors, paths, dtypes."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


class ConfigFile:
    """An object with a configuration that is kept in a JSON file called ``config_name``."""

    config_name: ClassVar[str]
    ignore_for_config: ClassVar[tuple[str, ...]] = ()
    derived_in_config: ClassVar[tuple[str, ...]] = ()
    """Entries that every instance registers itself, by its arguments; files have them, and they are not read."""

    @property
    def config(self) -> Config:
        """The configuration, frozen."""
        return self.__dict__.get("_config_for_now") or self.config_of_files

    @property
    def config_of_files(self) -> Config:
        """The configuration as it is saved: without what :meth:`overlay_config` shows."""
        return self.__dict__.get("_config") or Config()

    def register_to_config(self, **entries: Any) -> None:
        """Add or replace entries of the configuration."""
        saved = self.config_of_files
        defaults = tuple(k for k in saved.get("_use_default_values", ()) if k not in entries)
        merged = {**saved, **{k: v for k, v in entries.items() if k not in self.ignore_for_config}}
        if "_use_default_values" in saved:
            merged["_use_default_values"] = defaults
        self.__dict__["_config"] = Config(merged)
        self.overlay_config(**self.__dict__.get("_overlay", {}))

    def overlay_config(self, **entries: Any) -> None:
        """Show these entries in the configuration in place of its own, and save those; without any, its own again."""
        own = self.__dict__
        own.pop("_config_for_now", None)
        own.pop("_overlay", None)
        if entries:
            own["_overlay"] = entries
            own["_config_for_now"] = Config({**self.config_of_files, **entries})

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The configuration as a dictionary, from a folder, a JSON file or a Hub repository.

        Takes the Hub options (``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``,
        ``subfolder``). Raises ``ModelFilesError`` when there is none or it is not a JSON object.
        """
        from calotype.core import hub

        subfolder = kwargs.pop("subfolder", None)
        options = hub.HubOptions.take(kwargs)
        path = hub.find_file(
            pretrained_model_name_or_path, cls.config_name, subfolder=subfolder, options=options
        )
        config = read_json(path)
        result: tuple[Any, ...] = (config,)
        if return_unused_kwargs:
            result += (kwargs,)
        if return_commit_hash:
            result += (hub.commit_of(path),)
        return result if len(result) > 1 else config

    get_config_dict = load_config

    def to_json_string(self) -> str:
        """The configuration as the reference writes it: sorted keys, two spaces, class name and format version."""
        hidden = ("_use_default_values", "_ignore_files")
        entries = {k: v for k, v in self.config_of_files.items() if k not in hidden}
        entries |= {"_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return json.dumps(entries, indent=2, sort_keys=True, default=_as_json) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json_string` to a file, atomically."""
        write_text(Path(json_file_path), self.to_json_string())

    def save_config(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the configuration to ``save_directory/config_name``, making the folder; optionally upload it."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ModelFilesError(
                f"{folder} is a file; save_config needs a folder to write {self.config_name} into."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / self.config_name)
        if push_to_hub:
            from calotype.core import hub

            hub.upload_folder(folder, **kwargs)


class ConfigMixin(ConfigFile):
    """An object that is made from its configuration: ``cls.from_config(obj.config)`` makes it again.

    The constructor's arguments are the configuration; subclasses write an ordinary explicit ``__init__`` and set
    ``config_name``. Arguments in ``ignore_for_config`` (components of a pipeline, say) are not recorded.
    """

    _compatibles: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        try:
            given = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs).arguments
        except TypeError:
            return self  # the constructor itself says what is wrong with the call
        values, defaults = {}, []
        for name, parameter in init_parameters(cls).items():
            if name in cls.ignore_for_config:
                continue
            if name in given:
                values[name] = given[name]
            elif parameter.default is not inspect.Parameter.empty:
                values[name] = parameter.default
                defaults.append(name)
        self.__dict__["_config"] = Config(values, _use_default_values=defaults)
        return self

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """An instance made from a configuration, which may be that of another class; ``kwargs`` take precedence.

        Entries that neither class knows are reported with a warning and kept in ``config``. With
        ``return_unused_kwargs`` the result is ``(instance, unused)``.
        """
        if config is None:
            raise InputError(
                f"{cls.__name__}.from_config needs a configuration; to load from a folder or "
                f"repository use {cls.__name__}.from_pretrained."
            )
        if not isinstance(config, Mapping):
            raise InputError(
                f"{cls.__name__}.from_config takes a configuration mapping, not {type(config).__name__} "
                f"{config!r}; to load from a folder or repository use {cls.__name__}.from_pretrained."
            )
        arguments, unused, hidden = cls._split_config(config, kwargs)
        instance = cls(**arguments)
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        instance.register_to_config(**hidden)
        return (instance, unused) if return_unused_kwargs else instance

    @classmethod
    def _split_config(
        cls, config: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Constructor arguments, what nobody uses, and what is carried along for compatible classes."""
        defaults = config.get("_use_default_values", ())
        stated = {k: v for k, v in config.items() if k not in defaults and k != "_use_default_values"}
        expected = [name for name in init_parameters(cls) if name not in cls.ignore_for_config]
        arguments = {
            name: {**stated, **kwargs}[name] for name in expected if name in stated or name in kwargs
        }

        understood_elsewhere = set(_parameters_of(cls._compatibles))
        written_by = stated.get("_class_name", cls.__name__)
        if isinstance(written_by, str) and written_by != cls.__name__:
            understood_elsewhere |= set(_parameters_of((written_by,)))
        unknown = {
            key: value
            for key, value in stated.items()
            if key not in arguments
            and not key.startswith("_")
            and key not in understood_elsewhere
            and key not in cls.derived_in_config
            and key != "quantization_config"
        }
        if unknown:
            logger.warning(
                "The configuration entries %s are not known to %s and have no effect; check its %s.",
                unknown,
                cls.__name__,
                cls.config_name,
            )
        unused = {**unknown, **{k: v for k, v in kwargs.items() if k not in arguments}}
        hidden = {
            key: value
            for key, value in stated.items()
            if key not in arguments and key not in cls.derived_in_config
        }
        return arguments, unused, hidden


def _parameters_of(class_names: Iterable[str]) -> Iterable[str]:
    """Constructor parameter names of the calotype classes of these names; names that we lack have none."""
    public = importlib.import_module("calotype")
    for name in class_names:
        cls = getattr(public, name, None)
        if isinstance(cls, type):
            yield from init_parameters(cls)


MAX_JSON = 64 * 2**20
"""The largest JSON file that is read, in bytes."""

MAX_DEPTH = 32
"""How deep the lists and objects of a JSON file may be nested."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``ModelFilesError`` says what is wrong with it otherwise."""
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ModelFilesError(f"{path} has {size:,} bytes; a configuration takes at most {MAX_JSON:,}.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, entry in pairs:
            if key in result:
                raise ValueError(f"it has the key {key!r} twice")
            result[key] = entry
        return result

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ModelFilesError(f"{path} is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:  # of the text, of the encoding, of the length of a number
        raise ModelFilesError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path} holds a JSON {type(value).__name__} where an object is expected.")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in _items(outer)]
    if level:
        raise ModelFilesError(f"{path} is nested deeper than {MAX_DEPTH} levels.")
    return value


def _items(value: Any) -> Iterable[Any]:
    """What stands inside of a list or an object."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
