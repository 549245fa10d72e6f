"""The frame of `step`: where the run stands, the sums that the method wants, the output class, and on to the next."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias

from torch import Tensor

from calotype.core.outputs import BaseOutput
from calotype.schedulers.affine import Value, evaluate
from calotype.schedulers.run import Step

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
            parameters += fields.values() or [p]
        parameters.append(inspect.Parameter("return_dict", kind, default=True, annotation="bool"))
        parameters.sort(key=lambda p: p.name == last)
        signature = inspect.Signature(parameters, return_annotation=f"{output.__name__} | tuple")
        names = [p.name for p in parameters[4:]]

        @wraps(advance)
        def step(
            self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **named: Any
        ) -> Any:
            given = dict(zip(names, more, strict=False))
            if len(more) > len(names) or not given.keys().isdisjoint(named):
                signature.bind(
                    self, model_output, timestep, sample, *more, **named
                )  # which says what is wrong
            given |= named
            return_dict = given.pop("return_dict", True)
            for name, record in records.items():
                fields = {field: given.pop(field) for field in record._fields if field in given}
                given[name] = record._replace(**fields)
            if fractional:
                self._refuse_index(timestep)
            run = self._running() if begun else self._run
            at = Step(run, self._locate(timestep) if indexed else -1, model_output, timestep, sample)
            values = evaluate(*advance(self, at, **given))
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
