"""The loop, guidance and tasks by themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.conditions import Nothing, repeated
from calotype.diffusion.guidance import ClassifierFree, Unguided, classifier_free, rescaled
from calotype.diffusion.images import NonFiniteError, check_finite, numpy_to_pil, to_numpy
from calotype.diffusion.inputs import Noise, Steps
from calotype.diffusion.loop import State, denoise
from calotype.diffusion.timesteps import set_timesteps, step_arguments


class Recorder:
    """A solver that subtracts the prediction, and remembers what it was asked."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Any]]] = []

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample * 2

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, ...]:
        self.steps.append((int(timestep), arguments))
        return (sample - model_output,)


def keep(index: int, timestep: torch.Tensor, state: State) -> State:
    return state


def test_the_loop_predicts_every_branch_and_steps_once_a_timestep() -> None:
    solver = Recorder()
    shapes = []

    def predict(index: int, x: torch.Tensor, t: torch.Tensor, state: State) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        assert torch.equal(x[:1], x[1:])  # both branches see the same scaled latents
        return torch.cat([torch.zeros(1, 2), torch.full((1, 2), 0.25)])

    start = torch.tensor([[4.0, 8.0]])
    state = denoise(
        State(start, Nothing(), ClassifierFree(2.0)),
        torch.tensor([9, 5, 1]),
        scheduler=solver,
        predict=predict,
        step_arguments={"eta": 0.5},
        observe=keep,
    )
    assert torch.equal(state.latents, start - 3 * 0.5)
    assert solver.steps == [(t, {"eta": 0.5, "return_dict": False}) for t in (9, 5, 1)]
    assert shapes == [(2, 2)] * 3


def test_the_loop_takes_the_observers_state_and_stops_when_told() -> None:
    solver = Recorder()

    def observe(index: int, timestep: torch.Tensor, state: State) -> State:
        return State(state.latents * 10, state.conditions, state.guidance, stopped=index == 1)

    state = denoise(
        State(torch.ones(1, 1), Nothing(), Unguided()),
        torch.arange(5).flip(0),
        scheduler=solver,
        predict=lambda index, x, t, state: torch.zeros_like(x),
        step_arguments={},
        observe=observe,
    )
    assert [t for t, _ in solver.steps] == [4, 3]
    assert state.latents.item() == 100


def test_guidance_extrapolates() -> None:
    uncond, cond = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert ClassifierFree(3.0).combine((uncond, cond)).tolist() == [4.0, -4.0]
    assert isinstance(classifier_free(1.0), Unguided)
    assert classifier_free(1.01).branches == ("uncond", "cond")


def test_full_rescaling_restores_the_standard_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, guided = (torch.randn(2, 3, 8, 8, generator=generator) * scale for scale in (1.0, 4.0))
    restored = rescaled(guided, cond, 1.0)
    torch.testing.assert_close(restored.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    assert torch.equal(rescaled(guided, cond, 0.0), guided)


def test_schedulers_get_only_what_they_take() -> None:
    generator = torch.Generator()
    noise, steps = Noise(generator=generator), Steps(eta=0.3)
    assert step_arguments(calotype.DDIMScheduler(), steps, noise) == {"eta": 0.3, "generator": generator}
    assert step_arguments(calotype.PNDMScheduler(), steps, noise) == {}
    with pytest.raises(InputError, match="takes no custom sigmas"):
        set_timesteps(calotype.DDIMScheduler(), Steps(sigmas=[1.0]), torch.device("cpu"))


def test_repeated_keeps_the_copies_together() -> None:
    assert repeated(torch.tensor([[1], [2]]), 2).flatten().tolist() == [1, 1, 2, 2]


def test_pictures() -> None:
    tensor = torch.linspace(0, 1, 48).reshape(1, 3, 4, 4)
    (picture,) = numpy_to_pil(to_numpy(tensor))
    assert (picture.mode, picture.size) == ("RGB", (4, 4))
    assert picture.getpixel((0, 0)) == tuple(round(255 * v) for v in tensor[0, :, 0, 0].tolist())
    (grey,) = numpy_to_pil(to_numpy(tensor[:, :1]))
    assert grey.mode == "L"
    with pytest.raises(NonFiniteError, match="The latents hold NaN"):
        check_finite(torch.tensor([float("inf")]), "The latents")


def test_there_is_one_denoising_loop() -> None:
    """Models and schedulers meet in ``diffusion/loop.py`` and nowhere else."""
    source = Path(calotype.__file__).parent
    calls = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"scheduler\.step\(", path.read_text(encoding="utf-8"))
    ]
    assert calls == ["diffusion/loop.py"]
