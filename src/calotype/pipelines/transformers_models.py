"""Models of transformers, made on the meta device and filled from their files as ours are.

transformers' own loader compiles a regular expression for every tensor and visits every module several times, which for
the text encoders of Stable Diffusion XL takes longer than reading all of its 7 GB. It is left what only it knows: how
names changed since a file was written, and models that need more than their weights.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import ModelFilesError
from calotype.core.meta import weights_on_meta
from calotype.core.safetensors_header import TensorInfo
from calotype.core.sending import Sender
from calotype.core.tensor_files import can_be_sent
from calotype.core.weights import WeightFiles, check_layers, compare, fill, no_larger_than

logger = logging.getLogger(__name__)

_ASKS_FOR_MORE = ("quantization_config", "fusion_config", "transformers_weights")
"""Entries of a configuration after which there is more to do than to fill the weights."""


def read_model(
    cls: Any,
    folder: Path,
    files: WeightFiles,
    dtype: torch.dtype,
    *,
    config: Any = None,
    device: torch.device | None = None,
    sender: Sender | None = None,
) -> nn.Module | None:
    """The model of a class of transformers in ``files``, in evaluation mode, or ``None`` to leave it to its own loader.

    It is read here if each of its weights is in the files, in its shape, under its own name or one that has the name of
    a part around it more or less; and if nothing else belongs to it: no generation settings, no quantisation, no
    adapter, no tensor of fractions that is computed and not saved. Raises ``ModelFilesError`` for a configuration that
    is not that of the files, and where files that others complete still lack something.
    """
    from transformers import PreTrainedModel

    if (
        not issubclass(cls, PreTrainedModel)
        or cls.can_generate()
        or (folder / "adapter_config.json").is_file()
    ):
        return None
    if not all(can_be_sent(contents) for contents in files.contents.values()):
        return None
    config = cls.config_class.from_pretrained(folder) if config is None else copy.deepcopy(config)
    if any(getattr(config, name, None) is not None for name in _ASKS_FOR_MORE):
        return None
    config.name_or_path = str(folder)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype
    check_layers(vars(config), files)
    with weights_on_meta(no_larger_than(files)):
        model = cls(config)

    expected = model.state_dict(keep_vars=True)
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in expected}
    if any(buffer.is_meta or buffer.is_floating_point() for buffer in computed.values()):
        return None
    found = {key: info for contents in files.contents.values() for key, info in contents.items()}
    names, dropped = _own_names(found, {**expected, **computed}, [name for name, _ in model.named_children()])
    kept, undone = _kept_in_float32(model, dtype), _undone_on_saving(model, dropped)
    if len(set(names.values())) < len(names) or kept is None or undone is None:
        return None
    declared = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    ignored = [*declared, *(f"^{re.escape(name)}$" for name in computed)]
    report = compare(expected, {names[key]: info for key, info in found.items()}, ignored)
    if report.missing_keys or report.mismatched_keys:
        if files.completing:  # of which their own loader knows nothing
            refuse_misfits(cls, folder, report.as_dict())
        return None
    if report.unexpected_keys:
        _warn_of_superfluous(cls, folder, report.unexpected_keys)
        ignored += [f"^{re.escape(name)}$" for name in report.unexpected_keys]
    fill(
        model, files, dtype=dtype, device=device, sender=sender, keep_in_fp32=kept, ignore=ignored,
        rename=lambda key, _: names[key],
    )  # fmt: skip
    for name, buffer in computed.items():
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers[own] = buffer.to(device)
    model._weight_conversions = undone
    return model.eval()


def refuse_misfits(cls: type, folder: Path, info: Mapping[str, Any]) -> None:
    """Raises ``ModelFilesError`` for weights that transformers' own loader found missing or misshapen."""
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelFilesError(
            f"The weights in {folder} lack {len(missing)} of {cls.__name__}'s parameters, such as {missing[0]!r}: the "
            f"files are incomplete or of another model."
        )
    found = info.get("mismatched_keys") or ()  # names before version 5, with both shapes since
    misshapen = sorted((one, "") if isinstance(one, str) else (one[0], _shapes(*one[1:])) for one in found)
    if misshapen:
        key, shapes = misshapen[0]
        raise ModelFilesError(
            f"{len(misshapen)} of the weights in {folder} have other shapes than {cls.__name__}'s, such as {key!r}"
            f"{shapes}: they are of another model than its config.json."
        )
    if superfluous := info.get("unexpected_keys"):
        _warn_of_superfluous(cls, folder, superfluous)


def _shapes(stored: Iterable[int], own: Iterable[int]) -> str:
    return f" ({list(stored)} in the file, {list(own)} in the model)"


def _warn_of_superfluous(cls: type, folder: Path, keys: Iterable[str]) -> None:
    """Published encoders often hold more than their class, as the projection of a plain text encoder; it is named."""
    some = sorted(keys)
    logger.warning(
        "The weights in %s hold %d that %s has no place for, such as %r; they are not used.",
        folder, len(some), cls.__name__, some[0],
    )  # fmt: skip


def _own_names(
    found: Mapping[str, TensorInfo], known: Mapping[str, torch.Tensor], children: Iterable[str]
) -> tuple[dict[str, str], set[str]]:
    """Key of the file -> the model's name for it, and what these lack at their beginning.

    The parts of a model that stood alone when the file was written, or do so now, have the name of that part before
    theirs, as ``text_model.`` in CLIP's.
    """
    names: dict[str, str] = {}
    dropped: set[str] = set()
    for key in found:
        first, _, rest = key.partition(".")
        if key in known:
            names[key] = key
        elif rest in known:
            names[key] = rest
            dropped.add(first)
        else:
            names[key] = next((f"{child}.{key}" for child in children if f"{child}.{key}" in known), key)
    return names, dropped


def _undone_on_saving(model: Any, dropped: set[str]) -> list[Any] | None:
    """What transformers calls the change of names, which ``save_pretrained`` undoes; ``None`` if it knows no such."""
    if not dropped:
        return []
    # any model of transformers is read without the name of its base
    usual: list[Any] | None = [] if dropped == {model.base_model_prefix} else None
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before version 5
        return usual
    changes = get_model_conversion_mapping(model)
    return [one for one in changes if {getattr(one, "prefix_to_remove", None)} == dropped] or usual


def _kept_in_float32(model: Any, dtype: torch.dtype) -> tuple[str, ...] | None:
    """The parts of a model that it wants in float32; ``None`` if it says so in another way than by name."""
    always = model._keep_in_fp32_modules_strict if dtype in (torch.float16, torch.bfloat16) else None
    names = {*(always or ()), *((model._keep_in_fp32_modules or ()) if dtype == torch.float16 else ())}
    return tuple(sorted(names)) if all(name.isidentifier() for name in names) else None
