"""Weights into modules, strictly: every tensor of the model comes from its files, and every key is accounted for.

A module is made on the meta device, where it costs nothing, and filled by assignment from mapped files; what goes to
an accelerator is read in pieces instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import ModelFilesError, WeightsError
from calotype.core.hub import HubOptions, Location, find_file, try_find_file
from calotype.core.safetensors_header import TensorInfo
from calotype.core.sending import Sender, sending
from calotype.core.tensor_files import can_be_sent, human_size, read_tensors, send_tensors, tensor_infos

WEIGHTS_STEM = "diffusion_pytorch_model"


def with_variant(name: str, variant: str | None) -> str:
    """``model.safetensors`` with variant ``fp16`` is ``model.fp16.safetensors``; likewise before ``.json``."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold one model's weights, and where they were asked for."""

    paths: tuple[Path, ...]
    origin: str
    part: str = ""
    """What the keys of the model begin with, in files that hold several; the rest of such a file is left alone."""
    completing: tuple[Path, ...] = ()
    """Files of another model, of which the tensors are taken that these do not have."""

    @cached_property
    def contents(self) -> dict[Path, dict[str, TensorInfo]]:
        """The tensors of each file; ``ModelFilesError`` if one is damaged or a tensor is in two of them."""
        contents = {
            path: {key: info for key, info in tensor_infos(path).items() if key.startswith(self.part)}
            for path in self.paths
        }
        _refuse_twice(contents)
        own = {key for infos in contents.values() for key in infos}
        for path in self.completing:
            contents[path] = {key: info for key, info in tensor_infos(path).items() if key not in own}
        return contents

    def completed_by(self, others: WeightFiles) -> WeightFiles:
        """These files, and of ``others`` what is not in them."""
        return replace(self, completing=others.paths)

    @property
    def nbytes(self) -> int:
        """The size of the files together."""
        if self.part:
            return sum(info.nbytes for contents in self.contents.values() for info in contents.values())
        return sum(path.stat().st_size for path in (*self.paths, *self.completing))


def find_weights(
    name_or_path: Location,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    options: HubOptions | None = None,
    stem: str = WEIGHTS_STEM,
) -> WeightFiles:
    """The weight files of a model: sharded if there is an index, else a single file.

    Pickled weights are taken only for ``use_safetensors=False``. Raises ``ModelFilesError`` if there are none.
    """
    origin = "/".join(str(part) for part in (name_or_path, subfolder) if part)
    ending = "bin" if use_safetensors is False else "safetensors"

    def look(name: str) -> Path | None:
        return try_find_file(name_or_path, name, subfolder=subfolder, options=options)

    indices = [with_variant(f"{stem}.{ending}.index.json", variant)]
    if variant:
        indices.append(f"{stem}.{ending}.{variant}.index.json")  # written so until 2024
    for name in indices:
        if (index := look(name)) is not None:
            shards = [
                find_file(name_or_path, shard, subfolder=subfolder, options=options)
                for shard in read_index(index)
            ]
            return WeightFiles(tuple(shards), origin)

    single = with_variant(f"{stem}.{ending}", variant)
    try:
        return WeightFiles((find_file(name_or_path, single, subfolder=subfolder, options=options),), origin)
    except ModelFilesError as error:
        pickled = with_variant(f"{stem}.bin", variant)
        if use_safetensors is None and look(pickled) is not None:
            raise ModelFilesError(
                f"{origin} has its weights only as {pickled}, a pickle, which may be made to run code when it is "
                f"loaded: pass use_safetensors=False if you trust where it comes from."
            ) from error
        raise


def read_index(path: Path) -> tuple[str, ...]:
    """The names of the shards that an index file lists, in order."""
    from calotype.core.config import read_json

    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFilesError(f"{path} is not an index of shards: it has no `weight_map`.")
    for name in weight_map.values():
        if not isinstance(name, str) or not name:
            raise ModelFilesError(f"{path} names {name!r} where the name of a shard is expected.")
    names = set(weight_map.values())
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            raise ModelFilesError(
                f"{path} names a shard {name!r} outside its own folder, which is not followed: download it again from "
                f"where it was published."
            )
    return tuple(sorted(names))


def check_layers(config: Mapping[str, Any], files: WeightFiles) -> None:
    """Refuse a configuration that names more layers than ``files`` hold tensors, before any list of them is made."""
    tensors = sum(len(contents) for contents in files.contents.values())
    for name, value in config.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        if "layers" in name and any(isinstance(number, int) and number > tensors for number in numbers):
            raise ModelFilesError(
                f"The configuration at {files.origin} asks for {name}={value!r}, and its weights hold only {tensors} "
                f"tensors: it is not theirs."
            )


def no_larger_than(files: WeightFiles) -> Callable[[torch.Tensor], None]:
    """Told of new tensors, stops with ``ModelFilesError`` once they have more elements than ``files`` can hold.

    So a configuration with absurd sizes costs neither memory nor time.
    """
    if not any(files.contents.values()):
        raise ModelFilesError(f"The weights at {files.origin} hold no tensors; download them again.")
    elements, limit = 0, files.nbytes

    def made(tensor: torch.Tensor) -> None:
        nonlocal elements
        elements += tensor.numel()
        if elements > 2 * limit:  # a byte is the least that an element takes; tensors may be shared
            raise ModelFilesError(
                f"The configuration at {files.origin} describes a model of {elements:,} parameters or more "
                f"({human_size(4 * elements)} in float32), and its weights have {human_size(limit)}: it is not theirs."
            )

    return made


@dataclass
class LoadingReport:
    """What did not fit; empty after a strict load."""

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[Any]]:
        """In the form of the reference's ``output_loading_info``."""
        return {**vars(self), "error_msgs": []}


def fill(
    module: nn.Module,
    files: WeightFiles,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    rename: Callable[[str, Container[str]], str] | None = None,
    ignore: Sequence[str] = (),
    keep_in_fp32: Sequence[str] = (),
    lenient: bool = False,
    pointwise: bool = False,
    sender: Sender | None = None,
) -> LoadingReport:
    """Assign the tensors of ``files`` to the parameters and persistent buffers of ``module``.

    ``rename(key, expected)`` maps a key of the file to one of the module's; keys that match a pattern of
    ``ignore`` may be left over. Floating-point tensors become ``dtype``, or what the module was made with if that is
    ``None``; those with a name part in ``keep_in_fp32`` become float32 if a ``dtype`` is given. Tensors that need no
    change stay views of the mapped file.

    What goes to an accelerator is there when this returns, or when ``sender`` ends if one is given.

    With ``pointwise`` a convolution of 1x1 in the file fits a linear layer of the model.

    Raises ``WeightsError`` before anything is assigned if a key is missing, left over or has another shape. With
    ``lenient`` the missing and misshapen ones keep what the module has, which therefore must not be on meta.
    """
    infos = files.contents
    expected = dict(_named_tensors(module))
    names = {key: key for contents in infos.values() for key in contents}
    if rename is not None:
        renamed = {key: rename(key, expected) for key in names}
        names = {key: key if new in names else new for key, new in renamed.items()}
    found = {names[key]: info for contents in infos.values() for key, info in contents.items()}
    if pointwise:
        found = {key: _as_linear(info, expected.get(key)) for key, info in found.items()}
    report = compare(expected, found, ignore)
    strict = LoadingReport(unexpected_keys=report.unexpected_keys) if lenient else report
    if problem := describe(strict, type(module).__name__, files.origin):
        raise WeightsError(problem)

    misshapen = {key for key, *_ in report.mismatched_keys}
    wanted = {key for key in found if key in expected and key not in misshapen}
    target = torch.device(device) if device is not None else torch.device("cpu")

    def dtype_of(key: str, stored: torch.dtype) -> torch.dtype:
        if not stored.is_floating_point:
            return stored
        if keep_in_fp32 and dtype is not None and any(part in names[key].split(".") for part in keep_in_fp32):
            return torch.float32
        return dtype or expected[names[key]].dtype

    def convert(key: str, stored: torch.Tensor) -> torch.Tensor:
        return stored.view(found[names[key]].shape).to(target, dtype_of(key, stored.dtype))

    places = _places(module)
    with sending(target, sender) as sender:
        for path, contents in infos.items():
            present = {
                key: info._replace(shape=found[names[key]].shape)
                for key, info in contents.items()
                if names[key] in wanted
            }
            tensors: Iterable[tuple[str, torch.Tensor]]
            if sender is not None and can_be_sent(present):
                tensors = send_tensors(path, present, dtype_of, sender).items()
            else:
                tensors = read_tensors(path, present, convert)
            for key, tensor in tensors:
                old = expected[names[key]]
                new = _like(old, tensor)
                for table, name in places.pop(id(old), ()):  # none: it came under another of its names
                    table[name] = new
    _refuse_meta(module, places)
    return report


def _as_linear(info: TensorInfo, expected: torch.Tensor | None) -> TensorInfo:
    if expected is not None and expected.ndim == 2 and info.shape[2:] == (1, 1):
        return info._replace(shape=info.shape[:2])
    return info


def _refuse_twice(infos: Mapping[Path, Mapping[str, TensorInfo]]) -> None:
    """Of a tensor that two files hold nobody knows which is meant."""
    seen: dict[str, Path] = {}
    for path, contents in infos.items():
        for key in contents:
            if key in seen:
                raise WeightsError(
                    f"{key} is in two files, {seen[key]} and {path}, so it is not known which holds: they are shards "
                    f"of different saves; download them again."
                )
            seen[key] = path


def compare(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, TensorInfo], ignore: Iterable[str] = ()
) -> LoadingReport:
    """What is missing, left over and misshapen; one of several names of a shared tensor is enough."""
    have = {id(expected[key]) for key in found if key in expected}
    patterns = [re.compile(pattern) for pattern in ignore]
    return LoadingReport(
        missing_keys=[key for key, tensor in expected.items() if key not in found and id(tensor) not in have],
        unexpected_keys=[
            key for key in found if key not in expected and not any(p.search(key) for p in patterns)
        ],
        mismatched_keys=[
            (key, info.shape, tuple(expected[key].shape))
            for key, info in found.items()
            if key in expected and info.shape != tuple(expected[key].shape)
        ],
    )


def describe(report: LoadingReport, model: str, origin: str) -> str | None:
    """The report as a sentence, or ``None`` if all fits."""
    parts = []
    if report.missing_keys:
        parts.append(f"{_some(report.missing_keys)} {_are(report.missing_keys)} missing")
    if report.unexpected_keys:
        parts.append(f"{_some(report.unexpected_keys)} {_are(report.unexpected_keys)} not part of the model")
    if report.mismatched_keys:
        shapes = [
            f"{key} (file: {list(stored)}, model: {list(model_shape)})"
            for key, stored, model_shape in report.mismatched_keys
        ]
        parts.append(f"{_some(shapes)} {'has another shape' if len(shapes) == 1 else 'have other shapes'}")
    if not parts:
        return None
    return f"The weights at {origin} do not fit {model}: {'; '.join(parts)}. Check that its config.json is theirs."


def _some(keys: Sequence[str], limit: int = 4) -> str:
    rest = len(keys) - limit
    return ", ".join(keys[:limit]) + (f" and {rest} more ({len(keys)} in all)" if rest > 0 else "")


def _are(keys: Sequence[str]) -> str:
    return "is" if len(keys) == 1 else "are"


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers under the names of the state dictionary, shared ones under each name."""
    return iter(module.state_dict(keep_vars=True).items())


def _places(module: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Where each tensor stands: the tables of modules and the names in them, several for a shared one."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                places.setdefault(id(tensor), []).append((table, name))
    return places


def _like(old: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` as a parameter if ``old`` is one."""
    if not isinstance(old, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())


def _is_meta(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.is_meta


def _refuse_meta(module: nn.Module, unfilled: Mapping[int, Iterable[tuple[dict[str, Any], str]]]) -> None:
    """A tensor that no file fills would fail at the first use, far from here."""
    empty = {
        id(table[name]) for places in unfilled.values() for table, name in places if _is_meta(table[name])
    }
    if not empty:
        return
    tensors = [*module.named_parameters(), *module.named_buffers()]
    left = [name for name, tensor in tensors if id(tensor) in empty]
    if left:
        raise WeightsError(
            f"{type(module).__name__} has tensors that its files do not hold: {_some(left)}. A buffer that is not "
            f"saved must be computed when it is used, not in the constructor."
        )
