"""Public signatures put together from the parts: constructors from a family's fields, calls from the input groups."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from calotype.diffusion.family import Components
from calotype.diffusion.inputs import ANY, EARLIER_CALLBACK, GROUPS, Guided
from calotype.diffusion.parts import Parts

_KEYWORDS = inspect.Parameter.POSITIONAL_OR_KEYWORD
SELF = inspect.Parameter("self", _KEYWORDS)
ARGUMENTS = {f.name: f for group in GROUPS for f in fields(group)}
"""Every argument that a call of some pipeline takes."""


def constructor(
    family: type[Components], names: str = "", *, without: str = "", required: str = ""
) -> Callable[..., None]:
    """An ``__init__`` whose parameters are the family's fields, with their defaults.

    ``names`` (separated by spaces) chooses them and their order, or ``without`` leaves some out; those that are not
    taken keep the family's defaults. ``required`` names some that have no default here.
    """
    known = {f.name: f for f in fields(family)}  # type: ignore[arg-type]
    chosen = names.split() or [name for name in known if name not in without.split()]
    parameters = [
        inspect.Parameter(
            name,
            _KEYWORDS,
            default=inspect.Parameter.empty
            if known[name].default is MISSING or name in required.split()
            else known[name].default,
            annotation=known[name].type,
        )
        for name in chosen
    ]
    signature = inspect.Signature([SELF, *parameters], return_annotation=None)
    components = [name for name in chosen if known[name].metadata["component"]]
    settings = [name for name in chosen if not known[name].metadata["recorded"]]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        values = family.prepared({k: v for k, v in bound.arguments.items() if k != "self"})
        self.register_modules(**{name: values[name] for name in components})
        for name in settings:
            setattr(self, name, values[name])
        recorded = {name: value for name, value in values.items() if name not in (*components, *settings)}
        self.register_to_config(**recorded)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def call(
    names: str,
    *,
    output: type,
    earlier_callback: bool = False,
    by: Callable[..., Any] | None = None,
    **defaults: Any,
) -> Callable[..., Any]:
    """A ``__call__`` that takes the arguments ``names`` (separated by spaces) of the input groups, in this order.

    ``defaults`` replace the groups' own where this pipeline's history differs; ``output`` is the class of the result.
    What the pipeline's family takes ``beside`` the signature is accepted by name. What makes no pictures is run ``by``
    a function of its own in place of ``generation.generate``.
    """
    chosen = [ARGUMENTS[name] for name in names.split()]
    parameters = [
        inspect.Parameter(f.name, _KEYWORDS, default=defaults.get(f.name, f.default), annotation=f.type)
        for f in chosen
    ]
    if earlier_callback:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    signature = inspect.Signature([SELF, *parameters], return_annotation=f"{output.__name__} | tuple")

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra = {name: kwargs.pop(name) for name in beside(names.split(), self.family) if name in kwargs}
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        arguments: dict[str, Any] = dict(bound.arguments)
        arguments.pop("self")
        arguments |= _known(arguments.pop("kwargs", {})) | extra
        return run(self, self.parts(), arguments, given, output, by)

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    __call__.output = output  # type: ignore[attr-defined]
    docs = {name: documentation(name) for name in (*names.split(), *beside(names.split(), None))}
    __call__.__doc__ = described("Make pictures.", "Arguments:", docs) + f"\n\nReturns: {output.__name__}."
    return __call__


def renamed(function: Callable[..., Any], **names: str) -> Callable[..., Any]:
    """``function`` with some of its arguments (old=new) under other names, in the same places."""
    shape = inspect.signature(function)
    old = {new: name for name, new in names.items()}
    parameters = [p.replace(name=names.get(p.name, p.name)) for p in shape.parameters.values()]
    outside = shape.replace(parameters=parameters)

    @functools.wraps(function)
    def under_other_names(*args: Any, **kwargs: Any) -> Any:
        bound = outside.bind(*args, **kwargs)
        return function(**{old.get(name, name): value for name, value in bound.arguments.items()})

    under_other_names.__signature__ = outside  # type: ignore[attr-defined]
    return under_other_names


def run(
    pipe: Any,
    parts: Parts,
    arguments: dict[str, Any],
    given: set[str],
    output: type,
    by: Callable[..., Any] | None = None,
) -> Any:
    """Run ``parts`` of a pipeline with all arguments of its call, of which ``given`` are the user's own."""
    from calotype.pipelines.generation import generate

    with pipe.offloaded():
        return (by or generate)(pipe, parts, Guided.settled(arguments, given, parts.guided.prefix), output)


def beside(names: Collection[str], family: type[Components] | None) -> list[str]:
    """The arguments that a family (None: any) takes beside a signature of these names."""
    anchored = [f for f in ARGUMENTS.values() if f.metadata["beside"] in (ANY, *names)]
    return [
        f.name
        for f in anchored
        if family is None or f.metadata["beside"] == ANY or f.name in family.beside  # type: ignore[attr-defined]
    ]


def documentation(name: str) -> str:
    """What the argument of this name means."""
    return str(ARGUMENTS[name].metadata["doc"])


def described(summary: str, heading: str, docs: Mapping[str, str]) -> str:
    """The docstring of a call: a summary, and its arguments with what they mean."""
    lines = [
        textwrap.fill(f"{name}: {doc}", 110, initial_indent="    ", subsequent_indent="        ")
        for name, doc in docs.items()
    ]
    return "\n".join([summary, "", heading, *lines])


def _known(extra: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in extra if name not in EARLIER_CALLBACK]
    if unknown:
        raise TypeError(f"This pipeline has no argument {', '.join(unknown)}.")
    return extra
