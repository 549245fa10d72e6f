"""Every solver on the Gaussian mixture: how its run is set up, where its samples stand, which order it should have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.gaussian_mixture import Level, Mixture

MIXTURE = Mixture()
POINTS = torch.linspace(0.03, 0.97, 33, dtype=torch.float64).reshape(1, 1, 1, -1)
"""The quantiles that are followed."""

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EVEN = SD | {"use_exponential_sigmas": True}
"""Levels evenly spaced in λ, from the model's highest to its lowest."""

FULL = EVEN | {"lower_order_final": False}
TRAILING = SD | {"timestep_spacing": "trailing"}
UNCLIPPED = TRAILING | {"clip_sample": False}
WINDOWS = {
    "table": (199, 999),
    "repaint": (199, 999),
    "table upward": (199, 999),
    "circle": (0.25, 0.8),
    "flow": (200, 900),
}
"""The timesteps between which methods are measured that step evenly in these: at the ends λ(t) is not smooth."""


@dataclass(frozen=True)
class Case:
    """One deterministic solver with the options that make its order visible.

    ``coordinates`` say what ``sigmas`` are; ``table`` methods read the training steps. ``start`` steps are given exact
    samples, since a multistep method starts with lower orders and keeps their error. Two numbers of ``steps`` are
    enough: a third halfway between their logarithms has no weight in the slope. ``instead`` is the order that is
    measured where a solver has a defect, and ``why`` names it.
    """

    label: str
    scheduler: str
    options: Mapping[str, Any]
    order: int
    coordinates: str = "vp"
    start: int = 0
    steps: tuple[int, ...] = (33, 129)
    instead: int | None = None
    why: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)


def _multistep() -> list[Case]:
    found = []
    halved = (
        "the third order halves the weight of the curvature, as the reference and the checkpoints' authors do"
    )
    for kind, final in (("dpmsolver++", "zero"), ("dpmsolver", "sigma_min")):
        for order, solver in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
            options = {
                "algorithm_type": kind,
                "solver_order": order,
                "solver_type": solver,
                "final_sigmas_type": final,
            }
            defect: dict[str, Any] = {"instead": 2, "why": halved} if order == 3 else {}
            name = (
                f"{'DPM++' if kind.endswith('++') else 'DPM'} {order}M{' heun' if solver == 'heun' else ''}"
            )
            found.append(
                Case(name, "DPMSolverMultistepScheduler", FULL | options, order, start=order - 1, **defect)
            )
    return found


def _singlestep() -> list[Case]:
    found = []
    for kind, final in (("dpmsolver++", "zero"), ("dpmsolver", "sigma_min")):
        for order in (1, 2, 3):
            for solver in ("midpoint", "heun"):
                options = {"algorithm_type": kind, "solver_order": order, "solver_type": solver,
                           "final_sigmas_type": final, "lower_order_final": True}  # fmt: skip
                name = f"{'DPM++' if kind.endswith('++') else 'DPM'} {order}S{' heun' if solver == 'heun' else ''}"
                case = Case(name, "DPMSolverSinglestepScheduler", EVEN | options, order, steps=(49, 193))
                found.append(case)  # a multiple of the order, and the last step, which is left out
    return found


def _predictor_corrector() -> list[Case]:
    found = []
    for order in (2, 3):
        for solver in ("bh1", "bh2"):
            for data in (True, False):
                kind = "" if data else " noise"
                options = {"solver_order": order, "solver_type": solver, "predict_x0": data}
                every, first = ({"disable_corrector": list(range(n))} for n in (200, order - 1))
                corrected = Case(f"UniPC-{order} {solver}{kind}", "UniPCMultistepScheduler", FULL | options | first,
                                 order + 1, start=order - 1)  # fmt: skip
                plain = Case(f"UniP-{order} {solver}{kind}", "UniPCMultistepScheduler", FULL | options | every,
                             order, start=order - 1)  # fmt: skip
                found += [corrected, plain]
    for order in (1, 2, 3):
        for kind in ("data_prediction", "noise_prediction"):
            options = {
                "predictor_order": order,
                "corrector_order": order,
                "algorithm_type": kind,
                "tau_func": _still,
            }
            label = f"SA-{order}{'' if kind.startswith('data') else ' noise'}, τ = 0"
            steps = {1: (33, 129), 2: (129, 513), 3: (257, 1025)}[order]  # it shows late
            found.append(Case(label, "SASolverScheduler", FULL | options, order, start=order, steps=steps))
    return found


def _still(t: Any) -> float:
    """τ = 0: SA-Solver without noise."""
    return 0.0


EDM = {"sigma_min": 0.02, "sigma_max": 20.0, "sigma_schedule": "exponential", "rho": 7.0}

CASES: tuple[Case, ...] = (
    Case("Euler", "EulerDiscreteScheduler", EVEN, 1, "ve"),
    Case("Heun", "HeunDiscreteScheduler", EVEN, 2, "ve"),
    Case("DPM2", "KDPM2DiscreteScheduler", EVEN, 2, "ve midpoint"),
    Case("LMS", "LMSDiscreteScheduler", EVEN, 4, "ve", start=3, steps=(65, 257)),
    *_multistep(),
    *_singlestep(),
    *_predictor_corrector(),
    Case("DEIS-2", "DEISMultistepScheduler", FULL | {"solver_order": 2}, 2, start=1),
    Case("DEIS-3", "DEISMultistepScheduler", FULL | {"solver_order": 3}, 3, start=2),
    Case("DPM++ 2M, flow", "DPMSolverMultistepScheduler",
         SD | {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "lower_order_final": False}, 2, "flow",
         start=1),
    Case("DDIM", "DDIMScheduler", UNCLIPPED, 1, "table", steps=(20, 200)),
    Case("DDIM parallel", "DDIMParallelScheduler", UNCLIPPED, 1, "table", steps=(20, 200)),
    Case("CogVideoX DDIM", "CogVideoXDDIMScheduler", UNCLIPPED | {"snr_shift_scale": 1.0}, 1, "table",
         steps=(20, 200)),
    Case("RePaint, η = 0, nothing known", "RePaintScheduler", SD | {"clip_sample": False}, 1, "repaint",
         steps=(20, 200)),
    Case("DDIM upward", "DDIMInverseScheduler", SD | {"clip_sample": False, "set_alpha_to_one": False}, 1,
         "table upward", steps=(20, 200)),
    Case("DPM++ 2M upward", "DPMSolverMultistepInverseScheduler", FULL | {"algorithm_type": "dpmsolver++"}, 2, start=1),
    Case("PLMS", "PNDMScheduler", TRAILING | {"skip_prk_steps": True}, 2, "table", steps=(20, 100)),
    Case("PNDM", "PNDMScheduler", TRAILING | {"skip_prk_steps": False}, 2, "table", steps=(100, 250)),
    Case("iPNDM", "IPNDMScheduler", {}, 2, "circle", start=3, steps=(40, 160)),
    Case("EDM Euler", "EDMEulerScheduler", EDM, 1, "edm"),
    Case("EDM DPM++ 2M", "EDMDPMSolverMultistepScheduler", EDM | {"solver_order": 2, "lower_order_final": False}, 2,
         "edm", start=1),
    Case("Karras VE, no churn", "KarrasVeScheduler", {"s_churn": 0, "sigma_min": 0.05, "sigma_max": 20}, 2,
         "karras ve"),
    Case("flow Euler", "FlowMatchEulerDiscreteScheduler", {}, 1, "flow"),
    Case("flow Heun", "FlowMatchHeunDiscreteScheduler", {}, 2, "flow", steps=(17, 65)),
)  # fmt: skip


def levels(scheduler: Any, coordinates: str) -> list[Level]:
    """(α, σ) of the sample before each evaluation, from what is public of the scheduler."""
    ts = [float(t) for t in scheduler.timesteps]
    if coordinates in ("table", "table upward", "repaint"):
        jump = 1000 // scheduler.num_inference_steps if "upward" in coordinates else 0
        bar = [float(scheduler.alphas_cumprod[max(int(t) - jump, 0)]) for t in ts]
        return [(math.sqrt(a), math.sqrt(1 - a)) for a in bar]
    if coordinates == "circle":
        return [(math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)) for t in ts]
    sigmas = [float(s) for s in scheduler.sigmas]
    if coordinates == "ve midpoint":  # the second evaluation of each step is in its middle
        sigmas = [math.sqrt(sigmas[i - 1] * s) if i % 2 else s for i, s in enumerate(sigmas)]
    of = {
        "vp": lambda s: (1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s)),
        "flow": lambda s: (1 - s, s),
    }.get(coordinates, lambda s: (1.0, s))
    return [of(sigmas[i]) for i in range(len(ts))]


def network(
    clean: torch.Tensor, x: torch.Tensor, level: Level, coordinates: str, data: float = 0.5
) -> torch.Tensor:
    """What an exact network puts out at ``x``: ε, a velocity, or EDM's F for the clean sample ``clean``."""
    alpha, sigma = level
    if coordinates in ("edm", "edm v"):
        square, sign = sigma**2 + data**2, 1 if coordinates == "edm" else -1
        return (clean - data**2 / square * x) * math.sqrt(square) / (sign * sigma * data)
    eps = (x - alpha * clean) / sigma
    if coordinates == "circle":
        return alpha * eps - sigma * clean
    return eps - clean if coordinates == "flow" else eps


def error(case: Case, steps: int, module: Any, exact_start: bool = True) -> tuple[int, float]:
    """Evaluations and root-mean-square error of a run; its last step, to a level without noise, is left out."""
    scheduler = getattr(module, case.scheduler)(**case.options)
    if case.coordinates == "karras ve":
        return _karras_ve(scheduler, steps)
    scheduler.set_timesteps(steps, **({"jump_n_sample": 1} if case.coordinates == "repaint" else {}))
    at, ts = levels(scheduler, case.coordinates), scheduler.timesteps
    first, last = 0, len(at) - 1
    if case.coordinates in WINDOWS:
        low, high = WINDOWS[case.coordinates]
        inside = [i for i, t in enumerate(ts) if low <= float(t) <= high]
        first, last = inside[0] + ("upward" in case.coordinates), inside[-1]
    exact = first + (case.start if exact_start else 0)
    x = MIXTURE.quantile(POINTS, at[0])
    for i in range(last):
        if i <= exact:
            x = MIXTURE.quantile(POINTS, at[i])
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, ts[i])
        output = network(MIXTURE.clean(x, at[i]), x, at[i], case.coordinates)
        extra = {"original_image": x, "mask": torch.zeros_like(x)} if case.coordinates == "repaint" else {}
        x = scheduler.step(output, ts[i], x, **extra, **case.call).prev_sample
    apart = x.double() - MIXTURE.quantile(POINTS, at[last])
    return last - first, float(apart.square().mean().sqrt())


def _karras_ve(scheduler: Any, steps: int) -> tuple[int, float]:
    """The same for the scheduler whose caller owns both evaluations of a step."""
    scheduler.set_timesteps(steps)
    kappa = [float(scheduler.schedule[t]) for t in scheduler.timesteps]
    x = MIXTURE.quantile(POINTS, (1.0, kappa[0]))
    for here, there in itertools.pairwise(kappa):
        first = (MIXTURE.clean(x, (1.0, here)) - x) / here
        out = scheduler.step(first, here, there, x)
        second = (MIXTURE.clean(out.prev_sample, (1.0, there)) - out.prev_sample) / there
        x = scheduler.step_correct(second, here, there, x, out.prev_sample, out.derivative).prev_sample
    apart = x - MIXTURE.quantile(POINTS, (1.0, kappa[-1]))
    return 2 * (steps - 1), float(apart.square().mean().sqrt())


def order_of(points: list[tuple[int, float]]) -> float:
    """The slope of log error against log evaluations, by least squares."""
    n, e = (torch.tensor([math.log(value) for value in column]) for column in zip(*points, strict=True))
    n, e = n - n.mean(), e - e.mean()
    return float(-(n * e).sum() / (n * n).sum())
