"""What a call is the sum of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError
from calotype.diffusion.guidance import UNCOND, Guidance
from calotype.diffusion.inputs import Guided
from calotype.diffusion.learned_variance import guiding_the_mean

if TYPE_CHECKING:
    from calotype.diffusion.controls.control import Control
    from calotype.diffusion.family import Family
    from calotype.diffusion.tasks.task import Task


@dataclass(frozen=True)
class Stage:
    """A sampling that comes before the one whose pictures a pipeline gives, such as that of a prior.

    Its components and arguments are those of the pipeline and the call; one that begins with ``prefix`` is taken in
    place of the one of the plain name. What is sampled becomes the argument ``gives`` of what comes after. Arguments
    that are ``alone`` its own are nothing to what comes after, and those that it ``ignores`` nothing to it.
    """

    prefix: str
    family: type[Family]
    task: Task
    gives: str
    alone: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """A family bound to its components, a task and the controls, which add up; and what is sampled ``before``."""

    family: Family
    task: Task
    controls: tuple[Control, ...] = ()
    prefix: str = ""
    gives: str = ""
    before: tuple[Parts, ...] = ()
    alone: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments as this sampling reads them: ``prefix_x`` in place of ``x``."""
        own = {
            name.removeprefix(f"{self.prefix}_"): value
            for name, value in given.items()
            if self.prefix and name.startswith(f"{self.prefix}_")
        }
        others = {*self.ignores, *(name for one in self.before for name in one.alone)}
        return {**{name: value for name, value in given.items() if name not in others}, **own}

    def with_families(self, change: Callable[[Family], Family]) -> Parts:
        """The same with each family as ``change`` gives it."""
        before = tuple(one.with_families(change) for one in self.before)
        return replace(self, family=change(self.family), before=before)

    @property
    def guided(self) -> Parts:
        """The sampling that guidance given as a value is for: the last one that can be guided away from anything."""
        if not self.before:
            return self
        samplings = (self, *reversed(self.before))
        return next((one for one in samplings if UNCOND in one.family.branches), self)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """The argument ``guidance``, or else what the arguments for single scales ask for.

        Raises ``InputError`` for a guidance with branches that the denoiser does not have.
        """
        given = Guided.of(arguments).guidance
        if given is None:
            return self.task.guidance(self.family, arguments)
        offered = (*self.family.branches, *self.task.branches)
        if lacking := [name for name in given.branches if name not in offered]:
            raise InputError(
                f"{given} needs predictions for {', '.join(given.branches)}; this pipeline's denoiser has none for "
                f"{lacking[0]}, only for {', '.join(offered)}."
            )
        return guiding_the_mean(given, self.family.scheduler)

    @property
    def tensor_names(self) -> list[str]:
        """The tensors that a callback may ask for."""
        controls = (name for control in self.controls for name in control.tensor_names)
        return [*self.family.tensor_names, *self.task.tensor_names, *controls]
