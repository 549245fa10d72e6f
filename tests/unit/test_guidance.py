"""Guidance as values: what they compute, how they compose, and the attention layer that they perturb."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.guidance import Moment, Sum, rescaled
from calotype.diffusion.timesteps import NoiseLevels
from calotype.guidance import (
    ClassifierFree,
    Interval,
    NoiseInterval,
    PerturbedAttention,
    Rescaled,
    TextAndImage,
    Unguided,
)
from calotype.nn.attention import Attention
from calotype.nn.perturbation import Perturbation
from tests.tiny import randomise

STEPS = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moment(index: int = 0, steps: int = STEPS, timestep: float = 600) -> Moment:
    return Moment(index, steps, torch.tensor(timestep))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


U, C, P = (noise(2, 4, 8, 8, seed=seed) for seed in range(3))


# -- values ----------------------------------------------------------------------------------------------------


def test_a_sum_adds_what_each_term_adds():
    both = ClassifierFree(7.5) + PerturbedAttention(3.0)
    assert both.branches == ("uncond", "cond", "perturbed")
    torch.testing.assert_close(both.combine((U, C, P)), U + 7.5 * (C - U) + 3.0 * (C - P))


def test_the_order_of_terms_does_not_matter():
    one, other = ClassifierFree(4.0) + PerturbedAttention(2.0), PerturbedAttention(2.0) + ClassifierFree(4.0)
    assert one.branches[-1] == other.branches[-1] == "perturbed"
    torch.testing.assert_close(one.combine((U, C, P)), other.combine((C, U, P)))


def test_sums_are_flat_and_leave_out_what_adds_nothing():
    plain = ClassifierFree(2.0)
    assert plain + Unguided() == Unguided() + plain == plain
    assert Unguided() + Unguided() == Unguided()
    three = (plain + PerturbedAttention(1.0)) + TextAndImage(3.0, 1.5)
    assert isinstance(three, Sum)
    assert len(three.terms) == 3
    assert set(three.branches) == {"uncond", "cond", "image", "perturbed"}


def test_a_sum_in_half_precision_is_as_exact_as_its_type():
    both = ClassifierFree(7.5) + PerturbedAttention(3.0)
    exact = both.combine((U, C, P))
    half = both.combine((U.half(), C.half(), P.half()))
    assert half.dtype == torch.float16
    from_rounded = both.combine((U.half().float(), C.half().float(), P.half().float()))
    assert torch.equal(half, from_rounded.half())
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=1e-2)


def test_rescaling_any_guidance_is_rescaling_its_result():
    both = ClassifierFree(7.5) + PerturbedAttention(3.0)
    found = Rescaled(both, 0.7).combine((U, C, P))
    torch.testing.assert_close(found, rescaled(both.combine((U, C, P)), C, 0.7))
    one = ClassifierFree(7.5, rescale=0.7)
    assert torch.equal(one.combine((U, C)), Rescaled(ClassifierFree(7.5), 0.7).combine((U, C)))


def test_an_adaptive_scale_falls_with_the_timestep_and_ends_at_zero():
    guidance = PerturbedAttention(3.0, adaptive=0.01)
    for timestep, scale in ((1000, 3.0), (900, 2.0), (700, 0.0), (0, 0.0)):
        found = guidance.at(moment(timestep=timestep)).combine((C, P))
        torch.testing.assert_close(found, C + scale * (C - P))


def test_an_interval_asks_for_one_branch_outside():
    guidance = Interval(ClassifierFree(7.5), start=0.2, end=0.8)
    counts = [len(guidance.at(moment(index)).branches) for index in range(STEPS)]
    assert counts == [1, 2, 2, 2, 1]


def test_an_interval_of_noise_levels_asks_for_one_branch_outside():
    guidance = NoiseInterval(ClassifierFree(7.5), low=0.5, high=4.0)
    levels = (14.0, 4.0, 1.0, 0.5, 0.1)
    moments = [replace(moment(index), noise=lambda level=level: level) for index, level in enumerate(levels)]
    assert [len(guidance.at(one).branches) for one in moments] == [1, 2, 2, 1, 1]
    assert guidance.at(moments[1]) == ClassifierFree(7.5)
    with pytest.raises(InputError, match="does not tell the noise levels of its steps; use Interval"):
        guidance.at(moment(0))


def test_noise_levels_are_those_of_the_schedulers():
    for name, continuous in (
        ("EulerDiscrete", False),
        ("DPMSolverMultistep", False),
        ("EulerDiscrete", True),
    ):
        more = {"timestep_type": "continuous", "prediction_type": "v_prediction"} if continuous else {}
        scheduler = getattr(calotype, f"{name}Scheduler")(**more)
        scheduler.set_timesteps(7)
        levels = NoiseLevels(scheduler, scheduler.timesteps)
        found = torch.tensor([levels(index) for index in range(7)])
        torch.testing.assert_close(found, scheduler.sigmas[:7], rtol=1e-4, atol=1e-5)
    flow = calotype.FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(3)
    with pytest.raises(
        InputError, match="noise levels of a FlowMatchEulerDiscreteScheduler's steps are not known"
    ):
        NoiseLevels(flow, flow.timesteps)(0)


def test_intervals_add_step_by_step():
    guidance = Interval(ClassifierFree(2.0), end=0.4) + Interval(ClassifierFree(9.0), start=0.4)
    guidance = Rescaled(guidance + Interval(PerturbedAttention(1.0), start=0.8), 0.5)
    now = [guidance.at(moment(index)) for index in range(STEPS)]
    assert now[:2] == [Rescaled(ClassifierFree(2.0), 0.5)] * 2
    assert now[2:4] == [Rescaled(ClassifierFree(9.0), 0.5)] * 2
    assert now[4] == Rescaled(ClassifierFree(9.0) + PerturbedAttention(1.0), 0.5)


def test_nothing_is_left_to_rescale_where_nothing_guides():
    guidance = Rescaled(Interval(ClassifierFree(2.0), start=0.8), 0.5)
    assert guidance.at(moment(0)) == Unguided()


BAD: dict[str, tuple[Any, str]] = {
    "no number": (lambda: ClassifierFree("strong"), "scale of a guidance must be a finite number"),
    "not finite": (lambda: PerturbedAttention(float("nan")), "must be a finite number"),
    "beyond one": (lambda: ClassifierFree(2.0, rescale=1.5), "rescale of a guidance must be between 0 and 1"),
    "backwards": (lambda: Interval(ClassifierFree(2.0), 0.8, 0.2), "cannot go from start=0.8 to end=0.2"),
    "noise backwards": (
        lambda: NoiseInterval(ClassifierFree(2.0), 4.0, 0.5),
        "cannot go from low=4.0 to high=0.5",
    ),
    "no noise": (lambda: NoiseInterval(ClassifierFree(2.0), math.nan), "has numbers as ends, not nan"),
    "percent": (lambda: Interval(ClassifierFree(2.0), 10, 80), "start of a guidance must be between 0 and 1"),
    "two perturbations": (
        lambda: PerturbedAttention(1.0, "mid") + PerturbedAttention(1.0, "up_blocks"),
        "give all its terms the same layers",
    ),
    "nameless layers": (lambda: PerturbedAttention(1.0, [1, 2]), "must be a name or a list of names"),
}


@pytest.mark.parametrize("case", BAD)
def test_values_without_meaning_are_refused(case: str):
    make, words = BAD[case]
    with pytest.raises(InputError, match=words):
        make()


# -- one layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9, 16), (6, 16, 3, 3)])
def test_a_perturbed_layer_sees_by_identity_in_the_last_part_alone(shape: tuple[int, ...]):
    layer = randomise(Attention(16, heads=2, dim_head=8, residual_connection=True))
    x = noise(*shape)
    with torch.no_grad():
        plain = layer(x)
        found = layer(x, perturbation=Perturbation(frozenset([layer]), parts=3))
        other = layer(x, perturbation=Perturbation(frozenset(), parts=3))
        # a token that is alone can see nothing but itself
        tokens = x if x.ndim == 3 else x.flatten(2).transpose(1, 2)
        alone = layer(tokens.reshape(-1, 1, 16)).reshape(tokens.shape)
        alone = alone if x.ndim == 3 else alone.transpose(1, 2).unflatten(2, shape[2:])
    assert torch.equal(other, plain)
    torch.testing.assert_close(found[:4], plain[:4])
    torch.testing.assert_close(found[4:], alone[4:])
    assert not torch.allclose(found[4:], plain[4:], atol=1e-2)
