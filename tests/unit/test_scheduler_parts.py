"""What classes are declared with: constructors from the table of options, and the frame of `step`."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.schedulers.options import OPTIONS, Choice, choice, constructor

MADE = sorted(
    name
    for name in calotype.__all__
    if name.endswith("Scheduler") and hasattr(getattr(calotype, name).__init__, "__signature__")
)


def test_a_constructor_has_the_options_in_order_with_this_class_s_defaults() -> None:
    made = constructor(
        "beta_start solver_type rho", setup=lambda self: None, solver_type=choice("bh1", "bh2"), rho=3.0
    )
    parameters = inspect.signature(made).parameters
    assert list(parameters) == ["self", "beta_start", "solver_type", "rho"]
    assert [p.default for p in list(parameters.values())[1:]] == [0.0001, "bh1", 3.0]
    assert "rho: the exponent" in (made.__doc__ or "")


def test_a_default_for_no_option_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="beta_end"):
        constructor("beta_start", setup=lambda self: None, beta_end=0.1)
    with pytest.raises(KeyError, match="colour"):
        constructor("beta_start colour", setup=lambda self: None)


@pytest.mark.parametrize("name", MADE)
def test_every_option_with_choices_refuses_others(name: str) -> None:
    cls = getattr(calotype, name)
    found = [
        o
        for o in inspect.signature(cls.__init__).parameters
        if isinstance(OPTIONS.get(o, [None] * 2)[1], Choice)
    ]
    for option in found:
        with pytest.raises(InputError, match=f"{option}='no such'"):
            cls(**{option: "no such"})


def test_constructors_take_positions_and_refuse_what_they_do_not_know() -> None:
    made = calotype.DDIMScheduler(500, 0.001, beta_end=0.03)
    assert (made.config.num_train_timesteps, made.config.beta_start, made.config.beta_end) == (
        500,
        0.001,
        0.03,
    )
    with pytest.raises(TypeError, match="colour"):
        calotype.DDIMScheduler(colour="red")
    with pytest.raises(InputError, match="colour"):
        calotype.DDIMInverseScheduler(colour="red")
    assert float(calotype.DDIMInverseScheduler(set_alpha_to_zero=False).initial_alpha_cumprod) < 1


def step_of(name: str, *more: Any, **named: Any) -> Any:
    scheduler = getattr(calotype, name)()
    scheduler.set_timesteps(4)
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    return scheduler.step(x.sin(), scheduler.timesteps[0], x, *more, **named)


def test_steps_take_their_arguments_by_position_and_by_name() -> None:
    by_name = step_of("EulerDiscreteScheduler", s_churn=0.0, return_dict=False)
    by_position = step_of("EulerDiscreteScheduler", 0.0, 0.0, float("inf"), 1.0, None, False)
    assert isinstance(by_name, tuple)
    assert all(torch.equal(a, b) for a, b in zip(by_name, by_position, strict=True))
    clean = torch.zeros(1, 1, 8, 8)
    last = step_of("EDMEulerScheduler", 0.0, 0.0, float("inf"), 1.0, None, False, clean)
    assert torch.equal(last[1], clean)
    assert torch.equal(step_of("EDMEulerScheduler", pred_original_sample=clean).prev_sample, last[0])


@pytest.mark.parametrize(("more", "named"), [((0.0,) * 9, {}), ((), {"colour": 1}), ((0.0,), {"eta": 0.0})])
def test_steps_refuse_arguments_that_they_do_not_have(more: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        step_of("DDIMScheduler", *more, **named)


def test_a_refused_step_leaves_the_run_where_it_was() -> None:
    scheduler = calotype.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(RuntimeError):
        scheduler.step(torch.ones(1, 1, 3, 3), scheduler.timesteps[0], x)
    assert scheduler.step_index == 0
    scheduler.step(x, scheduler.timesteps[0], x)
    assert scheduler.step_index == 1
