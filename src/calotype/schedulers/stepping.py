"""The frame of `step`: where the run stands, the sums that the method wants, the output class, and on to the next."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from calotype.core.outputs import BaseOutput
from calotype.schedulers.affine import evaluate
from calotype.schedulers.outputs import SchedulerOutput


def stepping(
    output: type[BaseOutput] = SchedulerOutput,
    *,
    indexed: bool = True,
    begun: bool = False,
    fractional: bool = False,
    last: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a public ``step`` of a method's own ``step(self, run, at, output, sample, …)``.

    That returns the values of ``output``'s fields as tensors or sums, which are computed together. ``at`` is the index
    of the step, or unless ``indexed`` the training step. ``begun`` refuses a run without a number of steps,
    ``fractional`` timesteps that are integers. Parameters after the four become the public method's after ``sample``;
    the one named ``last`` comes after ``return_dict``.
    """

    def public(advance: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(advance).parameters.values())[5:]
        own = [p for p in own if p.name != last] + [p for p in own if p.name == last]
        count = sum(p.name != last for p in own)

        @wraps(advance)
        def step(
            self: Any,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            *more: Any,
            return_dict: bool = True,
            **named: Any,
        ) -> Any:
            if len(more) > count:
                more, (return_dict, *rest) = more[:count], more[count:]
                if len(rest) > len(own) - count:
                    raise TypeError(
                        f"step takes {len(parameters)} arguments at most: {', '.join(signature.parameters)}."
                    )
                named |= dict(zip((last,), rest, strict=False))
            if fractional:
                self._refuse_index(timestep)
            run = self._running() if begun else self._run
            at = self._locate(timestep) if indexed else int(run.plan.value(timestep))
            values = evaluate(*advance(self, run, at, model_output, sample, *more, **named))
            if indexed:
                run.index = at + 1
            return output(*values) if return_dict else values

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("self", kind)]
        types = {"model_output": "torch.Tensor", "timestep": "float | torch.Tensor", "sample": "torch.Tensor"}
        parameters += [inspect.Parameter(name, kind, annotation=type) for name, type in types.items()]
        parameters += own[:count]
        parameters.append(inspect.Parameter("return_dict", kind, default=True, annotation="bool"))
        signature = inspect.Signature(
            [*parameters, *own[count:]], return_annotation=f"{output.__name__} | tuple"
        )
        step.__signature__ = signature  # type: ignore[attr-defined]
        return step

    return public
