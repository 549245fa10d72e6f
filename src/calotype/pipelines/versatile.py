"""One object per family: what it makes follows from what it is given.

The class of such an object is a checkpoint's own public class, whose call takes the inputs of all tasks of the family.
A call chooses one of them, takes the defaults of the public class that declares it, and adds up the controls; so there
are combinations that no public class has.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.core.random import Seeds
from calotype.diffusion.controls.bound import Beside, Bound
from calotype.diffusion.inputs import EARLIER_CALLBACK, Adapted, Controlled, Hinted, Size
from calotype.diffusion.tasks.task import picture_size
from calotype.pipelines import signature
from calotype.pipelines.control import (
    COMPONENTS,
    PictureControl,
    control_of,
    controls_for,
    stored_models,
    unwrapped,
)
from calotype.pipelines.pipeline import DiffusionPipeline, parts_of
from calotype.pipelines.uses import Use, uses_of

_CHOOSING = ("image", "mask_image")
"""The pictures whose presence says what is to be made."""

_OF_CONTROLS = {f.name for group in (Controlled, Adapted, Hinted) for f in fields(group)} - {"image"}
"""Arguments of the public classes in whose place ``control`` stands."""

_OWN = {
    "control": "What steers: a picture for each ControlNet and T2I-Adapter of the pipeline, calotype.control(model, "
    "picture, …) for any other, or a list of these.",
    "seed": "The first picture's seed; picture i has seed + i, and can be made again alone with it.",
}


class Versatile(DiffusionPipeline):
    """A pipeline that does whatever its checkpoint can do; abstract: :func:`versatile` makes the classes."""

    uses: ClassVar[tuple[Use, ...]]
    plain: ClassVar[type[DiffusionPipeline]]
    preferred: Mapping[str, Any] = MappingProxyType({})
    """Defaults that this checkpoint is made for, in place of those of its tasks: few steps, for instance."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this checkpoint can make, as far as its denoiser reads what the task needs."""
        return tuple(use.name for use in self._served())

    def with_controls(self, **models: Any) -> Any:
        """The pipeline, sharing its components, with ``controlnet`` and ``adapter``: a model, several, or None."""
        if unknown := [name for name in models if name not in COMPONENTS]:
            raise InputError(f"with_controls takes {' and '.join(COMPONENTS)}, not {', '.join(unknown)}.")
        kept = {name: models.get(name, getattr(self, name, None)) for name in COMPONENTS}
        kept = {name: model for name, model in kept.items() if model is not None}
        kinds = {name: control_of(model) for name, model in kept.items()}
        pipe = versatile(self.plain.__name__, tuple(kinds.items())).from_pipe(self, **kept)
        pipe.preferred = self.preferred
        return pipe

    def usual(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults of a call with the arguments ``given``, which depend on the task that they ask for."""
        asked = controls_for(given.get("control"), stored_models(self))
        return self._defaults(self._chosen(given).declared(_kind(asked)))

    def _defaults(self, declared: type[DiffusionPipeline]) -> dict[str, Any]:
        usual = _defaults(declared)
        return usual | {name: value for name, value in self.preferred.items() if name in usual}

    def _served(self) -> list[Use]:
        return [use for use in self.uses if self._reads(use)]

    def _reads(self, use: Use) -> bool:
        declared = use.declared()
        family = parts_of(declared, self._values).family
        return family.input_channels - family.latent_channels in declared.task.beside(family)

    def _make(self, given: dict[str, Any]) -> Any:
        """Run the call that ``given`` asks for."""
        use = self._chosen(given)
        asked = controls_for(given.pop("control", None), stored_models(self))
        plain = use.declared()
        declared = use.declared(_kind(asked))
        self._check_meaning(given, use)
        if (seed := given.pop("seed", None)) is not None:
            if given.get("generator") is not None:
                raise InputError(
                    "Both seed and generator are given; they say the same thing, so give one of them."
                )
            given["generator"] = Seeds(seed)
        usual = self._defaults(declared)
        scale = usual.get("controlnet_conditioning_scale", 1.0)
        parts = parts_of(plain, self._values)
        beside = [each for each in asked if not self._reads_by_itself(each)]
        controls = tuple(each.bound(number, scale) for number, each in enumerate(beside))
        self._check_models(beside)
        arguments = {**usual, **given, **self._hint(asked)}
        if asked and not use.needs:  # the first control's picture gives the size
            arguments |= _sized(parts.family, controls, asked[0].picture, given)
        else:
            parts = replace(parts, task=declared.task)
        return signature.run(
            self, replace(parts, controls=controls), arguments, set(given), declared.__call__.output
        )

    def _reads_by_itself(self, asked: PictureControl) -> bool:
        return self.bound_family().reads_hint and asked.model is getattr(self, "unet", None)

    def _hint(self, asked: list[PictureControl]) -> dict[str, Any]:
        """The argument for a denoiser that reads a control picture by itself; ``InputError`` if there is not one."""
        if not self.bound_family().reads_hint:
            return {}
        hints = [each.as_hint() for each in asked if self._reads_by_itself(each)]
        if len(hints) != 1:
            raise InputError(
                f"This checkpoint's denoiser reads one picture by itself, such as depth, and control has {len(hints)} "
                f"for it; give control=picture."
            )
        return {"hint": hints[0]}

    def _chosen(self, given: Mapping[str, Any]) -> Use:
        """What the pictures among the arguments ask for."""
        pictures = tuple(name for name in _CHOOSING if given.get(name) is not None)
        served = self._served()
        for use in served:
            if use.needs == pictures:
                return use
        can = "; ".join(f"{use.name} ({' and '.join(use.needs) or 'no picture'})" for use in served)
        raise InputError(
            f"There is no task for {' and '.join(pictures) or 'a prompt without a picture'} with this checkpoint. What "
            f"it can do, by what it needs: {can or 'nothing that is known for what its denoiser reads'}."
        )

    def _check_meaning(self, given: dict[str, Any], use: Use) -> None:
        """Refuse what this task does not take; what is None is as if it were not given."""
        taken = _taken(use)
        for name in [name for name in given if name not in taken]:
            if given.pop(name) is not None:
                elsewhere = [other for other in self._served() if name in _taken(other)]
                hint = "".join(
                    f"; it belongs to {o.name}, which needs {' and '.join(o.needs) or 'no picture'}"
                    for o in elsewhere[:1]
                )
                raise InputError(f"{name} has no meaning in {use.name} with this checkpoint{hint}.")

    def _check_models(self, asked: list[PictureControl]) -> None:
        """Refuse controls for a denoiser that takes none, and models elsewhere or of another type than it."""
        if not asked:
            return
        family: Any = self.bound_family()
        if not hasattr(family, "told"):
            raise InputError(f"control has no meaning for a {self.plain.__name__}: its denoiser takes none.")
        own = stored_models(self)
        for model in (unwrapped(each.model) for each in asked if not any(each.model is one for one in own)):
            where = getattr(model, "device", None), getattr(model, "dtype", None)
            wanted = self._execution_device, family.unet.dtype
            if isinstance(model, torch.nn.Module) and where != wanted:
                raise InputError(
                    f"The {type(model).__name__} of a control is on {where[0]} in {where[1]}, and the pipeline on "
                    f"{wanted[0]} in {wanted[1]}; move it there with model.to(device, dtype)."
                )


def _kind(asked: list[PictureControl]) -> str | None:
    """The kind of control whose public class has the defaults of a call."""
    if not asked:
        return None
    return "controlnet-union" if all(each.reads_kinds for each in asked) else "controlnet"


def _parameters(declared: type[DiffusionPipeline]) -> dict[str, inspect.Parameter]:
    """The parameters of a public class's call, without ``self``; of the earlier callbacks as they are taken there."""
    found = dict(list(inspect.signature(declared.__call__).parameters.items())[1:])
    if found.pop("kwargs", None) is not None:
        for name in EARLIER_CALLBACK:
            found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
    return found


def _defaults(declared: type[DiffusionPipeline]) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    defaults = {name: p.default for name, p in _parameters(declared).items() if p.default is not empty}
    return {name: value for name, value in defaults.items() if name not in EARLIER_CALLBACK}


def _taken(use: Use) -> set[str]:
    """The names of the arguments that a task takes, those that its family takes beside all signatures included."""
    names = {name for cls in (use.declared(), use.declared("controlnet")) for name in _parameters(cls)}
    beside = signature.beside(names, use.declared().family)
    return (names - _OF_CONTROLS - set(_CHOOSING)) | {*use.needs, *beside, *_OWN}


def _sized(
    family: Any, controls: tuple[Bound, ...], picture: Any, arguments: Mapping[str, Any]
) -> dict[str, int]:
    """Height and width as asked for or as a control's picture has them, in steps that all controls divide."""
    while isinstance(picture, list | tuple):
        picture = picture[0]
    steps = [each.components["adapter"].downscale_factor for each in controls if "adapter" in each.components]
    stepping: Any = Beside(family, {"picture_step": math.lcm(family.scale_factor, *steps)})
    height, width = picture_size(stepping, picture, Size.of(arguments), 1)
    return {"height": height, "width": width}


def _call(plain: type[DiffusionPipeline], uses: tuple[Use, ...]) -> Callable[..., Any]:
    """A ``__call__`` with the parameters of ``plain`` in their places, and by name those of all other uses."""
    by_name = inspect.Parameter.KEYWORD_ONLY
    own = [
        p.replace(default=None if p.default is p.empty else p.default) for p in _parameters(plain).values()
    ]
    own = sorted(own, key=lambda p: p.kind == by_name)
    names = dict.fromkeys([*(p.name for p in own), *(name for use in uses for name in sorted(_taken(use)))])
    docs = {name: _OWN.get(name) or signature.documentation(name) for name in names}
    more = [inspect.Parameter(name, by_name, default=None) for name in list(names)[len(own) :]]
    shape = inspect.Signature([signature.SELF, *own, *more])
    known = {*signature.ARGUMENTS} - _OF_CONTROLS

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        elsewhere = {name: kwargs.pop(name) for name in [*kwargs] if name in known - shape.parameters.keys()}
        for name in kwargs.keys() - shape.parameters.keys():
            near = [] if name in _OF_CONTROLS else difflib.get_close_matches(name, shape.parameters, n=1)
            hint = "give control" if name in _OF_CONTROLS else f"the nearest is {near[0]}" if near else ""
            raise TypeError(f"This pipeline has no argument {name}{hint and f'; {hint}'}.")
        given = dict(shape.bind(self, *args, **kwargs).arguments) | elsewhere
        return self._make({name: value for name, value in given.items() if name != "self"})

    __call__.__signature__ = shape  # type: ignore[attr-defined]
    __call__.__doc__ = signature.described(
        "Make pictures; what is given says how.", "Arguments; their defaults are those of the task:", docs
    )
    return __call__


def _constructor(plain: type[DiffusionPipeline], components: tuple[str, ...]) -> Callable[..., None]:
    """The constructor of ``plain``, which takes these components too."""
    inner = plain.__init__
    shape = inspect.signature(inner)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in components]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        models = {name: kwargs.pop(name, None) for name in components}
        inner(self, *args, **kwargs)
        self.register_modules(**models)

    __init__.__signature__ = shape.replace(parameters=[*shape.parameters.values(), *more])  # type: ignore[attr-defined]
    return __init__


@lru_cache(maxsize=256)
def versatile(class_name: str, controls: tuple[tuple[str, str], ...] = ()) -> Any:
    """The class that does all of what the family of the public class of this name does; None for one by itself.

    With ``controls`` it keeps models that steer: component (of :data:`COMPONENTS`) and kind of control. It has the name
    of the public class that declares the same use with them, so that files which it writes are that class's files.
    """
    found = uses_of(class_name)
    if found is None:
        return None
    use, uses = found
    plain = use.declared()
    components = tuple(name for name, _ in controls)
    named = use.declared(controls[0][1] if controls else None)
    return type(
        named.__name__,
        (Versatile, plain),
        {
            "__module__": __name__,
            "__qualname__": f"Versatile[{named.__name__}]",
            "__doc__": plain.__doc__,
            "__init__": _constructor(plain, components),
            "__call__": _call(plain, uses),
            "uses": uses,
            "plain": plain,
            "model_cpu_offload_seq": named.model_cpu_offload_seq,
            "_optional_components": (*plain._optional_components, *components),
        },
    )
