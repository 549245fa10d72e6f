"""The two tables behind the names of schedulers: samplers, and spacings of their noise levels. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DPM, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
EDM_DPM = "EDMDPMSolverMultistepScheduler"
LEVELS = ("Karras", "Exponential", "Beta")
STEPS = ("Uniform", "SGM Uniform", "DDIM Uniform")


@dataclass(frozen=True)
class Sampler:
    """One row of the table.

    ``order`` is that of convergence as the step shrinks (of the deterministic part; None where the network itself jumps
    to the end), ``evaluations`` what a step asks of the network. ``spacings`` are the words that may follow the name.
    ``twin`` is the sampler with the same mathematics that takes the other spacings. ``flow`` and ``edm`` are class and
    options for models of these kinds.
    """

    name: str
    scheduler: str
    order: int | None
    evaluations: int
    stochastic: bool
    when: str
    options: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    spacings: tuple[str, ...] = ()
    twin: str | None = None
    flow: tuple[str, Mapping[str, Any]] | None = None
    edm: tuple[str, Mapping[str, Any]] | None = None

    def of(self, kind: str) -> tuple[str, Mapping[str, Any]] | None:
        """Class and options for models of a kind, "discrete", "flow" or "edm"."""
        return (self.scheduler, self.options) if kind == "discrete" else getattr(self, kind)


class Spacing(NamedTuple):
    """A spacing of the noise levels: its options, those for EDM models (None: they have no such one), other names."""

    options: Mapping[str, Any]
    edm: Mapping[str, Any] | None
    aliases: tuple[str, ...]


def _flow(scheduler: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
    return scheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **options}


def _multistep(
    name: str, order: int, when: str, kind: str = "dpmsolver++", solver: str = "midpoint", *aliases: str
) -> Sampler:
    """A row of DPM-Solver++ multistep, which has the number of its predictions in its name.

    All that makes the solver is stated, whatever configuration it is put on.
    """
    options = {"algorithm_type": kind, "solver_order": int(name[6]), "solver_type": solver}
    return Sampler(
        name, DPM, order, 1, kind.startswith("sde"), when, options, aliases, (*LEVELS, "Lu", *STEPS),
        flow=_flow(DPM, **options), edm=(EDM_DPM, options),
    )  # fmt: skip


def _singlestep(name: str, order: int, when: str, *aliases: str, **options: Any) -> Sampler:
    """A row of DPM-Solver, singlestep. Its steps are counted by evaluations."""
    made = {"algorithm_type": "dpmsolver++", "solver_order": order, "solver_type": "midpoint", **options}
    made["lower_order_final"] = True  # a number of steps that the order does not divide ends with lower ones
    sde, flow = made["algorithm_type"].startswith("sde"), made["algorithm_type"].endswith("++")
    spacings, of_flow = (LEVELS, _flow(SINGLE, **made)) if flow else ((), None)
    return Sampler(name, SINGLE, order, 1, sde, when, made, aliases, spacings, flow=of_flow)


_K = (*LEVELS, *STEPS)
"""The spacings of most classes."""

SAMPLERS: tuple[Sampler, ...] = (
    Sampler("Euler", "EulerDiscreteScheduler", 1, 1, False, "the plain choice; smooth, needs 30 steps or more",
            spacings=_K, flow=("FlowMatchEulerDiscreteScheduler", {}), edm=("EDMEulerScheduler", {})),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", 1, 1, True, "varied pictures that keep changing with steps",
            aliases=("euler ancestral",), spacings=STEPS, twin="DPM++ 1M SDE"),
    Sampler("Heun", "HeunDiscreteScheduler", 2, 2, False, "careful and slow; few large steps at low noise",
            spacings=_K, flow=("FlowMatchHeunDiscreteScheduler", {})),
    Sampler("LMS", "LMSDiscreteScheduler", 4, 1, False, "for many small steps; rough below 30", spacings=_K),
    Sampler("DPM2", "KDPM2DiscreteScheduler", 2, 2, False, "as Heun, with the second look in the middle of the step",
            aliases=("kdpm2",), spacings=_K),
    Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler", 2, 2, True, "Euler a with better steps, twice the time",
            aliases=("dpm2 ancestral", "kdpm2 a", "kdpm2 ancestral"), spacings=_K),
    _multistep("DPM++ 2M", 2, "the first to try: good pictures in 15 to 25 steps"),
    _multistep("DPM++ 2M Heun", 2, "as DPM++ 2M, the slope integrated exactly", "dpmsolver++", "heun",
               "res multistep", "res 2m"),
    _multistep("DPM++ 3M", 2, "DPM++ 2M with half the error, without guidance or with many steps"),
    _multistep("DPM++ 2M SDE", 2, "crisp detail in 20 to 30 steps", "sde-dpmsolver++"),
    _multistep("DPM++ 2M SDE Heun", 2, "as DPM++ 2M SDE, a little sharper", "sde-dpmsolver++", "heun"),
    _multistep("DPM++ 3M SDE", 2, "detail at 30 steps and more", "sde-dpmsolver++"),
    _multistep("DPM++ 1M SDE", 1, "Euler a on other spacings", "sde-dpmsolver++"),
    _multistep("DPM++ 1M", 1, "DDIM on other spacings"),
    Sampler("DPM++ SDE", "DPMSolverSDEScheduler", 2, 2, True, "best detail at few steps, twice the time", spacings=_K),
    _singlestep("DPM++ 2S", 2, "strong guidance at few steps; steps in pairs"),
    _singlestep("DPM++ 2S SDE", 2, "DPM++ 2S with fresh noise", algorithm_type="sde-dpmsolver++"),
    _singlestep("DPM++ 3S", 3, "unguided models at few steps; steps in threes"),
    _singlestep("DPM fast", 3, "the first DPM-Solver; for comparison", algorithm_type="dpmsolver",
                final_sigmas_type="sigma_min", use_exponential_sigmas=True),
    Sampler("DDIM", "DDIMScheduler", 1, 1, False, "inversion and editing; reproduces older pictures",
            spacings=STEPS, twin="DPM++ 1M"),
    Sampler("DDPM", "DDPMScheduler", 1, 1, True, "as the model was trained; hundreds of steps",
            spacings=STEPS, twin="DPM++ 1M SDE"),
    Sampler("PLMS", "PNDMScheduler", 2, 1, False, "what Stable Diffusion 1 came with; 50 steps",
            {"skip_prk_steps": True}, spacings=STEPS),
    Sampler("PNDM", "PNDMScheduler", 2, 1, False, "PLMS after three Runge-Kutta steps of four evaluations",
            {"skip_prk_steps": False}, spacings=STEPS),
    Sampler("UniPC", "UniPCMultistepScheduler", 3, 1, False, "few steps, 8 to 15, with guidance",
            {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}, ("unipc bh2",), _K,
            flow=_flow("UniPCMultistepScheduler", solver_order=2, solver_type="bh2", predict_x0=True)),
    Sampler("UniPC bh1", "UniPCMultistepScheduler", 3, 1, False, "UniPC for 5 to 10 steps without guidance",
            {"solver_order": 2, "solver_type": "bh1", "predict_x0": True}, (), _K,
            flow=_flow("UniPCMultistepScheduler", solver_order=2, solver_type="bh1", predict_x0=True)),
    Sampler("DEIS", "DEISMultistepScheduler", 2, 1, False, "few steps; close to DPM++ 2M",
            {"solver_order": 2}, spacings=_K, flow=_flow("DEISMultistepScheduler", solver_order=2)),
    Sampler("SA-Solver", "SASolverScheduler", 2, 1, True, "fresh noise with a corrector; 20 steps and more",
            {"algorithm_type": "data_prediction"}, spacings=_K,
            flow=_flow("SASolverScheduler", algorithm_type="data_prediction")),
    Sampler("LCM", "LCMScheduler", None, 1, True, "latent consistency models; 2 to 8 steps",
            flow=("FlowMatchLCMScheduler", {})),
    Sampler("TCD", "TCDScheduler", None, 1, True, "trajectory consistency models; 2 to 8 steps"),
)  # fmt: skip

SPACINGS: Mapping[str, Spacing] = {
    "Karras": Spacing({"use_karras_sigmas": True}, {"sigma_schedule": "karras"}, ("ka", "k")),
    "Exponential": Spacing({"use_exponential_sigmas": True}, {"sigma_schedule": "exponential"}, ()),
    "Beta": Spacing({"use_beta_sigmas": True}, None, ()),
    "Lu": Spacing({"use_lu_lambdas": True}, None, ()),
    "Uniform": Spacing({"timestep_spacing": "linspace"}, None, ("normal", "linspace")),
    "SGM Uniform": Spacing({"timestep_spacing": "trailing"}, None, ("simple", "trailing")),
    "DDIM Uniform": Spacing({"timestep_spacing": "leading"}, None, ("leading",)),
    "Automatic": Spacing({}, {}, ()),
}

ELSEWHERE: Mapping[str, str] = {
    "DPM++ 2S a": "DPM++ 2S SDE", "dpmpp_2s_ancestral": "DPM++ 2S SDE", "DPM adaptive": "DPM++ 2M", "Restart": "Heun",
    "heunpp2": "Heun", "ipndm": "PLMS", "ipndm_v": "PLMS", "er_sde": "DPM++ 3M SDE", "seeds_2": "DPM++ SDE",
    "seeds_3": "DPM++ SDE", "sa_solver_pece": "SA-Solver", "gradient_estimation": "DPM++ 2M",
    "res_multistep_ancestral": "DPM++ 2M SDE Heun", "exp_heun_2_x0": "DPM++ 2S", "exp_heun_2_x0_sde": "DPM++ 2S SDE",
}  # fmt: skip
"""Samplers of other programs that no scheduler here computes, and the nearest that one does."""

CONVERSIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")

SPACED_FIRST = tuple(
    "EulerDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverSDE".split()
)
"""Classes that convert between the ends of the spaced steps; only linspace ends cover the model's whole range."""
