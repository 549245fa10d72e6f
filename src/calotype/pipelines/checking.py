"""Whether a checkpoint can be trusted: every check of loading and one of every number, also after the first error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calotype.core import weights
from calotype.core.config import ConfigMixin, init_parameters, read_json
from calotype.core.errors import CalotypeError, ModelFilesError
from calotype.core.files import check_links
from calotype.core.tensor_files import human_size, read_tensors
from calotype.models.model_group import ModelGroup
from calotype.models.modeling import ModelMixin, file_key
from calotype.pipelines.components import (
    INDEX,
    LIBRARY,
    Loading,
    component_class,
    load_transformers_model,
    public_class,
)

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """What was found: where, how bad (``ok``, ``warning``, ``error``), and the sentence for it."""

    where: str
    level: str
    text: str


def check(folder: Path, numbers: bool = True) -> Iterator[Finding]:
    """The findings about a pipeline's or model's folder, as they come; ``numbers`` reads every weight for NaN."""
    if (folder / INDEX).is_file():
        yield from _check_pipeline(folder, numbers)
    elif (folder / "config.json").is_file():
        try:
            name = read_json(folder / "config.json").get("_class_name")
            library = LIBRARY if name else "transformers"
            name = name or (read_json(folder / "config.json").get("architectures") or [None])[0]
            yield from _check_component(folder, folder, "model", library, str(name), numbers)
        except CalotypeError as error:
            yield Finding("config.json", ERROR, str(error))
    else:
        yield Finding(
            str(folder), ERROR, f"holds neither a pipeline ({INDEX}) nor a single model (config.json)."
        )


def _check_pipeline(folder: Path, numbers: bool) -> Iterator[Finding]:
    try:
        index = read_json(folder / INDEX)
    except CalotypeError as error:
        yield Finding(INDEX, ERROR, str(error))
        return
    try:
        cls = public_class(str(index.get("_class_name")))
        yield Finding(INDEX, OK, cls.__name__)
        parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
        needed = [
            name
            for name, parameter in init_parameters(cls).items()
            if parameter.default is parameter.empty and name not in getattr(cls, "_optional_components", ())
        ]
        for name in needed:
            if name not in parts or parts[name][0] is None:
                yield Finding(name, ERROR, f"{cls.__name__} needs it, and {INDEX} does not name it.")
    except CalotypeError as error:
        yield Finding(INDEX, ERROR, str(error))
        parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    for name, (library, class_name) in parts.items():
        if library is None:
            continue
        if not (folder / name).is_dir():
            yield Finding(name, ERROR, f"{INDEX} names it, but there is no folder {folder / name}.")
            continue
        yield from _check_component(folder / name, folder, name, str(library), str(class_name), numbers)


def _check_component(
    part: Path, folder: Path, name: str, library: str, class_name: str, numbers: bool
) -> Iterator[Finding]:
    """The class, the configuration, and every set of weights, also those that loading would not choose."""
    try:
        check_links(part, folder)
        cls = component_class(library, class_name)
    except CalotypeError as error:
        yield Finding(name, ERROR, str(error))
        return
    if issubclass(cls, ModelGroup):
        cls = cls._member_class
    if not issubclass(cls, torch.nn.Module):
        yield _made(cls, part, name)
        return
    stem = weights.WEIGHTS_STEM if issubclass(cls, ModelMixin) else "model"
    sets = _sets(part, stem)
    for path in sorted(part.glob("*.bin")):
        yield Finding(
            name, WARNING, f"{path.name} is a pickle, which is read only with use_safetensors=False."
        )
    if not sets:
        yield Finding(name, ERROR, f"There are no weights in {part} as safetensors.")
    for variant in sets:
        try:
            files = weights.find_weights(part, variant=variant, stem=stem)
            yield from _check_weights(cls, part, name, files, variant, numbers)
        except CalotypeError as error:
            yield Finding(name, ERROR, str(error))


def _sets(part: Path, stem: str) -> list[str | None]:
    """The variants of which there are weights, the plain one as ``None``."""
    found: dict[str | None, None] = {}
    for path in sorted(part.glob(f"{stem}*.safetensors*")):
        pieces = path.name.removesuffix(".json").removesuffix(".index").split(".")
        middle = [piece for piece in pieces[1:] if piece not in ("safetensors", "index")]
        found[middle[0] if middle else None] = None
    return list(found)


def _made(cls: type, part: Path, name: str) -> Finding:
    """Whether a scheduler, tokenizer or processor can be made from its files."""
    try:
        cls.from_pretrained(part)  # type: ignore[attr-defined]
    except Exception as error:  # whatever their own readers raise
        return Finding(name, ERROR, f"{cls.__name__} cannot be made from {part}: {_first_line(error)}")
    return Finding(name, OK, cls.__name__)


def _check_weights(
    cls: type, part: Path, name: str, files: weights.WeightFiles, variant: str | None, numbers: bool
) -> Iterator[Finding]:
    contents = files.contents
    infos = {key: info for one in contents.values() for key, info in one.items()}
    dtypes = ", ".join(sorted({info.dtype for info in infos.values()}))
    which = files.paths[0].name if len(files.paths) == 1 else f"{len(files.paths)} shards"
    if issubclass(cls, ModelMixin):
        problem = _misfit(cls, part, files)
        if problem is not None:
            yield Finding(name, ERROR, problem)
            return
    else:
        load_transformers_model(cls, part, name, Loading(dtype=torch.float16, variant=variant))
    bad = list(_not_finite(files)) if numbers else []
    for key, count in bad[:4]:
        yield Finding(name, ERROR, f"{key} in {which} holds {count:,} values that are NaN or infinite.")
    if len(bad) > 4:
        yield Finding(name, ERROR, f"So do {len(bad) - 4} other tensors of {which}.")
    if not bad:
        finite = ", all finite" if numbers else ""
        yield Finding(
            name,
            OK,
            f"{cls.__name__}; {which}: {len(infos)} tensors, {dtypes}, {human_size(files.nbytes)}{finite}",
        )


def _misfit(cls: type[ModelMixin], part: Path, files: weights.WeightFiles) -> str | None:
    """What of the weights does not fit the model that the configuration describes."""
    config = cls.load_config(part)
    said = logging.getLogger(ConfigMixin.__module__)
    before, said.disabled = said.disabled, True
    try:
        model, _ = cls._empty(config, {}, files, on_meta=True)
    finally:
        said.disabled = before
    expected = model.state_dict(keep_vars=True)
    found = {file_key(key, expected): info for one in files.contents.values() for key, info in one.items()}
    report = weights.compare(expected, found, cls._keys_to_ignore_on_load_unexpected)
    return weights.describe(report, cls.__name__, files.origin)


def _not_finite(files: weights.WeightFiles) -> Iterator[tuple[str, int]]:
    """The tensors with values that are NaN or infinite, and how many."""
    for path, contents in files.contents.items():
        for key, tensor in read_tensors(path, contents, lambda _, stored: stored):
            count = _count(tensor)
            if count:
                yield key, count


def _count(tensor: torch.Tensor) -> int:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0
    pieces = tensor.flatten().split(2**22)
    return sum(int((~torch.isfinite(piece.float())).sum()) for piece in pieces)


def _first_line(error: Exception) -> str:
    lines: list[Any] = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def folder_of(name: str) -> Path:
    """The folder of a checkpoint by its name or path; a repository's files are fetched."""
    from calotype.core import hub
    from calotype.pipelines.bundled import locate
    from calotype.pipelines.pipeline import DiffusionPipeline

    place = Path(locate(name))
    if place.is_dir():
        return place
    if place.is_file():
        raise ModelFilesError(f"{place} is a file; give the folder that it is in.")
    if hub.try_find_file(name, INDEX) is not None:
        return Path(DiffusionPipeline.download(name))
    return hub.snapshot(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
