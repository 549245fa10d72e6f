"""Every sampler with fresh noise on the Gaussian mixture: exact noisy samples go in, clean ones have to come out.

Methods that predict and re-noise (LCM, TCD, consistency models) are given the exact consistency function, the transport
to the clean end; with it they are exact after any number of steps.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.gaussian_mixture import CLEAN, Level, wasserstein
from tests.solver_cases import EDM, EVEN, MIXTURE, SD, UNCLIPPED, levels, network

COUNT = 10_000
"""Samples; as many exact ones of this mixture are 0.011 ± 0.004 away from it, by the Wasserstein distance."""


@dataclass(frozen=True)
class Sampling:
    """One sampler; ``steps`` few enough to be quick, ``bound`` what its discretisation then leaves of the distance.

    ``run`` is for those whose caller does more than one call of ``step``: it takes scheduler, steps and generator and
    gives the samples and the level at which these stand.
    """

    label: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 50
    coordinates: str = "vp"
    bound: float = 0.03
    call: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any, int, torch.Generator], tuple[torch.Tensor, Level]] | None = None


def noisy(level: Level, generator: torch.Generator) -> torch.Tensor:
    """Exact samples at a level, one from each of ``COUNT`` equally likely intervals, in random order."""
    at = torch.randperm(COUNT, generator=generator) + torch.rand(
        COUNT, generator=generator, dtype=torch.float64
    )
    p = (at / COUNT).reshape(1, 1, 1, COUNT)
    return MIXTURE.quantile(p, level).float()


def distance(case: Sampling, module: Any, seed: int = 0) -> float:
    """How far the samples of a whole run are from the mixture."""
    scheduler = getattr(module, case.scheduler)(**case.options)
    generator = torch.Generator().manual_seed(seed)
    if case.run is not None:
        samples, level = case.run(scheduler, case.steps, generator)
        return wasserstein(samples, MIXTURE, level)
    repaint = case.coordinates == "repaint"
    scheduler.set_timesteps(case.steps, **({"jump_n_sample": 1} if repaint else {}))
    at = levels(scheduler, case.coordinates)
    x = noisy(at[0], generator)
    extra: dict[str, Any] = {"original_image": x, "mask": torch.zeros_like(x)} if repaint else {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = generator
    for level, t in zip(at, scheduler.timesteps, strict=True):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        output = network(MIXTURE.clean(x, level), x, level, case.coordinates)
        x = scheduler.step(output, t, x, **extra, **case.call).prev_sample
    return wasserstein(x, MIXTURE)


def _consistent(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """LCM and its flow form: x̂0 is the transport to the clean end."""
    scheduler.set_timesteps(steps)
    kind = "flow" if "Flow" in type(scheduler).__name__ else "table"
    at = levels(scheduler, kind)
    x = noisy(at[0], generator)
    for level, t in zip(at, scheduler.timesteps, strict=True):
        output = network(MIXTURE.transport(x, level, CLEAN), x, level, kind)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x, CLEAN


def _trajectory_consistent(
    scheduler: Any, steps: int, generator: torch.Generator
) -> tuple[torch.Tensor, Level]:
    """TCD at η = 1: each step jumps to the first training step, so ε̂ is chosen to land on the transport to there."""
    scheduler.set_timesteps(steps)
    at, (a, b) = levels(scheduler, "table"), levels_of(scheduler, 0)
    x = noisy(at[0], generator)
    for i, ((alpha, sigma), t) in enumerate(zip(at, scheduler.timesteps, strict=True)):
        end = CLEAN if i == len(at) - 1 else (a, b)
        target = MIXTURE.transport(x, (alpha, sigma), end)
        eps = (target - end[0] / alpha * x) / (end[1] - end[0] * sigma / alpha)
        x = scheduler.step(eps, t, x, eta=1.0, generator=generator).prev_sample
    return x, CLEAN


def levels_of(scheduler: Any, t: int) -> Level:
    """The level of a training step."""
    bar = float(scheduler.alphas_cumprod[t])
    return math.sqrt(bar), math.sqrt(1 - bar)


def _consistency_model(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """Song et al.: the transport to σ_min through the boundary scalings of the parametrisation."""
    scheduler.set_timesteps(steps)
    low, data = scheduler.config.sigma_min, scheduler.config.sigma_data
    sigmas = [float(s) for s in scheduler.sigmas]
    x = noisy((1.0, sigmas[0]), generator)
    for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
        scheduler.scale_model_input(x, t)
        kept = data**2 / ((sigma - low) ** 2 + data**2)
        weight = (sigma - low) * data / math.sqrt(sigma**2 + data**2)
        output = (MIXTURE.transport(x, (1.0, sigma), (1.0, low)) - kept * x) / weight
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x, (1.0, low)


def _trigonometric(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """SCM: α = cos t, σ = σ_d·sin t, and the transport as velocity."""
    scheduler.set_timesteps(steps)
    data = scheduler.config.sigma_data
    angles = [float(t) for t in scheduler.timesteps]
    x = noisy((math.cos(angles[0]), data * math.sin(angles[0])), generator)
    for angle, t in zip(angles[:-1], scheduler.timesteps[:-1], strict=True):
        clean = MIXTURE.transport(x, (math.cos(angle), data * math.sin(angle)), CLEAN)
        output = (math.cos(angle) * x - clean) / math.sin(angle)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x, CLEAN


def _two_predictions(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """CogVideoX's DPM: the caller keeps x̂0 and the timestep before."""
    scheduler.set_timesteps(steps)
    at, ts = levels(scheduler, "table"), scheduler.timesteps
    x, old = noisy(at[0], generator), None
    for i, (level, t) in enumerate(zip(at, ts, strict=True)):
        output = network(MIXTURE.clean(x, level), x, level, "table")
        x, old = scheduler.step(output, old, t, ts[i - 1] if i else None, x, generator=generator)
    return x, CLEAN


def _predict_and_correct(
    scheduler: Any, steps: int, generator: torch.Generator
) -> tuple[torch.Tensor, Level]:
    """Score SDE (VE): Langevin correction, then a reverse diffusion step, at each level."""
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    sigmas = [float(s) for s in scheduler.sigmas]
    x = noisy((1.0, sigmas[0]), generator).reshape(COUNT, 1, 1, 1)
    for i, t in enumerate(scheduler.timesteps):
        at = 1.0, sigmas[i]
        for _ in range(scheduler.config.correct_steps):
            x = scheduler.step_correct(MIXTURE.score(x, at), x, generator=generator).prev_sample
        x = scheduler.step_pred(MIXTURE.score(x, at), t, x, generator=generator).prev_sample_mean
    return x, CLEAN


def _churned(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """Karras VE: noise added before each step, Heun after it."""
    scheduler.set_timesteps(steps)
    kappa = [*(float(scheduler.schedule[t]) for t in scheduler.timesteps), 0.0]
    x = noisy((1.0, kappa[0]), generator)
    for here, there in itertools.pairwise(kappa):
        raised_x, raised = scheduler.add_noise_to_input(x, here, generator=generator)
        first = (MIXTURE.clean(raised_x, (1.0, float(raised))) - raised_x) / raised
        out = scheduler.step(first, raised, there, raised_x)
        x = out.prev_sample
        if there > 0:
            second = (MIXTURE.clean(x, (1.0, there)) - x) / there
            x = scheduler.step_correct(second, raised, there, raised_x, x, out.derivative).prev_sample
    return x, CLEAN


def _told_the_next(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """unCLIP: the caller says which training step comes next."""
    scheduler.set_timesteps(steps)
    ts = scheduler.timesteps
    x = noisy(levels_of(scheduler, int(ts[0])), generator)
    for t, following in zip(ts, [*ts[1:], None], strict=True):
        level = levels_of(scheduler, int(t))
        output = network(MIXTURE.clean(x, level), x, level, "table")
        x = scheduler.step(output, t, x, prev_timestep=following, generator=generator).prev_sample
    return x, CLEAN


def _continuous(scheduler: Any, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, Level]:
    """Würstchen: time from 1 to 0 with a cosine of its own, ᾱ between 0.0001 and 0.9999."""
    scheduler.set_timesteps(steps)

    def level(t: float) -> Level:
        cosine = [math.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2 for at in (t, 0.0)]
        bar = min(max(cosine[0] / cosine[1], 0.0001), 0.9999)
        return math.sqrt(bar), math.sqrt(1 - bar)

    x = noisy(level(1.0), generator)
    for t in scheduler.timesteps[:-1]:
        output = network(MIXTURE.clean(x, level(float(t))), x, level(float(t)), "table")
        x = scheduler.step(output, t.expand(x.shape[0]), x, generator=generator).prev_sample
    return x, CLEAN


def _fully_noisy(t: Any) -> float:
    """τ = 1: SA-Solver on the reverse SDE."""
    return 1.0


def _sde(order: int, solver: str, kind: str = "sde-dpmsolver++") -> dict[str, Any]:
    final = "zero" if kind.endswith("++") else "sigma_min"
    return {"algorithm_type": kind, "solver_order": order, "solver_type": solver, "final_sigmas_type": final}


MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
NOISE = "sde-dpmsolver"

SAMPLINGS: tuple[Sampling, ...] = (
    Sampling("DDPM", "DDPMScheduler", UNCLIPPED, 250, "table"),
    Sampling("DDPM fixed large", "DDPMScheduler", UNCLIPPED | {"variance_type": "fixed_large"}, 300, "table"),
    Sampling("DDPM parallel", "DDPMParallelScheduler", UNCLIPPED, 250, "table"),
    Sampling("unCLIP", "UnCLIPScheduler", {"clip_sample": False}, 250, run=_told_the_next),
    Sampling("Würstchen", "DDPMWuerstchenScheduler", {}, 250, run=_continuous),
    Sampling("DDIM, η = 1", "DDIMScheduler", UNCLIPPED, 250, "table", call={"eta": 1.0}),
    Sampling("RePaint, η = 1, nothing known", "RePaintScheduler", SD | {"clip_sample": False, "eta": 1.0}, 250,
             "repaint"),
    Sampling("Euler a", "EulerAncestralDiscreteScheduler", SD, 150, "ve"),
    Sampling("Euler, churned", "EulerDiscreteScheduler", EVEN, 300, "ve", call={"s_churn": 10.0}),
    Sampling("DPM2 a", "KDPM2AncestralDiscreteScheduler", EVEN, 50, "ve ancestral"),
    Sampling("DPM++ SDE", "DPMSolverSDEScheduler", EVEN | {"noise_sampler_seed": 1}, 40, "ve midpoint"),
    Sampling("DPM++ 1M SDE", MULTI, EVEN | _sde(1, "midpoint"), 150),
    Sampling("DPM++ 2M SDE", MULTI, EVEN | _sde(2, "midpoint")),
    Sampling("DPM++ 2M SDE heun", MULTI, EVEN | _sde(2, "heun")),
    Sampling("DPM++ 3M SDE", MULTI, EVEN | _sde(3, "midpoint")),
    Sampling("DPM 1M SDE", MULTI, EVEN | _sde(1, "midpoint", NOISE), 400),
    Sampling("DPM 2M SDE", MULTI, EVEN | _sde(2, "midpoint", NOISE), 100),
    Sampling("DPM 2M SDE heun", MULTI, EVEN | _sde(2, "heun", NOISE), 100),
    Sampling("DPM++ 2S SDE", SINGLE, EVEN | _sde(2, "midpoint"), 300),
    Sampling("DPM++ 2S SDE heun", SINGLE, EVEN | _sde(2, "heun"), 300),
    Sampling("DPM++ 3S SDE", SINGLE, EVEN | _sde(3, "midpoint"), 600),
    Sampling("DPM++ 3S SDE heun", SINGLE, EVEN | _sde(3, "heun"), 600),
    Sampling("SA-Solver, τ = 1", "SASolverScheduler", EVEN | {"tau_func": _fully_noisy}),
    Sampling("EDM DPM++ 2M SDE", "EDMDPMSolverMultistepScheduler", EDM | {"algorithm_type": "sde-dpmsolver++"}, 50,
             "edm"),
    Sampling("EDM Euler, churned", "EDMEulerScheduler", EDM, 400, "edm", call={"s_churn": 5.0}),
    Sampling("Cosine DPM++", "CosineDPMSolverMultistepScheduler",
             {"sigma_min": 0.02, "sigma_max": 20.0, "sigma_data": 0.5}, 50, "edm v"),
    Sampling("CogVideoX DPM", "CogVideoXDPMScheduler", UNCLIPPED | {"snr_shift_scale": 1.0}, 100, run=_two_predictions),
    Sampling("Score SDE", "ScoreSdeVeScheduler", {"sigma_max": 20.0}, 300, run=_predict_and_correct),
    Sampling("Karras VE, churned", "KarrasVeScheduler", {"s_churn": 10, "s_noise": 1.0, "sigma_max": 20.0}, 100,
             run=_churned),
    Sampling("LCM", "LCMScheduler", {}, 4, run=_consistent),
    Sampling("TCD, η = 1", "TCDScheduler", {}, 4, run=_trajectory_consistent),
    Sampling("flow LCM", "FlowMatchLCMScheduler", {}, 4, run=_consistent),
    Sampling("flow Euler, predict and re-noise", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, 4,
             run=_consistent),
    Sampling("consistency model", "CMStochasticIterativeScheduler", {"clip_denoised": False}, 4,
             run=_consistency_model),
    Sampling("SCM", "SCMScheduler", {}, 2, run=_trigonometric),
)  # fmt: skip
