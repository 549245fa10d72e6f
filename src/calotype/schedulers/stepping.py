"""The frame of `step`: where the run stands, the sums that the method wants, the output class, and on to the next.

A plan is what all runs of a schedule share and never changes; a run is where one of them stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, evaluate
from calotype.schedulers.levels import Level


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule: ``timesteps`` where the caller wants them, everything else as Python numbers on the host.

    ``sigmas`` (CPU, float32) and ``levels`` have the final level as their last entry; methods that read their levels
    from the noise table have none. ``count`` is None before a number of steps was chosen. ``memo`` keeps a method's
    coefficients by what they depend on: computed once, the same for every run.
    """

    timesteps: Tensor | None
    sigmas: Tensor | None = None
    count: int | None = None
    t: tuple[float, ...] = ()
    kappa: tuple[float, ...] = ()
    levels: tuple[Level, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)

    def position(self, timestep: Any) -> int | None:
        """Where a timestep stands if it is an element of ``timesteps`` (a view), found without reading its value."""
        table = self.timesteps
        if (
            isinstance(timestep, Tensor)
            and table is not None
            and timestep.numel() == 1
            and timestep.dtype == table.dtype
            and timestep.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
            and table.stride(0) > 0
        ):
            index = (timestep.storage_offset() - table.storage_offset()) // table.stride(0)
            return index if 0 <= index < len(self.t) else None
        return None

    def value(self, timestep: Any) -> Any:
        """A timestep as a Python number; an element of ``timesteps`` is looked up on the host."""
        if not isinstance(timestep, Tensor):
            return timestep
        position = self.position(timestep)
        return timestep.item() if position is None else self.t[position]

    def index(self, timestep: Any, t: Sequence[float] | None = None) -> int:
        """The step of a timestep. Of a timestep that occurs several times it is the second, as two-stage methods
        need when they start in the middle. Raises ``InputError`` if it is not in the schedule."""
        if t is None:
            if self.position(timestep) == 0:
                return 0
            t = self.t
        value = self.value(timestep)
        matches = [i for i, other in enumerate(t) if other == value]
        if not matches:
            shown = [f"{x:g}" for x in t]
            shown = shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-5:]]
            raise InputError(
                f"timestep {value} is not one of the schedule's; give an element of `scheduler.timesteps` "
                f"(after `set_timesteps`): {', '.join(shown)}."
            )
        return matches[min(1, len(matches) - 1)]


@dataclass(slots=True)
class Run:
    """Where one run of a plan stands: the next step, the predictions that a multistep method remembers."""

    plan: Plan
    index: int | None = None
    begin: int | None = None
    history: Sequence[Any] = ()
    stage: Any = None
    noise: Any = None
    scaled: bool = False


@dataclass(slots=True)
class Step:
    """One call of ``step``: the run, the index ``i`` of its next step, and what the caller gave."""

    run: Run
    i: int
    output: Tensor
    timestep: Any
    sample: Tensor

    @property
    def plan(self) -> Plan:
        """The run's."""
        return self.run.plan

    @property
    def t(self) -> int:
        """The training step, for methods that go by it."""
        return int(self.run.plan.value(self.timestep))

    @property
    def last(self) -> bool:
        """Whether no other step comes after this one."""
        return self.i + 1 == len(self.run.plan.t)

    def remember(self, known: Sequence[Value], *values: Value) -> tuple[Tensor, ...]:
        """The values, computed together with the predictions ``known``, which the run keeps."""
        found = evaluate(*values, *known)
        self.run.history = found[len(values) :]
        return found[: len(values)]

    def noise(self, generator: Generators, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal noise shaped as the output, on its device, in its dtype or another."""
        output = self.output
        return randn_tensor(output.shape, generator, output.device, dtype or output.dtype)


Values: TypeAlias = tuple[Value, ...]
"""What a method's own ``step`` returns: the values of its output's fields."""


@dataclass
class SchedulerOutput(BaseOutput):
    """``prev_sample``: the sample at the next, less noisy level; what the next network call takes."""

    prev_sample: Tensor


@dataclass
class PredictionSchedulerOutput(BaseOutput):
    """``prev_sample`` and the clean sample predicted at this step, ``pred_original_sample``."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def stepping(
    output: type[BaseOutput] = SchedulerOutput,
    *,
    indexed: bool = True,
    begun: bool = False,
    fractional: bool = False,
    last: str = "",
) -> Callable[[Callable[..., Values]], Callable[..., Any]]:
    """Make a public ``step`` of a method's own ``step(self, at: Step, …)``.

    That returns the values of ``output``'s fields as tensors or sums, which are computed together. ``indexed`` methods
    count their steps, others go by the training step. ``begun`` refuses a run without a number of steps,
    ``fractional`` timesteps that are integers. Parameters after ``at`` become the public method's after ``sample``;
    one whose default is a named tuple becomes its fields, the one named ``last`` comes after ``return_dict``.
    """

    def public(advance: Callable[..., Values]) -> Callable[..., Any]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("self", kind)]
        types = {"model_output": "torch.Tensor", "timestep": "float | torch.Tensor", "sample": "torch.Tensor"}
        parameters += [inspect.Parameter(name, kind, annotation=type) for name, type in types.items()]
        own = list(inspect.signature(advance).parameters.values())[2:]
        records = {p.name: p.default for p in own if hasattr(p.default, "_fields")}
        for p in own:
            fields = inspect.signature(type(records[p.name])).parameters if p.name in records else {}
            expanded = [f.replace(annotation=f.annotation.__forward_arg__) for f in fields.values()]
            parameters += expanded or [p]
        parameters.append(inspect.Parameter("return_dict", kind, default=True, annotation="bool"))
        parameters.sort(key=lambda p: p.name == last)
        signature = inspect.Signature(parameters, return_annotation=f"{output.__name__} | tuple")
        names = [p.name for p in parameters[4:]]

        @wraps(advance)
        def step(
            self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **named: Any
        ) -> Any:
            if more:
                given = dict(zip(names, more, strict=False))
                if len(more) > len(names) or not given.keys().isdisjoint(named):
                    # says what is wrong
                    signature.bind(self, model_output, timestep, sample, *more, **named)
                named |= given
            return_dict = named.pop("return_dict", True)
            for name, record in records.items():
                fields = {field: named.pop(field) for field in record._fields if field in named}
                named[name] = record._replace(**fields) if fields else record
            if fractional:
                self._refuse_index(timestep)
            run = self._running() if begun else self._run
            at = Step(run, self._locate(timestep) if indexed else -1, model_output, timestep, sample)
            values = evaluate(*advance(self, at, **named))
            if indexed:
                run.index = at.i + 1
            return output(*values) if return_dict else values

        step.__signature__ = signature  # type: ignore[attr-defined]
        return step

    return public


def once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A scheduler's method whose value is computed once a plan for the same arguments."""

    @wraps(method)
    def found(self: Any, *arguments: Any) -> Any:
        memo, key = self._run.plan.memo, (method.__name__, *arguments)
        if key not in memo:
            memo[key] = method(self, *arguments)
        return memo[key]

    return found
