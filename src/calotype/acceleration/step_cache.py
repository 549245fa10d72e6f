"""Steps that reuse what the depth of a U-Net found in an earlier step: DeepCache (https://arxiv.org/abs/2312.00858).

A U-Net's deep features change slowly from step to step. Every so many steps the whole U-Net is computed, and its
features are kept at one place of the way up; in the steps between, only what lies above that place is computed. The
result differs from the exact one, so this is used only where it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor, nn

from calotype.acceleration.options import StepCache
from calotype.core.errors import InputError
from calotype.nn.replaceable import replaced
from calotype.nn.stage import Conditioning, DownStage, UpStage
from calotype.nn.unet_paths import Added, add_residuals, down_path, odd_size, through, to_the_middle, up_path

WHOLE, SHALLOW = "whole", "shallow"
"""The two ways of computing a U-Net."""


@dataclass(frozen=True)
class Place:
    """Where a U-Net is cut: so many whole stages of the way down and ``layers`` of the next lie above the place.

    On the way up, features are kept before this ``layer`` of the stage ``up``.
    """

    down: int
    layers: int
    up: int
    layer: int

    @classmethod
    def of(cls, model: nn.Module, branch: int) -> Place:
        """The place of a branch; ``InputError`` if the model has not so many, or is no U-Net of stages."""
        downs, ups = stages(model)
        counts = [len(stage.resnets) for stage in ups]
        if branch >= sum(counts):
            raise InputError(
                f"StepCache's branch is {branch}; this {type(model).__name__} has the branches 0 to {sum(counts) - 1}."
            )
        left, up = branch, len(ups) - 1
        while left >= counts[up]:
            left -= counts[up]
            up -= 1
        layer = counts[up] - 1 - left
        unread = 1 + sum(len(stage.resnets) + _keeps_smaller(stage) for stage in downs) - sum(counts)
        left, down = branch + unread, 0  # k-diffusion's way up leaves the outermost features unread
        while left and left > len(downs[down].resnets):
            left -= len(downs[down].resnets) + _keeps_smaller(downs[down])
            down += 1
        return cls(down, left, up, layer)

    def obstacle(self, model: Any) -> str | None:
        """Why the stages that are cut cannot be computed in part, if so."""
        cut = [f"up_blocks.{self.up}", *([f"down_blocks.{self.down}"] if self.layers else [])]
        for name in cut:
            own = model.get_submodule(name).__dict__
            if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
                return f"hooks are on {name}, as offloading by blocks puts them there"
            if own.get("_compiled_call_impl") is not None:
                return f"{name} is compiled"
        return None


def _keeps_smaller(stage: DownStage) -> bool:
    """Whether the way up reads what the stage gives after its change of resolution."""
    return stage.downsamplers is not None and stage.keep_downsampled


def stages(model: nn.Module) -> tuple[list[DownStage], list[UpStage]]:
    """The stages of the ways down and up; ``InputError`` for a model that does not consist of such."""
    found = [list(getattr(model, name, ())) for name in ("down_blocks", "up_blocks")]
    fits = [
        all(isinstance(one, kind) for one in some)
        for some, kind in zip(found, (DownStage, UpStage), strict=True)
    ]
    if not all(found) or not all(fits) or not hasattr(model, "mid_block"):
        raise InputError(f"Steps of a {type(model).__name__} cannot be cached: it is no U-Net of stages.")
    return cast(list[DownStage], found[0]), cast(list[UpStage], found[1])


def fits(model: Any) -> bool:
    """Whether steps of this model can be cached."""
    try:
        stages(model)
    except InputError:
        return False
    return True


# -- the two ways of computing -----------------------------------------------------------------------------------


def whole(model: Any, place: Place, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
    """What the model gives, and the features at the place; None where the model did not come there."""
    found: list[Tensor] = []

    def computed(
        model: Any,
        features: list[Tensor],
        given: Conditioning,
        added: Added = Added(),  # noqa: B008
    ) -> Tensor:
        h, kept = to_the_middle(model, features, given, added)
        h = up_path(model.up_blocks[: place.up], h, kept, given)
        stage = model.up_blocks[place.up]
        if place.layer:
            below = [stage.begun(h, kept)]
            for index in range(place.layer):
                stage.raised(index, below, kept, given)
            h = below.pop()
        found.append(h)
        return _above(model, place, h, kept, given)

    with replaced({through: computed}):
        out = model(*args, **kwargs)
    return out, found[0] if found else None


def shallow(model: Any, place: Place, *args: Any, deep_features: Tensor, **kwargs: Any) -> Any:
    """What the model gives with these features at the place."""

    def computed(
        model: Any,
        features: list[Tensor],
        given: Conditioning,
        added: Added = Added(),  # noqa: B008
    ) -> Tensor:
        h, kept, left = down_path(model.down_blocks[: place.down], features.pop(), given, added.inside)
        stage = model.down_blocks[place.down]
        for index in range(place.layers):
            h = stage.layer(index, [h], given)
            is_last = index == len(stage.resnets) - 1
            if left and is_last and (stage.has_cross_attention or stage.downsamplers is None):
                h = h + left[0]
            kept.append(h)
        if added.across is not None:
            kept = add_residuals(kept, added.across[: len(kept)])
        return _above(model, place, deep_features, kept, given)

    with replaced({through: computed}):
        return model(*args, **kwargs)


def _above(model: Any, place: Place, h: Tensor, kept: list[Tensor], given: Conditioning) -> Tensor:
    """From the place to the end of the way up."""
    stage = model.up_blocks[place.up]
    features = [h if place.layer else stage.begun(h, kept)]
    del h
    for index in range(place.layer, len(stage.resnets)):
        stage.raised(index, features, kept, given)
    h = features.pop()
    h = stage.finished(h, given, odd_size(h, kept))
    return up_path(model.up_blocks[place.up + 1 :], h, kept, given)


# -- one call of a pipeline --------------------------------------------------------------------------------------


class Run(Protocol):
    """(name, function of the model, arguments) -> what the function gives for the model and these."""

    def __call__(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any: ...


@dataclass
class Counts:
    """How often a model was computed whole and in part, and why not in part where it could not be."""

    of: Counter[str] = field(default_factory=Counter)
    why: str | None = None

    def __str__(self) -> str:
        said = f"{self.of[WHOLE]} whole and {self.of[SHALLOW]} shallow computations so far"
        return said if self.why is None else f"{said}; always whole: {self.why}"


class CachedSteps:
    """The features that one call of a pipeline keeps of one model from step to step.

    In a step a model may be called several times, as for parts of a batch: what it found is known by the shapes of its
    arguments and by the turn.
    """

    def __init__(self, model: nn.Module, setting: StepCache, counts: Counts) -> None:
        self.model, self.setting, self.counts = model, setting, counts
        self.place = Place.of(model, setting.branch)
        self.step: int | None = None
        self.turns: Counter[Hashable] = Counter()
        self.kept: dict[Hashable, tuple[int, Tensor]] = {}

    def begin(self, step: int) -> None:
        """A step begins, which the denoising loop gives this number."""
        self.step = step
        self.turns.clear()

    def __call__(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model gives, computed whole or in part by ``run``."""
        form = shapes((args, kwargs))
        key = form, self.turns[form]
        self.turns[form] += 1
        since = self.kept.get(key)
        if self.step is not None and since is not None and 0 < self.step - since[0] < self.setting.interval:
            out = run(SHALLOW, partial(_shallow, self.place), args, {**kwargs, "deep_features": since[1]})
            self.counts.of[SHALLOW] += 1
            return out
        self.kept.pop(key, None)
        self.counts.why = self.place.obstacle(self.model)
        self.counts.of[WHOLE] += 1
        if self.counts.why is not None or self.setting.interval == 1 or self.step is None:
            return run("__call__", _plain, args, kwargs)
        out, feature = run(WHOLE, partial(_whole, self.place), args, kwargs)
        if feature is None:
            self.counts.why = "its stages are not computed one by one, as where it is compiled"
        else:
            self.kept[key] = self.step, feature
        return out


def _plain(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


def _whole(place: Place, model: Any, *args: Any, **kwargs: Any) -> Any:
    return whole(model, place, *args, **kwargs)


def _shallow(place: Place, model: Any, *args: Any, **kwargs: Any) -> Any:
    return shallow(model, place, *args, **kwargs)


def shapes(value: Any) -> Hashable:
    """The shapes, types and places of the tensors in nested arguments, and the names that they have there."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((name, shapes(entry)) for name, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(shapes(entry) for entry in value)
    return type(value).__name__
