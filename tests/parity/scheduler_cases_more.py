"""Options of the flow, distilled, parallel, stochastic and discrete schedulers. The table has the form of
``scheduler_cases`` and is part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_BETAS = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "beta_start": [0.0002],
    "beta_end": [0.013],
    "trained_betas": [[0.0001 + 0.00002 * i for i in range(1000)]],
}
_SPACING = {"timestep_spacing": ["linspace", "leading", "trailing"], "steps_offset": [1]}
_CLIP = {"clip_sample": [True, False], "clip_sample_range": [2.0]}
_THRESHOLD = {"thresholding": [True], "dynamic_thresholding_ratio": [0.9], "sample_max_value": [1.5]}
_PREDICTION = {"prediction_type": ["sample", "v_prediction"]}
_ZERO = {"rescale_betas_zero_snr": [True]}
_ALPHA = {"set_alpha_to_one": [False]}
_SIGMAS = {"use_karras_sigmas": [True], "use_exponential_sigmas": [True], "use_beta_sigmas": [True]}
_FLOW = _SIGMAS | {
    "num_train_timesteps": [500],
    "shift": [3.0, 0.5],
    "shift_terminal": [0.1],
    "invert_sigmas": [True],
    "time_shift_type": ["linear"],
    "use_dynamic_shifting": [True],
}

OPTIONS: dict[str, dict[str, list[Any]]] = {
    "DDPMParallelScheduler": _BETAS
    | _SPACING
    | _CLIP
    | _THRESHOLD
    | _PREDICTION
    | _ZERO
    | {"variance_type": ["fixed_small_log", "fixed_large", "learned", "learned_range"]},
    "DDIMParallelScheduler": _BETAS | _SPACING | _CLIP | _THRESHOLD | _PREDICTION | _ZERO | _ALPHA,
    "FlowMatchEulerDiscreteScheduler": _FLOW | {"stochastic_sampling": [True]},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": [500], "shift": [3.0, 0.5]},
    "FlowMatchLCMScheduler": _FLOW | {"upscale_mode": ["nearest"]},
    "LCMScheduler": _BETAS
    | _CLIP
    | _THRESHOLD
    | _PREDICTION
    | _ZERO
    | {"original_inference_steps": [100], "timestep_scaling": [5.0]},
    "TCDScheduler": _BETAS | _PREDICTION | _ZERO | {"original_inference_steps": [100]},
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": [100],
        "sigma_min": [0.01],
        "sigma_max": [50.0],
        "sigma_data": [1.0],
        "s_noise": [1.1],
        "rho": [5.0],
        "clip_denoised": [False],
    },
    "SCMScheduler": {"num_train_timesteps": [100], "sigma_data": [1.0]},
    "UnCLIPScheduler": _CLIP
    | {"num_train_timesteps": [500], "prediction_type": ["sample"], "variance_type": ["learned_range"]},
    "DDPMWuerstchenScheduler": {"scaler": [0.5, 2.0], "s": [0.02]},
    "IPNDMScheduler": {"num_train_timesteps": [500]},
    "DDIMInverseScheduler": _BETAS
    | {"timestep_spacing": ["leading", "trailing"], "steps_offset": [1]}
    | _CLIP
    | _PREDICTION
    | _ZERO
    | _ALPHA,
    "CogVideoXDDIMScheduler": _BETAS | _SPACING | _PREDICTION | _ZERO | _ALPHA | {"snr_shift_scale": [1.0]},
    "CogVideoXDPMScheduler": _BETAS | _SPACING | _PREDICTION | _ZERO | _ALPHA | {"snr_shift_scale": [1.0]},
    "RePaintScheduler": {
        "beta_start": [0.0002],
        "beta_end": [0.013],
        "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid"],
    }
    | {"eta": [0.5], "clip_sample": [False]},
    "ScoreSdeVeScheduler": {
        "num_train_timesteps": [100],
        "snr": [0.05],
        "sigma_min": [0.1],
        "sigma_max": [50.0],
        "sampling_eps": [1e-3],
        "correct_steps": [2],
    },
    "KarrasVeScheduler": {
        "sigma_min": [0.1],
        "sigma_max": [20.0],
        "s_noise": [1.0],
        "s_churn": [10.0],
        "s_min": [0.5],
        "s_max": [2000.0],
    },
    "VQDiffusionScheduler": {
        "num_train_timesteps": [200],
        "num_vec_classes": [5],
        "alpha_cum_start": [0.999],
        "alpha_cum_end": [0.000001],
        "gamma_cum_start": [0.000001],
        "gamma_cum_end": [0.99],
    },
    "AmusedScheduler": {"masking_schedule": ["linear"], "mask_token_id": [7]},
}

STEP: dict[str, list[dict[str, Any]]] = {
    "AmusedScheduler": [{"starting_mask_ratio": 0.5}],
    "TCDScheduler": [{"eta": 0.0}, {"eta": 1.0}],
    "DDIMParallelScheduler": [{"eta": 0.5}, {"use_clipped_model_output": True}],
    "FlowMatchEulerDiscreteScheduler": [{"s_churn": 10.0}],
    "FlowMatchHeunDiscreteScheduler": [{"s_churn": 10.0, "s_tmin": 0.1, "s_tmax": 0.8, "s_noise": 1.01}],
}

ALWAYS: dict[str, list[dict[str, Any]]] = {"RePaintScheduler": [{"eta": 1.0}]}

REQUIRED: dict[str, dict[str, Any]] = {
    "VQDiffusionScheduler": {"num_vec_classes": 12},
    "AmusedScheduler": {"mask_token_id": 11},
}
"""What a constructor cannot do without."""

SETUP: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    name: lambda config: {"mu": 0.7} if config.get("use_dynamic_shifting") else {}
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
}
"""What ``set_timesteps`` takes beside the number of steps."""
