"""The options of every scheduler that parity is tested over; cases are generated from this table.

``OPTIONS``: class -> option -> values beside the default. Each value is tried alone, and ``MIXES`` combinations are
drawn at random (always the same ones). ``STEP`` holds the arguments of ``step`` to try in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tests.parity import scheduler_cases_more as more

STEPS = (1, 2, 5, 10)
UNEVEN, EXTRA = 23, 61
"""Numbers of steps that divide no number of training steps, for the options that place the timesteps; with the second,
rounding makes a trailing grid one point longer."""
LONG = 16
MIXES = 12
SLOW = (
    "SASolverScheduler",
    "DPMSolverSDEScheduler",
    "CosineDPMSolverMultistepScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "RePaintScheduler",
)
"""Classes whose reference takes long to make or to step; they get a third of the combinations."""

_BETAS = {
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
    "beta_start": [0.00085],
    "beta_end": [0.012],
    "trained_betas": [[0.0001 + 0.00002 * i for i in range(1000)]],
}
_SPACING = {"timestep_spacing": ["linspace", "leading", "trailing"], "steps_offset": [1]}
_CLIP = {
    "clip_sample": [True, False],
    "clip_sample_range": [2.0],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [1.5],
}
_PREDICTION = {"prediction_type": ["sample", "v_prediction"]}
_ZERO = {"rescale_betas_zero_snr": [True]}
_SIGMAS = {"use_karras_sigmas": [True], "use_exponential_sigmas": [True], "use_beta_sigmas": [True]}
_DPM = {
    "solver_order": [1, 3],
    "algorithm_type": ["sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"],
    "solver_type": ["heun"],
    "lower_order_final": [False],
    "euler_at_final": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "flow_shift": [3.0],
    "final_sigmas_type": ["sigma_min"],
    "lambda_min_clipped": [-5.1],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [1.5],
}

OPTIONS: dict[str, dict[str, list[Any]]] = {
    "DDPMScheduler": _BETAS
    | {"beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid"]}
    | _SPACING
    | _CLIP
    | _PREDICTION
    | _ZERO
    | {"variance_type": ["fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]},
    "DDIMScheduler": _BETAS | _SPACING | _CLIP | _PREDICTION | _ZERO | {"set_alpha_to_one": [False]},
    "PNDMScheduler": _BETAS
    | _SPACING
    | {"prediction_type": ["v_prediction"], "skip_prk_steps": [True], "set_alpha_to_one": [True]},
    "EulerDiscreteScheduler": _BETAS
    | _SPACING
    | _PREDICTION
    | _ZERO
    | _SIGMAS
    | {
        "interpolation_type": ["log_linear"],
        "sigma_min": [0.05],
        "sigma_max": [20.0],
        "timestep_type": ["continuous"],
        "final_sigmas_type": ["sigma_min"],
    },
    "EulerAncestralDiscreteScheduler": _BETAS | _SPACING | {"prediction_type": ["v_prediction"]} | _ZERO,
    "DPMSolverMultistepScheduler": _BETAS
    | _SPACING
    | {"prediction_type": ["sample", "v_prediction", "flow_prediction"]}
    | _ZERO
    | _SIGMAS
    | _DPM,
}

_VE = _BETAS | {"beta_start": [0.0001], "beta_end": [0.02]} | _SPACING | _SIGMAS
OPTIONS |= {
    "HeunDiscreteScheduler": _VE | _PREDICTION | {"clip_sample": [True], "clip_sample_range": [2.0]},
    "LMSDiscreteScheduler": _VE | _PREDICTION,
    "KDPM2DiscreteScheduler": _VE | {"prediction_type": ["v_prediction"]},
    "KDPM2AncestralDiscreteScheduler": _VE | {"prediction_type": ["v_prediction"]},
}

_FAMILY = (
    _BETAS
    | _SIGMAS
    | {
        "solver_order": [1, 3],
        "prediction_type": ["sample", "v_prediction"],
        "thresholding": [True],
        "dynamic_thresholding_ratio": [0.9],
        "sample_max_value": [1.5],
        "use_flow_sigmas": [True],
        "flow_shift": [3.0],
    }
)
_LIKE_DPM = {k: _DPM[k] for k in ("solver_type", "lower_order_final", "euler_at_final", "lambda_min_clipped")}
OPTIONS |= {
    "DPMSolverMultistepInverseScheduler": _FAMILY
    | _SPACING
    | _LIKE_DPM
    | {"algorithm_type": ["dpmsolver", "sde-dpmsolver++"]},
    "DPMSolverSinglestepScheduler": _FAMILY
    | {k: v for k, v in _LIKE_DPM.items() if k != "euler_at_final"}
    | {
        "algorithm_type": ["sde-dpmsolver++", "dpmsolver"],
        "final_sigmas_type": ["sigma_min"],
        "lower_order_final": [True],
    },
    "DEISMultistepScheduler": _FAMILY | _SPACING | {"lower_order_final": [False]},
    "UniPCMultistepScheduler": _FAMILY
    | _SPACING
    | _ZERO
    | {
        "solver_order": [1, 3, 4],
        "predict_x0": [False],
        "solver_type": ["bh1"],
        "lower_order_final": [False],
        "disable_corrector": [[0, 2]],
        "final_sigmas_type": ["sigma_min"],
        "sigma_min": [0.05],
        "sigma_max": [20.0],
    },
}

_EDM = {
    "sigma_min": [0.1],
    "sigma_max": [20.0],
    "sigma_data": [1.0],
    "sigma_schedule": ["exponential"],
    "prediction_type": ["v_prediction"],
    "rho": [5.0],
    "final_sigmas_type": ["sigma_min"],
}
OPTIONS |= {
    "SASolverScheduler": {k: v for k, v in _FAMILY.items() if k != "solver_order"}
    | _SPACING
    | {
        "predictor_order": [1, 3],
        "corrector_order": [1, 3],
        "algorithm_type": ["noise_prediction"],
        "lower_order_final": [False],
        "lambda_min_clipped": [-5.1],
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM
    | {
        k: v
        for k, v in _DPM.items()
        if k in ("solver_order", "solver_type", "lower_order_final", "euler_at_final")
    }
    | {
        "algorithm_type": ["sde-dpmsolver++"],
        "thresholding": [True],
        "dynamic_thresholding_ratio": [0.9],
        "sample_max_value": [1.5],
    },
}

OPTIONS |= {
    "DPMSolverSDEScheduler": _VE | {"prediction_type": ["v_prediction"], "noise_sampler_seed": [5]},
    "CosineDPMSolverMultistepScheduler": {
        "sigma_min": [0.1],
        "sigma_max": [100.0],
        "sigma_data": [0.5],
        "sigma_schedule": ["karras"],
        "prediction_type": ["epsilon"],
        "rho": [5.0],
        "solver_order": [1],
        "solver_type": ["heun"],
        "lower_order_final": [False],
        "euler_at_final": [True],
        "final_sigmas_type": ["sigma_min"],
    },
}

STEP: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [{"eta": 0.5}, {"eta": 1.0}, {"use_clipped_model_output": True}],
    "EDMEulerScheduler": [{"s_churn": 10.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.01}],
    "EulerDiscreteScheduler": [{"s_churn": 10.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.01}],
}

ALWAYS: dict[str, list[dict[str, Any]]] = {
    "PNDMScheduler": [{"skip_prk_steps": True, "timestep_spacing": s} for s in ("linspace", "leading", "trailing")],
    "DPMSolverMultistepScheduler": [
        {"algorithm_type": a, "solver_order": o, "solver_type": s, "final_sigmas_type": "sigma_min"}
        for a in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
        for o in (1, 2, 3)
        for s in ("midpoint", "heun")
    ],
    "DPMSolverSinglestepScheduler": [
        {"algorithm_type": a, "solver_order": o, "solver_type": s, "final_sigmas_type": "sigma_min"}
        for a in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
        for o in (1, 2, 3)
        for s in ("midpoint", "heun")
    ],
    "UniPCMultistepScheduler": [
        {"solver_order": o, "solver_type": s, "predict_x0": p, "final_sigmas_type": "sigma_min"}
        for o in (1, 2, 3)
        for s in ("bh1", "bh2")
        for p in (True, False)
    ] + [
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, **more}
        for more in ({}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}, {"final_sigmas_type": "sigma_min"})
    ],
    "SASolverScheduler": [
        {"predictor_order": p, "corrector_order": c, "algorithm_type": a}
        for p in (1, 2, 3)
        for c in (1, 2, 3)
        for a in ("data_prediction", "noise_prediction")
    ],
    "EDMDPMSolverMultistepScheduler": [
        {"algorithm_type": a, "solver_order": o, "solver_type": s}
        for a in ("dpmsolver++", "sde-dpmsolver++")
        for o in (1, 2, 3)
        for s in ("midpoint", "heun")
    ],
    "DEISMultistepScheduler": [
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "solver_order": 3},
    ],
    "EulerDiscreteScheduler": [
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True,
         "sigma_min": 0.002, "sigma_max": 700.0},
    ],
}  # fmt: skip
"""Combinations that must be there."""


OPTIONS |= more.OPTIONS
STEP |= more.STEP
ALWAYS |= more.ALWAYS


def _mixes(options: dict[str, list[Any]], seed: str) -> Iterator[dict[str, Any]]:
    source = random.Random(seed)
    for _ in range(MIXES // 3 if seed in SLOW else MIXES):
        names = source.sample(sorted(options), k=min(len(options), source.randint(2, 5)))
        mix = {name: source.choice(options[name]) for name in names}
        exclusive = [n for n in mix if n in _SIGMAS]
        for name in exclusive[1:]:
            del mix[name]
        yield mix


def configurations(name: str) -> list[dict[str, Any]]:
    """The constructor arguments to test a class with."""
    options, required = OPTIONS[name], more.REQUIRED.get(name, {})
    single = [{option: value} for option, values in options.items() for value in values]
    found: dict[str, dict[str, Any]] = {}
    for config in [{}, *single, *ALWAYS.get(name, []), *_mixes(options, name)]:
        found.setdefault(label(config), required | config)
    return list(found.values())


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
    """Configuration, arguments of ``step`` and number of steps.

    The defaults are run with every number of steps. A value of an option is run with a few and with many, and the
    options of a class go through the numbers in turn; a combination is run once, in turn with few steps and with more
    than the lower orders that a short run ends with. An option enters a run through the levels, which are made from it
    and the number of steps alike for all numbers, through the coefficients of a step, or through the order near the
    ends, where a run of few steps is nothing but ends: so what is wrong with a value shows at one of a class's small
    numbers or at any of its large ones, and what is wrong with a number of steps shows with many values. Options that
    place the timesteps are also run with an uneven number. ``LONG`` steps are as good as more: the lower orders at the
    end are for runs of fewer than 15, and a solver's history is then full.
    """
    required = len(more.REQUIRED.get(name, {}))
    has_orders = any(option.endswith("_order") for option in OPTIONS[name])
    few, many = STEPS[:3], (10, LONG)
    for place, config in enumerate(configurations(name)):
        uneven = len(config) == required or not {"timestep_spacing", "steps_offset"}.isdisjoint(config)
        longer = LONG if has_orders and place % 4 == 1 else 10
        for nth, call in enumerate(calls(name)):
            turn = place + nth
            if not call and len(config) == required:
                some: tuple[int, ...] = STEPS
            elif not call and len(config) == required + 1:
                some = (few[turn % len(few)], many[turn % len(many)])
            elif len(config) == required:
                some = (2, 10)
            elif config in ALWAYS.get(name, []):
                some = (2, longer) if turn % 2 else (longer,)
            else:
                some = (longer if turn % 3 else 2,)
            for steps in some:
                yield config, call, steps
            if uneven and not call and len(config) <= required + 1:
                spacing = config.get("timestep_spacing", "trailing")
                yield (
                    config,
                    call,
                    EXTRA if spacing == "trailing" and "steps_offset" not in config else UNEVEN,
                )


def label(config: dict[str, Any]) -> str:
    """A configuration in a case's name."""
    short = {k: (f"[{len(v)}]" if isinstance(v, list) else v) for k, v in config.items()}
    return ",".join(f"{k}={v}" for k, v in sorted(short.items())) or "defaults"


def calls(name: str) -> list[dict[str, Any]]:
    """The arguments of ``step`` to test a class with."""
    return [{}, *STEP.get(name, [])]
