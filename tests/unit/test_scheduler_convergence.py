"""Every solver reaches the exact solution with its order; every sampler with noise reaches the right distribution."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import pytest
import torch

import calotype
from tests.gaussian_mixture import CLEAN, Mixture, wasserstein
from tests.solver_cases import CASES, Case, error, order_of
from tests.stochastic_cases import SAMPLINGS, Sampling, distance, noisy

APART = {
    "VQDiffusionScheduler": "its samples are classes of a codebook: there is no ODE and no density to compare with",
    "AmusedScheduler": "its samples are tokens that are unmasked: there is no ODE and no density to compare with",
}
"""Schedulers that are neither measured for order nor for distribution, and why."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_order(case: Case) -> None:
    """log error falls with log evaluations by the solver's order; where a defect is stated, by what that leaves."""
    points = [error(case, steps, calotype) for steps in case.steps]
    expected = case.order if case.instead is None else case.instead
    assert abs(order_of(points) - expected) < 0.3, points
    assert (case.instead is None) == (not case.why)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.label)
def test_distribution(sampling: Sampling) -> None:
    """10,000 samples are within ``bound`` of the mixture; that many exact ones are 0.01 away, ε of its width is 1.1."""
    assert distance(sampling, calotype) < sampling.bound


def test_every_scheduler_is_measured() -> None:
    public = {name for name in calotype.__all__ if name.endswith("Scheduler")} - {"Scheduler"}
    measured = {case.scheduler for case in (*CASES, *SAMPLINGS)}
    assert public == measured | set(APART)
    assert not measured & set(APART)


def test_the_transport_is_the_solution_of_the_flow() -> None:
    """dx/dκ = (x − x̂0)/κ integrated finely (Runge-Kutta) ends where the quantiles are."""
    mixture, steps = Mixture(), 2000
    x = mixture.quantile(torch.linspace(0.01, 0.99, 9, dtype=torch.float64), (1.0, 15.0))
    end = mixture.transport(x, (1.0, 15.0), (1.0, 0.02))
    h = (math.log(0.02) - math.log(15.0)) / steps

    def slope(x: torch.Tensor, log_kappa: float) -> torch.Tensor:
        return x - mixture.clean(x, (1.0, math.exp(log_kappa)))  # dx/d ln κ

    for i in range(steps):
        at = math.log(15.0) + i * h
        k1 = slope(x, at)
        k2 = slope(x + h / 2 * k1, at + h / 2)
        k3 = slope(x + h / 2 * k2, at + h / 2)
        k4 = slope(x + h * k3, at + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert torch.allclose(x, end, atol=1e-9)


def test_the_denoiser_follows_from_the_density() -> None:
    """Tweedie: the denoiser is (x + σ²·∇ log p)/α, with ∇p by differences of the distribution function."""
    mixture, level = Mixture(), (0.8, 0.6)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    h = 1e-4
    below, at, above = (mixture.cdf(x + d * h, level) for d in (-1, 0, 1))
    density, slope = (above - below) / (2 * h), (above - 2 * at + below) / h**2
    found = (x + level[1] ** 2 * slope / density) / level[0]
    assert torch.allclose(mixture.clean(x, level), found, atol=1e-5)
    assert torch.allclose(mixture.score(x, level), slope / density, atol=1e-5)


def test_the_distance_sees_what_is_wrong() -> None:
    """Exact samples pass; a shift, a width and a weight of a few per cent do not."""
    x = noisy(CLEAN, torch.Generator().manual_seed(0))
    assert wasserstein(x, Mixture()) < 0.002
    assert wasserstein(x + 0.04, Mixture()) > 0.03
    assert wasserstein(x * 1.05, Mixture()) > 0.03
    assert wasserstein(noisy(CLEAN, torch.Generator()), Mixture(weights=(0.33, 0.45, 0.22))) > 0.03


def test_an_order_is_a_slope() -> None:
    assert order_of([(10, 1e-2), (20, 2.5e-3), (40, 6.25e-4)]) == pytest.approx(2.0, abs=1e-6)
