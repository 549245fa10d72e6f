"""The options of schedulers' configurations, in one table, constructors put together from them, and refusals of values.

Names and meanings are the same for all classes that have an option; defaults differ, and a class states its own.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.kinds import of_kind, shortened
from calotype.schedulers.grid import SPACINGS
from calotype.schedulers.levels import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.noise import BETA_SCHEDULES

Device: TypeAlias = str | torch.device | None
Numbers: TypeAlias = Sequence[float] | None


class Choice(NamedTuple):
    """A default, the values that are allowed, and what those of other classes' option of this name mean here."""

    default: Any
    allowed: Sequence[Any]
    others: Mapping[Any, Any]


def choice(default: Any, *more: Any, others: Mapping[Any, Any] | None = None) -> Choice:
    """An option that must be ``default`` or one of ``more``."""
    return Choice(default, (default, *more), others or {})


class Option(NamedTuple):
    """An option's type as it is written in a signature, its usual default, and what it means."""

    type: str
    default: Any
    doc: str


_BOUNDS = {"num_train_timesteps": (1, 1_000_000), "beta_start": (0, 1), "beta_end": (0, 1)}
SIZES = "float | None"
OPTIONS: Mapping[str, Option] = {
    # The noise table
    "num_train_timesteps": Option("int", 1000, "how many steps the model was trained with"),
    "beta_start": Option("float", 0.0001, "β of the first training step"),
    "beta_end": Option("float", 0.02, "β of the last training step"),
    "beta_schedule": Option("str", choice(*BETA_SCHEDULES), "how β goes from one to the other"),
    "trained_betas": Option("np.ndarray | Sequence[float] | None", None, "β of every training step instead"),
    "rescale_betas_zero_snr": Option("bool", False, "whether the last training step has no signal at all"),
    "snr_shift_scale": Option("float", 3.0, "what the table's SNR is divided by"),
    # What the network predicts, and what is done to it
    "prediction_type": Option("str", choice(*PREDICTION_TYPES), "what the network predicts"),
    "variance_type": Option("str", choice(*VARIANCE_TYPES), "where a step's variance comes from"),
    "clip_sample": Option("bool", True, "whether x̂0 is clipped"),
    "clip_sample_range": Option("float", 1.0, "to which size"),
    "thresholding": Option("bool", False, "whether x̂0 is thresholded dynamically (not for latents)"),
    "dynamic_thresholding_ratio": Option("float", 0.995, "the quantile that x̂0 is thresholded at"),
    "sample_max_value": Option("float", 1.0, "the largest threshold"),
    "clip_denoised": Option("bool", True, "whether x̂0 is clipped to ±1"),
    # Which levels a run visits
    "timestep_spacing": Option("str", choice(*SPACINGS), "how the steps are spaced"),
    "steps_offset": Option("int", 0, "what is added to steps spaced `leading`"),
    "timestep_type": Option("str", choice("discrete", "continuous"), "whether networks take steps or ¼·ln κ"),
    "interpolation_type": Option("str", choice("linear", "log_linear"), "how κ lies between training steps"),
    "use_karras_sigmas": Option("bool | None", False, "levels spaced as by Karras et al."),
    "use_exponential_sigmas": Option("bool | None", False, "levels spaced evenly in ln κ"),
    "use_beta_sigmas": Option("bool | None", False, "levels at the quantiles of a Beta distribution"),
    "use_lu_lambdas": Option("bool", False, "levels spaced evenly in λ"),
    "use_flow_sigmas": Option("bool", False, "levels of a flow model"),
    "sigma_min": Option(SIZES, None, "the lowest level"),
    "sigma_max": Option(SIZES, None, "the highest level"),
    "final_sigmas_type": Option("str", choice("zero", "sigma_min"), "the level that a run ends on"),
    "lambda_min_clipped": Option("float", -float("inf"), "training steps with a lower λ are not visited"),
    "set_alpha_to_one": Option("bool", True, "whether a run ends without noise, or with the first step's"),
    "rho": Option("float", 7.0, "the exponent of Karras et al.'s levels"),
    "sigma_schedule": Option("str", choice("karras", "exponential"), "how the levels are spaced"),
    "sigma_data": Option("float", 0.5, "the standard deviation of the data"),
    "original_inference_steps": Option("int", 50, "how many steps the teacher was distilled with"),
    "timestep_scaling": Option("float", 10.0, "what times are multiplied with in the boundary condition"),
    # Flows
    "shift": Option("float", 1.0, "how far levels are moved towards noise"),
    "flow_shift": Option("float", 1.0, "how far levels are moved towards noise"),
    "use_dynamic_shifting": Option("bool", False, "whether a run gives its own shift, `mu`"),
    "time_shift_type": Option(
        "str", choice("exponential", "linear"), "whether `mu` is ln of the shift, or it"
    ),
    "base_shift": Option(SIZES, 0.5, "`mu` of the smallest picture"),
    "max_shift": Option(SIZES, 1.15, "`mu` of the largest picture"),
    "base_image_seq_len": Option("int", 256, "how many tokens the smallest picture has"),
    "max_image_seq_len": Option("int", 4096, "how many tokens the largest picture has"),
    "shift_terminal": Option(SIZES, None, "the last level before the end"),
    "invert_sigmas": Option("bool", False, "whether levels rise from 0 to 1"),
    "stochastic_sampling": Option("bool", False, "whether x̂0 is noised anew at every step"),
    "scale_factors": Option("Sequence[float] | None", None, "the sizes of the picture at the steps"),
    "upscale_mode": Option("str", "bicubic", "how it is resized"),
    # Solvers
    "solver_order": Option("int", choice(2, 1, 3), "how many predictions a step combines"),
    "predictor_order": Option("int", choice(2, 1, 3), "how many predictions the predictor combines"),
    "corrector_order": Option("int", choice(2, 1, 3), "how many predictions the corrector combines"),
    "algorithm_type": Option("str", "dpmsolver++", "what is integrated: x̂0 (`++`) or ε̂, as an ODE or SDE"),
    "solver_type": Option("str", "midpoint", "the weights of second-order steps"),
    "lower_order_final": Option("bool", True, "whether short runs end with lower orders"),
    "euler_at_final": Option("bool", False, "whether the last step is of first order"),
    "predict_x0": Option("bool", True, "whether x̂0 is integrated, or ε̂"),
    "disable_corrector": Option("Sequence[int]", [], "the steps after which there is no correction"),
    "solver_p": Option("Any", None, "a scheduler that predicts instead"),
    "tau_func": Option("Callable[[float], float] | None", None, "τ, the noise added, by training step"),
    "skip_prk_steps": Option("bool", False, "whether there is no Runge-Kutta warm-up"),
    "noise_sampler_seed": Option("int | None", None, "the seed of the Brownian path"),
    "s_noise": Option("float", 1.0, "what new noise is multiplied with"),
    "eta": Option("float", 0.0, "how much of a step's noise is new"),
}

GROUPS = {
    "TABLE": "num_train_timesteps beta_start beta_end beta_schedule trained_betas",
    "THRESHOLDING": "thresholding dynamic_thresholding_ratio sample_max_value",
    "CONVERTED": "use_karras_sigmas use_exponential_sigmas use_beta_sigmas",
    "SPACED": "timestep_spacing steps_offset",
}
"""Options that are mostly found together."""

CONVERSIONS = GROUPS["CONVERTED"].split()

LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
"""The ends of β that models of latents are trained with."""
LEADING = choice("leading", "linspace", "trailing")


def constructor(
    names: str,
    *,
    setup: Callable[[Any], None] | None = None,
    former: Mapping[str, str] | None = None,
    **own: Any,
) -> Callable[..., None]:
    """An ``__init__`` that takes the options ``names`` (and ``GROUPS``, separated by spaces), refuses values that are
    not allowed, and calls ``setup`` (default: the class's ``_prepare``), which finds them in ``self.config``.

    ``own`` are the defaults, or the choices, of this class where they differ from the table's. ``former`` are other
    names that an option may be given by.
    """
    former = former or {}
    chosen = [name for word in names.split() for name in GROUPS.get(word, word).split()]
    options = {name: (OPTIONS[name], own.pop(name, OPTIONS[name].default)) for name in chosen}
    if own:
        raise TypeError(f"constructor: {', '.join(own)} not among the options.")
    choices = {name: default for name, (_, default) in options.items() if isinstance(default, Choice)}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for name, (option, default) in options.items():
        default = default.default if isinstance(default, Choice) else default
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=option.type))
    if former:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    signature = inspect.Signature(parameters, return_annotation="None")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(self, *args, **kwargs).arguments.get("kwargs", {}).items():
            if name not in former:
                raise InputError(f"{type(self).__name__} has no option {name!r}.")
            self.register_to_config(**{former[name]: value})
        for name, (_, allowed, others) in choices.items():
            value = self.config[name]
            if isinstance(value, str) and value in others:
                self.register_to_config(**{name: others[value]})
            else:
                one_of(name, value, allowed)
        for name in options.keys() - choices.keys():
            of_kind(name, self.config[name], options[name][0].type)
        _in_bounds(self.config)
        conversion(self.config)
        (setup or type(self)._prepare)(self)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    lines = (f"    {name}: {option.doc}" for name, (option, _) in options.items())
    __init__.__doc__ = "\n".join(["Options:", *lines])
    return __init__


def _in_bounds(config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` where the noise table would be too long, or not of variances."""
    for name, (low, high) in _BOUNDS.items():
        value = config.get(name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name}={value} is not between {low} and {high:,}.")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ``InputError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(
            f"{name}={shortened(value)} is not known; choose one of {', '.join(map(repr, allowed))}."
        )


def conversion(config: Mapping[str, Any]) -> str | None:
    """Which conversion of the noise levels a configuration asks for; raises ``InputError`` if it asks for two."""
    chosen = [flag for flag in CONVERSIONS if config.get(flag)]
    if len(chosen) > 1:
        raise InputError(
            f"{' and '.join(chosen)} exclude each other: set at most one of {', '.join(CONVERSIONS)}."
        )
    return chosen[0].split("_")[1] if chosen else None


def step_count(value: Any, limit: int | None = None) -> int:
    """``num_inference_steps`` as a positive integer, at most ``limit``."""
    try:
        steps = operator.index(value)
    except TypeError:
        raise InputError(f"num_inference_steps={value!r} is not a whole number of steps.") from None
    if steps < 1:
        raise InputError(f"num_inference_steps={steps} makes no run: give at least 1.")
    if limit is not None and steps > limit:
        raise InputError(
            f"num_inference_steps={steps} is more than the {limit} steps that the model was trained with "
            f"(num_train_timesteps): give at most {limit}."
        )
    return steps


def exactly_one(**given: Any) -> None:
    """Raise ``InputError`` unless exactly one of the arguments is not None."""
    present = [name for name, value in given.items() if value is not None]
    if len(present) != 1:
        raise InputError(f"Give exactly one of {', '.join(given)}; got {' and '.join(present) or 'none'}.")


def steps_or_timesteps(config: Mapping[str, Any], num_inference_steps: Any, timesteps: Numbers) -> int:
    """The number of steps, of which or of whose ``timesteps`` one is given; raises ``InputError`` if these are, and
    the noise levels are to be converted."""
    exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
    if timesteps is None:
        return step_count(num_inference_steps)
    for flag in (*CONVERSIONS, "use_lu_lambdas"):
        if config.get(flag):
            raise InputError(
                f"timesteps cannot be given together with {flag}=True: give num_inference_steps."
            )
    return step_count(len(timesteps))


def descending(timesteps: Sequence[float], total: int) -> np.ndarray:
    """Training steps that the caller chose; raises ``InputError`` unless they descend within the table."""
    given = np.asarray(timesteps, dtype=np.int64)
    if len(given) == 0 or given[0] >= total or np.any(np.diff(given) >= 0) or given[-1] < 0:
        raise InputError(
            f"timesteps must descend, from below {total} (num_train_timesteps) to 0 at the lowest; "
            f"got {list(timesteps)}."
        )
    return given
