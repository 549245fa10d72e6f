"""The options of every scheduler that parity is tested over; cases are generated from this table.

``OPTIONS``: class -> option -> values beside the default. Each value is tried alone, and ``MIXES`` combinations are
drawn at random (always the same ones). ``STEP`` holds the arguments of ``step`` to try in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

STEPS = (1, 2, 5, 10, 25, 50, 61)
MIXES = 24

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

STEP: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [{"eta": 0.5}, {"eta": 1.0}, {"use_clipped_model_output": True}],
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
    "EulerDiscreteScheduler": [
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True,
         "sigma_min": 0.002, "sigma_max": 700.0},
    ],
}  # fmt: skip
"""Combinations that must be there."""


def _mixes(options: dict[str, list[Any]], seed: str) -> Iterator[dict[str, Any]]:
    source = random.Random(seed)
    for _ in range(MIXES):
        names = source.sample(sorted(options), k=min(len(options), source.randint(2, 5)))
        mix = {name: source.choice(options[name]) for name in names}
        exclusive = [n for n in mix if n in _SIGMAS]
        for name in exclusive[1:]:
            del mix[name]
        yield mix


def configurations(name: str) -> list[dict[str, Any]]:
    """The constructor arguments to test a class with."""
    options = OPTIONS[name]
    single = [{option: value} for option, values in options.items() for value in values]
    found: dict[str, dict[str, Any]] = {}
    for config in [{}, *single, *ALWAYS.get(name, []), *_mixes(options, name)]:
        found.setdefault(label(config), config)
    return list(found.values())


def label(config: dict[str, Any]) -> str:
    """A configuration in a case's name."""
    short = {k: (f"[{len(v)}]" if isinstance(v, list) else v) for k, v in config.items()}
    return ",".join(f"{k}={v}" for k, v in sorted(short.items())) or "defaults"


def calls(name: str) -> list[dict[str, Any]]:
    """The arguments of ``step`` to test a class with."""
    return [{}, *STEP.get(name, [])]
