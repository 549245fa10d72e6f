"""Which files of a repository a pipeline needs; repositories hold the same weights many times over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from calotype.core.errors import ModelFilesError

_STEMS = {
    "safetensors": ("diffusion_pytorch_model", "model"),
    "bin": ("diffusion_pytorch_model", "pytorch_model"),
}
"""Format -> how weight files begin: those of the reference, then those of Transformers."""

_WEIGHTS = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<variant>[^.]+?))?(?P<shard>-\d{5}-of-\d{5})?(\.(?P<late>[^.]+))?\.(?P<format>safetensors|bin)"
)
_INDEX = re.compile(
    r"(?P<stem>[^.]+)\.(?P<format>safetensors|bin)(\.(?P<late>[^.]+))?\.index(\.(?P<variant>[^.]+))?\.json"
)
_SETTINGS = (".json", ".txt", ".model", ".jinja")
"""Endings of configurations and vocabularies."""


@dataclass(frozen=True)
class Selection:
    """Files to have, and which variant each component's weights come in (``None``: the plain one)."""

    files: tuple[str, ...]
    variants: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class _Weights:
    """The files of one component's weights in one format and variant."""

    single: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    index: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        if self.index and self.shards:
            return self.index + self.shards
        return self.single


def needed_files(
    all_files: Iterable[str],
    model_index: Mapping[str, Any],
    variant: str | None = None,
    use_safetensors: bool | None = None,
    skip: Collection[str] = (),
) -> list[str]:
    """The files of :func:`select_files`."""
    return list(select_files(all_files, model_index, variant, use_safetensors, skip).files)


def select_files(
    all_files: Iterable[str],
    model_index: Mapping[str, Any],
    variant: str | None = None,
    use_safetensors: bool | None = None,
    skip: Collection[str] = (),
) -> Selection:
    """What loading a pipeline needs of ``all_files``: settings of each component and one form of its weights.

    A component without the ``variant`` comes in its plain form. Components in ``skip`` (those that the caller
    brings) are left out. Raises ``ModelFilesError`` if a component has no files, if no component has the variant,
    or if weights exist only as pickles and ``use_safetensors`` is not ``False``.
    """
    by_folder: dict[str, list[str]] = {}
    for name in all_files:
        folder, _, rest = name.partition("/")
        if rest and "/" not in rest:
            by_folder.setdefault(folder, []).append(rest)

    files = ["model_index.json"]
    variants: dict[str, str | None] = {}
    offered: set[str] = set()
    found_variant = False
    for component in _components(model_index):
        if component in skip:
            continue
        folders = [name for name in by_folder if _belongs(name, component, model_index)]
        if component not in folders:
            raise ModelFilesError(
                f"model_index.json names a component {component!r}, but there is no folder of that name; pass "
                f"{component}=... to bring it, or {component}=None to go without."
            )
        for folder in sorted(folders):
            settings, weights = _sort(by_folder[folder])
            files += [f"{folder}/{name}" for name in settings]
            if not weights:
                continue
            offered |= {kind for _, kind in weights if kind}
            chosen = _choose(weights, component, variant, use_safetensors)
            found_variant |= variant is not None and chosen == variant
            variants[component] = chosen
            files += [f"{folder}/{name}" for name in weights[_format(use_safetensors), chosen].files()]
    if variant is not None and variants and not found_variant:
        choice = (
            f"there are {', '.join(map(repr, sorted(offered)))}"
            if offered
            else "there are no variants at all"
        )
        raise ModelFilesError(f"No component has weights of the variant {variant!r}; {choice}.")
    return Selection(tuple(sorted(files)), variants)


def _format(use_safetensors: bool | None) -> str:
    return "bin" if use_safetensors is False else "safetensors"


def _components(model_index: Mapping[str, Any]) -> list[str]:
    """The names of entries such as ``"unet": ["diffusers", "UNet2DConditionModel"]`` that are not null."""
    return [
        name
        for name, value in model_index.items()
        if not name.startswith("_") and isinstance(value, list | tuple) and len(value) == 2 and all(value)
    ]


def _belongs(folder: str, component: str, model_index: Mapping[str, Any]) -> bool:
    """Several networks in one component, as ControlNets, are saved in ``controlnet``, ``controlnet_1``, …"""
    if folder == component:
        return True
    return folder not in model_index and re.fullmatch(re.escape(component) + r"_\d+", folder) is not None


def _sort(names: Iterable[str]) -> tuple[list[str], dict[tuple[str, str | None], _Weights]]:
    """Settings, and weights by format and variant."""
    settings: list[str] = []
    weights: dict[tuple[str, str | None], _Weights] = {}
    for name in names:
        index = _INDEX.fullmatch(name)
        match = index or _WEIGHTS.fullmatch(name)
        if match is None:
            if PurePosixPath(name).suffix in _SETTINGS and not name.startswith("openvino"):
                settings.append(name)
            continue
        kinds = [kind for kind in (match["variant"], match["late"]) if kind]
        if match["stem"] not in _STEMS[match["format"]] or len(kinds) > 1:
            continue
        group = weights.setdefault((match["format"], kinds[0] if kinds else None), _Weights())
        (group.index if index else group.shards if match["shard"] else group.single).append(name)
    return settings, {key: group for key, group in weights.items() if group.files()}


def _choose(
    weights: Mapping[tuple[str, str | None], _Weights],
    component: str,
    variant: str | None,
    use_safetensors: bool | None,
) -> str | None:
    """The variant to take of one component: the one asked for if it exists, else the plain one."""
    form = _format(use_safetensors)
    kinds = [kind for other, kind in weights if other == form]
    if variant in kinds:
        return variant
    if None in kinds:
        return None
    if not kinds and form == "safetensors":
        raise ModelFilesError(
            f"The weights of {component!r} exist only as pickles, which may be made to run code when they are "
            f"loaded: pass use_safetensors=False if you trust where they come from."
        )
    if not kinds:
        raise ModelFilesError(
            f"The weights of {component!r} exist only as safetensors; leave use_safetensors=False out."
        )
    raise ModelFilesError(
        f"The weights of {component!r} exist only in the variants {', '.join(map(repr, sorted(map(str, kinds))))}; "
        f"pass variant={str(kinds[0])!r}."
    )
